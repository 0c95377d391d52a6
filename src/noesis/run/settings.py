"""config.json of a run: the resolved configuration that it was made with."""

from __future__ import annotations

from pathlib import Path

from pydantic import ValidationError

from noesis.core.config import Config
from noesis.core.errors import RunError
from noesis.core.i18n import _
from noesis.core.jsonl import read_json_file


def read_settings(file: Path) -> Config:
    """The configuration in `file`.

    Raises:
        RunError: it is missing, damaged, or no configuration of this version.
    """
    try:
        return Config.model_validate(read_json_file(file, constants=False))
    except FileNotFoundError:
        why = _("it is missing")
    except ValidationError as error:
        first = error.errors()[0]
        why = f"{'.'.join(map(str, first['loc']))}: {first['msg'].removeprefix('Value error, ')}"
    except ValueError as error:
        why = str(error)
    raise RunError(
        _("{file} is not the configuration of a run ({why}): restore the file", file=file, why=why)
    ) from None
