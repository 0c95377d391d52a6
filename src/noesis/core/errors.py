"""The tree of errors. Each message says what failed, on which value, and what to do about it.

    NoesisError                          exit 1   anything that a user or the environment can cause
    ├── UsageError (ValueError)          exit 2   a wrong argument, or a named file or folder that does not exist
    │   └── ConfigError                  exit 2   a YAML file: unknown key, wrong type, contradiction
    ├── ConstitutionError (ValueError)   exit 2   a constitution that contradicts itself or is incomplete
    ├── DataError (ValueError)           exit 1   examples that must not be trained on
    ├── ModelError (RuntimeError)        exit 1   a model that can't be found, loaded, converted or run
    │   └── ParityError                  exit 1   an export that does not behave like the trained model
    ├── TrainingError (RuntimeError)     exit 1   training that can't start or must stop
    ├── CapError (RuntimeError)          exit 5   a cap in USD or minutes is reached; a higher one continues the run
    ├── RunError (RuntimeError)          exit 1   a run directory that is locked, incomplete, or of another kind
    │   └── UnsafePathError              exit 1   a link, or a name that leads out of the folder it belongs to
    └── MissingExtra (ImportError)       exit 1   an optional package that is not installed

Add a class only if a caller would handle it differently; otherwise raise an existing one with a better message.
"""

from __future__ import annotations

from noesis.core.distribution import install_command
from noesis.core.i18n import _, joined

__all__ = [
    "CapError",
    "ConfigError",
    "ConstitutionError",
    "DataError",
    "MissingExtra",
    "ModelError",
    "NoesisError",
    "ParityError",
    "RunError",
    "TrainingError",
    "UnsafePathError",
    "UsageError",
]


class NoesisError(Exception):
    """Base of all errors that are shown as one message instead of a traceback.

    Args:
        message: one line.
        details: further lines, such as the places of several mistakes.
    """

    exit_code = 1

    def __init__(self, message: str = "", *details: str) -> None:
        super().__init__(message, *details)

    def __str__(self) -> str:
        return joined("\n  ", (str(line) for line in self.args))


class UsageError(NoesisError, ValueError):
    """The command was called with something that can't work."""

    exit_code = 2


class ConfigError(UsageError):
    """A configuration file is wrong; the message names the file and the key."""


class ConstitutionError(NoesisError, ValueError):
    """The constitution contradicts itself or is incomplete; the message names the entry."""

    exit_code = 2


class DataError(NoesisError, ValueError):
    """Examples that must not be trained on; the message names file and line."""


class ModelError(NoesisError, RuntimeError):
    """A model can't be found, loaded, converted or run."""


class ParityError(ModelError):
    """An exported model does not behave like the trained model."""


class TrainingError(NoesisError, RuntimeError):
    """Training can't start or must stop; the message names the row or the setting."""


class CapError(NoesisError, RuntimeError):
    """Continuing would cost more than the cap allows; the message says what was spent and what to do."""

    exit_code = 5


class RunError(NoesisError, RuntimeError):
    """A run directory is locked, incomplete, or has another configuration."""


class UnsafePathError(RunError):
    """A path in a folder that a stranger may have filled leads out of it; nothing was followed."""


class MissingExtra(NoesisError, ImportError):
    """An optional package is missing; the message contains the install command."""

    def __init__(self, package: str, extra: str) -> None:
        super().__init__(
            _(
                "this command needs the package {package!r}, which is not installed: run  {command}  (in a checkout: "
                "make setup)",
                package=package,
                command=install_command(extra),
            )
        )
