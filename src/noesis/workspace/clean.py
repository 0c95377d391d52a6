"""`noesis clean`: list what can be deleted without losing anything in use, and delete it."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from noesis.core.project import Project, cache_folder
from noesis.core.rooted import remove


@dataclass(frozen=True)
class Garbage:
    """A file or folder that can be deleted."""

    path: Path
    bytes: int
    what: str


def garbage(project: Project) -> list[Garbage]:
    """Archived runs, incomplete files of killed processes, replays, and converted models."""
    runs = project.runs
    models = (path for path in (cache_folder() / "models").glob("*") if path.suffix != ".lock")
    found: list[tuple[str, Iterable[Path]]] = [
        ("archived run", (runs / ".archive").glob("*")),
        ("incomplete, of a process that was killed", runs.rglob(".*.part")),
        ("damaged training state, set aside", runs.rglob("checkpoints/resume/torn-*")),
        ("made again by noesis replay", (runs / ".replay").glob("*")),
        ("converted model, made again when needed", models),
    ]
    return [Garbage(path, _bytes(path), what) for what, paths in found for path in sorted(paths)]


def free(items: list[Garbage]) -> None:
    """Delete `items`."""
    for item in items:
        remove(item.path)


def _bytes(path: Path) -> int:
    return path.stat().st_size if path.is_file() else sum(p.stat().st_size for p in path.rglob("*") if p.is_file())
