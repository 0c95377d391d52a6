"""A volume seen from here: what lies on it, and its files' contents, each name checked before anything is done with it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any, Protocol

import modal

from noesis.core.config import ModalSection
from noesis.core.errors import RunError

MOST_TEXT = 64 * 2**20  # of a file that is read whole, bytes


@dataclass(frozen=True)
class Entry:
    """A file on the volume."""

    path: str
    size: int
    changed: float  # seconds since 1970, 0: not known


class RemoteFiles(Protocol):
    """Something that holds a run and is not here."""

    def files(self, folder: str = "/") -> list[Entry]:
        """Every file below `folder`, [] where there is none."""

    def chunks(self, path: str) -> Iterator[bytes]:
        """A file's bytes. Raises FileNotFoundError."""


class ModalVolumeFiles:
    """A volume of the account whose token is here."""

    def __init__(self, section: ModalSection) -> None:
        self._volume: Any = modal.Volume.from_name(section.volume)

    def files(self, folder: str = "/") -> list[Entry]:
        """Every file below `folder`; a link or anything else that is no plain file is left out."""
        try:
            entries = self._volume.listdir(folder, recursive=True)
        except (FileNotFoundError, modal.exception.NotFoundError) as error:
            if "olume '" in str(error):
                raise
            return []
        return [
            Entry(safe_name(e.path), int(e.size), float(e.mtime))
            for e in entries
            if e.type == modal.volume.FileEntryType.FILE
        ]

    def chunks(self, path: str) -> Iterator[bytes]:
        yield from self._volume.read_file(path)


def read_text(far: RemoteFiles, path: str) -> str | None:
    """A small file's text, None where it is not there."""
    found = bytearray()
    try:
        for chunk in far.chunks(path):
            found += chunk
            if len(found) > MOST_TEXT:
                raise RunError(f"{path} on the volume is too large to be what it should be")
    except FileNotFoundError:
        return None
    return found.decode("utf-8", errors="replace")


def safe_name(path: str) -> str:
    """A path on the volume as a relative one.

    Raises:
        RunError: it could lead out of the folder that it is copied to, or would be obeyed by a terminal.
    """
    relative = path.lstrip("/")
    parts = relative.split("/")
    bad = not relative or any(part in ("", ".", "..") or part.endswith((" ", ".")) or len(part) > 200 for part in parts)
    if (
        bad
        or "\\" in relative
        or ":" in relative
        or not relative.isprintable()
        or PurePosixPath(relative).is_absolute()
    ):
        raise RunError(
            f"a file on the volume has a name that is not safe to copy: {path!r}; nothing was copied. Look at it with  modal volume ls, and remove it"
        )
    return relative


def read_json(far: RemoteFiles, path: str) -> dict[str, Any]:
    try:
        found = json.loads(read_text(far, path) or "{}")
    except ValueError:  # it is being replaced
        return {}
    return found if isinstance(found, dict) else {}


def manifest_of(far: RemoteFiles) -> dict[str, Any]:
    """The manifest of the run on the volume.

    Raises:
        RunError: there is none.
    """
    found = read_json(far, "/manifest.json")
    if not isinstance(found.get("stages"), dict):
        raise RunError("the volume holds no run yet: type  modal run scripts/modal_train.py --epochs 3")
    return found
