"""Which folders Noesis works in: a run, or a new or empty folder. Nothing in a run is reached through a link."""

from __future__ import annotations

import os
from pathlib import Path

from noesis.core.errors import RunError, UnsafePathError, UsageError
from noesis.core.i18n import _
from noesis.core.rooted import guard
from noesis.run.archive import MOVING, RUN_FILES
from noesis.run.manifest_file import read_manifest
from noesis.run.settings import read_settings

OWN = (".lock", ".holder", ".archive", MOVING)  # may be left where there is no run yet, or no more
DROPPINGS = (".DS_Store", "Thumbs.db", "desktop.ini", ".gitkeep", ".gitignore")  # what other programs leave anywhere


def guard_run(path: Path) -> None:
    """Never follow a link in the run directory `path`.

    Raises:
        UnsafePathError: it holds a link, or anything else that is neither a file nor a folder; or `path` goes through a
            link and back (`link/..`), which the system reads as another folder than the words say.
    """
    if os.path.realpath(path) != os.path.realpath(os.path.abspath(path)):
        raise UnsafePathError(
            _("{path} goes through a symbolic link and back by '..': name the folder without it", path=path)
        )
    guard(path, parts=RUN_FILES)


def require_run_folder(path: Path) -> None:
    """Refuse to work in a folder with anything but a run: what is in it would be moved or replaced. Guards it.

    Raises:
        UsageError: it is not empty and no run. RunError: its manifest can't be read, or as `guard_run`.
    """
    guard_run(path)
    if not path.exists() or read_manifest(path) is not None:
        return
    if not path.is_dir():
        raise UsageError(_("{path} is a file: name a folder for the run", path=path))
    found = sorted({item.name for item in path.iterdir()} - {*OWN, *DROPPINGS})
    found = [name for name in found if not (name.startswith(".") and name.endswith(".part"))]
    if found == ["config.json"] and _is_configuration(path / "config.json"):
        return  # a run whose process was killed before it wrote the manifest
    if found and not ((path / MOVING).is_file() and set(found) <= set(RUN_FILES)):
        raise UsageError(
            _(
                "{path} is no run and not empty (it holds {found}): nothing was changed; "
                "name a new or empty folder with --run",
                path=path,
                found=found[0],
            )
        )


def _is_configuration(file: Path) -> bool:
    try:
        read_settings(file)
    except RunError:
        return False
    return True
