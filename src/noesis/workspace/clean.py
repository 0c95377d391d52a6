"""`noesis clean`: what can be deleted, and deleting it."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path

from noesis.core.project import Project, cache_folder


@dataclass(frozen=True)
class Garbage:
    """Something that can be freed without losing what is in use."""

    path: Path
    bytes: int
    what: str


def garbage(project: Project) -> list[Garbage]:
    """Archived runs, parts of files that a killed process left, and converted models, which are made again when needed."""
    items = [Garbage(p, _bytes(p), "archived run") for p in sorted((project.runs / ".archive").glob("*"))]
    items += [Garbage(p, _bytes(p), "half-written") for p in sorted(project.runs.rglob(".*.part"))]
    items += [
        Garbage(p, _bytes(p), "torn state, set aside") for p in sorted(project.runs.rglob("checkpoints/resume/torn-*"))
    ]
    items += [
        Garbage(p, _bytes(p), "made again by noesis replay") for p in sorted((project.runs / ".replay").glob("*"))
    ]
    items += [
        Garbage(p, _bytes(p), "converted model, made again when needed")
        for p in sorted((cache_folder() / "models").glob("*"))
        if p.suffix != ".lock"
    ]
    return items


def free(items: list[Garbage]) -> None:
    """Delete `items`."""
    for item in items:
        if item.path.is_dir():
            shutil.rmtree(item.path)
        else:
            item.path.unlink(missing_ok=True)


def _bytes(path: Path) -> int:
    return path.stat().st_size if path.is_file() else sum(p.stat().st_size for p in path.rglob("*") if p.is_file())
