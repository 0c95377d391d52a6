"""A run's trained adapters by name: `epoch_2` of its first seed, `seed_43_epoch_2` of another.

The folder of the first is checkpoints/epoch_2, that of the other checkpoints/seed_43/epoch_2.
"""

from __future__ import annotations

import re
from pathlib import Path

EPOCH = re.compile(r"epoch_(0|[1-9][0-9]{0,8})").fullmatch  # the folder of an epoch's adapter
SEED = re.compile(r"seed_(0|[1-9][0-9]{0,9})").fullmatch  # the folder of a seed's epochs
_OF_SEED = re.compile(r"(seed_(?:0|[1-9][0-9]{0,9}))_(epoch_(?:0|[1-9][0-9]{0,8}))").fullmatch


def folder_of(checkpoints: Path, name: str) -> Path:
    """The folder of the trained adapter called `name`."""
    found = _OF_SEED(name)
    return checkpoints / found[1] / found[2] if found else checkpoints / name


def name_of(folder: Path) -> str:
    """The name of the adapter in `folder`."""
    return f"{folder.parent.name}_{folder.name}" if SEED(folder.parent.name) else folder.name


def seed_folders(checkpoints: Path) -> list[Path]:
    """The folders of the seeds beside the first, in order."""
    return sorted((p for p in checkpoints.glob("seed_*") if SEED(p.name)), key=lambda p: int(p.name[len("seed_") :]))
