"""`noesis clean`: list what can be deleted without losing anything in use, and delete it.

Symbolic links are neither followed nor counted, nor is anything below one: what they point at is somebody else's.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from filelock import FileLock, Timeout

from noesis.core.errors import RunError
from noesis.core.i18n import _
from noesis.core.machine.folders import cache_folder
from noesis.core.project import Project
from noesis.core.rooted import remove
from noesis.run.archive import RUN_FILES, is_being_archived_to
from noesis.run.folder import DROPPINGS, OWN
from noesis.run.lock import held


@dataclass(frozen=True)
class Garbage:
    """A file or folder that can be deleted. `root`: the folder that it was looked for in."""

    path: Path
    bytes: int
    what: str
    root: Path


def garbage(project: Project) -> list[Garbage]:
    """Archived runs, incomplete files of killed processes, replays, and converted models."""
    runs, models = project.runs, cache_folder() / "models"
    found: list[tuple[Path, str, Iterable[Path]]] = [
        (runs, _("archived run"), (p for p in (runs / ".archive").glob("*") if _is_archived_run(p))),
        (runs, _("incomplete, of a process that was killed"), (p for p in runs.rglob(".*.part") if _is_ours(p, runs))),
        (
            runs,
            _("GGUF files of a conversion that was stopped"),
            (p for p in runs.rglob("gguf/.unfinished") if _is_ours(p, runs)),
        ),
        (
            runs,
            _("damaged training state, set aside"),
            (p for p in runs.rglob("checkpoints/resume/torn-*") if _is_ours(p, runs)),
        ),
        (runs, _("made again by noesis replay"), (runs / ".replay").glob("*")),
        (models, _("converted model, made again when needed"), (p for p in models.glob("*") if p.suffix != ".lock")),
    ]
    return [
        Garbage(path, _bytes(path), what, root)
        for root, what, paths in found
        for path in sorted(paths)
        if not _is_linked(path, root)
    ]


def free(items: Iterable[Garbage]) -> list[tuple[Garbage, str]]:
    """Delete `items`, except where another process works; returns those that were kept, each with the reason."""
    kept = []
    for item in items:
        try:
            with ExitStack() as locks:
                _lock(item, locks)
                _delete(item)
        except (RunError, Timeout) as error:
            kept.append((item, _("in use: {error}", error=error)))
        except OSError as error:
            kept.append((item, error.strerror or str(error)))
    return kept


def _lock(item: Garbage, locks: ExitStack) -> None:
    """Lock what `item` belongs to: its run, the run that is being archived into it, or the converted models."""
    for folder in (item.path, *item.path.parents):
        if folder == item.root.parent:
            break
        if (folder / ".lock").is_file():
            locks.enter_context(held(folder))
    for run in item.root.iterdir():
        if is_being_archived_to(run, item.path):
            raise RunError(_("{run} is being moved here", run=run))
    for lock in item.root.glob("*.lock"):
        locks.enter_context(FileLock(lock, timeout=0))


def _delete(item: Garbage) -> None:
    if _is_linked(item.path, item.root):
        raise OSError(_("{path} is a link, or below one", path=item.path))
    remove(item.path)


def _is_archived_run(folder: Path) -> bool:
    """Whether a folder holds nothing but a run; what else users keep in runs/ is theirs."""
    return folder.is_dir() and {item.name for item in folder.iterdir()} <= {*RUN_FILES, *OWN, *DROPPINGS}


def _is_ours(path: Path, root: Path) -> bool:
    """Whether a file or folder below `root` lies in a run, or is one in the making."""
    within = [folder for folder in path.parents if folder != root and folder.is_relative_to(root)]
    return any((folder / name).is_file() for folder in within for name in ("manifest.json", ".lock")) or (
        path.parent == root and _is_archived_run(path)
    )


def _is_linked(path: Path, root: Path) -> bool:
    """Whether `path`, `root`, or a folder between them is a symbolic link."""
    return any(p.is_symlink() for p in (path, *path.parents) if p == root or p.is_relative_to(root))


def _bytes(path: Path) -> int:
    if not path.is_dir():
        return path.lstat().st_size
    return sum((Path(folder) / name).lstat().st_size for folder, _, names in os.walk(path) for name in names)
