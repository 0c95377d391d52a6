"""A run directory is archived whole: a move that was cut short is completed the next time the run is opened."""

from __future__ import annotations

import os
import time
from pathlib import Path

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
MOVING = ".moving"  # in a run directory that is being archived: names the target


def archive(path: Path, folder: Path) -> Path:
    """Move what belongs to the run at `path` into a new folder under `folder`; nothing is deleted or copied."""
    folder.mkdir(parents=True, exist_ok=True)
    if folder.stat().st_dev != path.stat().st_dev:  # moving to another disk would copy, and could be torn
        folder = path / ".archive"
    name = path.resolve().name or "run"
    target = folder / f"{name}-{sha256_json([name, time.time_ns()])[:8]}"
    target.mkdir(parents=True)
    write_text(path / MOVING, str(target.resolve()))
    finish_archiving(path)
    return target


def finish_archiving(path: Path) -> None:
    """Complete a move that was started, if there is one."""
    note = path / MOVING
    if not note.is_file():
        return
    target = Path(note.read_text(encoding="utf-8"))
    target.mkdir(parents=True, exist_ok=True)
    for name in RUN_FILES:
        if (path / name).exists():
            os.replace(path / name, target / name)
    note.unlink()
