"""A run directory's contents move to the archive whole: all of it or, killed in between, all of it when the run is opened next."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

from noesis.core.files import sha256_json, write_text

RUN_FILES = (
    "manifest.json",
    "config.json",
    "demo.json",
    "data",
    "checkpoints",
    "metrics.jsonl",
    "tribunal",
    "merged",
    "gguf",
    "report.html",
    "parent",
    ".meter",
)
MOVING = ".moving"  # in a run directory that is being archived: where to


def archive(path: Path, manifest: dict[str, Any] | None, folder: Path) -> Path:
    """Move what belongs to the run at `path` into a folder of its own under `folder`; nothing is deleted, and nothing is copied."""
    folder.mkdir(parents=True, exist_ok=True)
    if (
        folder.stat().st_dev != path.stat().st_dev
    ):  # a run directory that is a disk of its own: moved there it would be copied, and could be torn
        folder = path / ".archive"
    target = folder / f"{path.resolve().name or 'run'}-{sha256_json([manifest, time.time_ns()])[:8]}"
    target.mkdir(parents=True)
    write_text(path / MOVING, str(target.resolve()))
    finish_archiving(path)
    return target


def finish_archiving(path: Path) -> None:
    """Move what is left to where `MOVING` says, if a move was begun."""
    note = path / MOVING
    if not note.is_file():
        return
    target = Path(note.read_text(encoding="utf-8"))
    target.mkdir(parents=True, exist_ok=True)
    for name in RUN_FILES:
        if (path / name).exists():
            os.replace(path / name, target / name)
    note.unlink()
