"""A volume read from this machine: its files and their contents. Each name is checked before it is used."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any, Protocol

import modal

from noesis.cloud.request import modal_run
from noesis.core.config import ModalSection
from noesis.core.errors import RunError
from noesis.core.i18n import _
from noesis.run.manifest import Manifest
from noesis.run.manifest_file import parse_manifest

MAX_TEXT = 64 * 2**20  # bytes of a file that is read whole


@dataclass(frozen=True)
class RemoteFile:
    """A file on the volume; `size` in bytes."""

    path: str
    size: int


class UnreadableManifest(RunError):
    """A manifest that is on the volume and can't be read: incomplete, no manifest, or of a newer format."""


class RemoteFiles(Protocol):
    """Files of a run that are somewhere else."""

    def files(self, folder: str = "/") -> list[RemoteFile]:
        """Every file below `folder`, [] where there is none."""

    def chunks(self, path: str) -> Iterator[bytes]:
        """A file's bytes. Raises FileNotFoundError."""


class ModalVolumeFiles:
    """The project's volume, in the Modal account whose token is on this machine."""

    def __init__(self, section: ModalSection) -> None:
        self._volume: Any = modal.Volume.from_name(section.volume)

    def files(self, folder: str = "/") -> list[RemoteFile]:
        """Every file below `folder`; links and anything else that is not a plain file are left out."""
        try:
            entries = self._volume.listdir(folder, recursive=True)
        except (FileNotFoundError, modal.exception.NotFoundError) as error:
            if "olume '" in str(error):
                raise
            return []
        return [
            RemoteFile(safe_name(e.path), int(e.size)) for e in entries if e.type == modal.volume.FileEntryType.FILE
        ]

    def chunks(self, path: str) -> Iterator[bytes]:
        yield from self._volume.read_file(path)


def read_text(files: RemoteFiles, path: str) -> str | None:
    """A small file's text; None if there is no such file."""
    found = bytearray()
    try:
        for chunk in files.chunks(path):
            found += chunk
            if len(found) > MAX_TEXT:
                raise RunError(
                    _(
                        "{path} on the volume is larger than {max_text} MiB: it is not a file that a run writes",
                        path=path,
                        max_text=MAX_TEXT >> 20,
                    )
                )
    except FileNotFoundError:
        return None
    return found.decode("utf-8", errors="replace")


def safe_name(path: str) -> str:
    """A path on the volume as a relative one.

    Raises:
        RunError: it could lead out of the folder that it is copied to, or holds control characters.
    """
    relative = path.lstrip("/")
    parts = relative.split("/")
    unsafe = not relative or any(
        part in ("", ".", "..") or part.endswith((" ", ".")) or len(part) > 200 for part in parts
    )
    if (
        unsafe
        or "\\" in relative
        or ":" in relative
        or not relative.isprintable()
        or PurePosixPath(relative).is_absolute()
    ):
        raise RunError(
            _(
                "a file on the volume has a name that is not safe to copy: {path!r}; nothing was copied. "
                "Look at it with  modal volume ls VOLUME, and remove it",
                path=path,
            )
        )
    return relative


def manifest_of(files: RemoteFiles, folder: str = "") -> Manifest:
    """The manifest of the run on the volume.

    Args:
        folder: of an archived run, relative to the volume's root and ending in a slash.

    Raises:
        RunError: there is none. UnreadableManifest: there is one, which this version can't read.
    """
    path = f"/{folder}manifest.json"
    text = read_text(files, path)
    if text is None:
        raise RunError(
            _("there is no run in /{folder} of the volume: look with  modal volume ls VOLUME /runs", folder=folder)
            if folder
            else _("the volume holds no run yet: start one with  {modal_run}", modal_run=modal_run("--epochs", "3"))
        )
    try:
        return parse_manifest(json.loads(text))
    except RunError as error:
        raise UnreadableManifest(_("{path} on the volume {error}", path=path, error=error)) from None
    except (json.JSONDecodeError, RecursionError):
        raise UnreadableManifest(
            _("{path} on the volume is incomplete; if it is being written, it can be read in a minute", path=path)
        ) from None
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError):
        raise UnreadableManifest(_("{path} on the volume is not a manifest of Noesis", path=path)) from None
