"""Commands to type for a run on Modal: by the checkout's scripts where they lie, by the installed package elsewhere."""

from __future__ import annotations

from pathlib import Path

from noesis.core.console import command, shell_command

TRAIN_SCRIPT, EXPORT_SCRIPT = "scripts/modal_train.py", "scripts/export_for_modal.py"
TRAIN_MODULE = "noesis.cloud.train"


def modal_run(*options: str, detach: bool = False) -> str:
    """`modal run scripts/modal_train.py OPTIONS`, or of the module, which has no path."""
    what = (TRAIN_SCRIPT,) if Path(TRAIN_SCRIPT).is_file() else ("-m", TRAIN_MODULE)
    return shell_command("modal", "run", *(["--detach"] if detach else []), *what, *options)


def export_command() -> str:
    """The command that exports the project's examples."""
    return f"python {EXPORT_SCRIPT}" if Path(EXPORT_SCRIPT).is_file() else command("data", "export")
