"""A run directory is archived whole: a move that was cut short is completed the next time a run is started there."""

from __future__ import annotations

import os
import re
import time
from pathlib import Path

from noesis.core.errors import RunError, UnsafePathError
from noesis.core.files import make_folder, read_text, sha256_json, write_text
from noesis.core.i18n import _
from noesis.core.rooted import move, remove

RUN_FILES = (
    "manifest.json",
    "config.json",
    "demo.json",
    "data",
    "checkpoints",
    "dial",
    "metrics.jsonl",
    "tensorboard",
    "tribunal",
    "merged",
    "gguf",
    "influence",
    "report.html",
    "tables",
    "parent",
    ".meter",
)
MOVING = ".moving"  # in a run directory that is being archived: the target, relative to the run


def archive(path: Path, folder: Path) -> Path:
    """Move what belongs to the run at `path` into a new folder under `folder`; nothing is deleted or copied.

    Raises:
        UnsafePathError: `folder` is a link.
    """
    if folder.is_symlink():
        raise UnsafePathError(_("{folder} is a symbolic link, through which no run is moved: remove it", folder=folder))
    make_folder(folder)
    if folder.stat().st_dev != path.stat().st_dev:  # moving to another disk would copy, and could be torn
        folder = path / ".archive"
    name = path.resolve().name or "run"
    target = folder / f"{name}-{sha256_json([name, time.time_ns()])[:8]}"
    make_folder(target)
    write_text(path / MOVING, os.path.relpath(target, path))
    finish_archiving(path, folder)
    return target


def finish_archiving(path: Path, folder: Path) -> None:
    """Complete a move that was started, if there is one.

    Args:
        folder: where runs are archived; the note may name a place in it or in the run's own `.archive`, and no other.

    Raises:
        UnsafePathError: the note names another place. RunError: something lies there already.
    """
    note = path / MOVING
    if not note.is_file():
        return
    target = _noted_target(note, (folder, path / ".archive"))
    make_folder(target)
    left = [name for name in RUN_FILES if (path / name).exists()]
    for name in left:
        if os.path.lexists(target / name):
            raise RunError(
                _(
                    "{target} exists already, so {path} was not moved there: remove {note}",
                    target=target / name,
                    path=path / name,
                    note=note,
                )
            )
    for name in left:
        move(path / name, target / name)
    remove(note)


def is_being_archived_to(path: Path, target: Path) -> bool:
    """Whether a move of the run at `path` to `target` was started and not completed."""
    note = path / MOVING
    return note.is_file() and _same(path / read_text(note, errors="replace"), target)


def _same(path: Path, other: Path) -> bool:
    try:
        return path.resolve() == other.resolve()
    except ValueError:  # a NUL
        return False


def _noted_target(note: Path, folders: tuple[Path, ...]) -> Path:
    text = read_text(note, errors="replace")
    target = Path(os.path.abspath(note.parent / text)) if "\0" not in text else note
    for folder in folders:
        # an early version of Noesis wrote the resolved path
        inside = target.parent in (Path(os.path.abspath(folder)), folder.resolve())
        if inside and not folder.is_symlink() and re.search(r"-[0-9a-f]{8}\Z", target.name):
            return folder / target.name
    raise UnsafePathError(
        _(
            "{note} says that the run is to be moved to {text!r}, which is no place of an archived run: "
            "nothing was moved; remove that file if you trust the run",
            note=note,
            text=text[:200],
        )
    )
