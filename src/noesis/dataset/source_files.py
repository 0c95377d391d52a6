"""The JSONL files of a dataset: found, cut into chunks that are checked in parallel, and read by place."""

from __future__ import annotations

import os
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

from noesis.core.errors import UsageError
from noesis.core.i18n import _
from noesis.core.jsonl import MAX_LINE, Line, iter_lines, jsonl_files
from noesis.core.project import EXAMPLES, GUIDE_FOLDERS
from noesis.core.rooted import NO_FILE


class FileChunk(NamedTuple):
    """Consecutive whole lines of one file: bytes `start` to `end`."""

    file: Path
    start: int
    end: int


def find_files(paths: list[Path]) -> list[Path]:
    """The JSONL files that `paths` name: files as they are, folders by the `.jsonl` files in them, sorted.

    Raises:
        UsageError: a path does not exist, or a folder holds no JSONL file.
    """
    files: list[Path] = []
    for path in paths:
        if path.is_file():
            files.append(path)
        elif path.is_dir():
            inside = jsonl_files(path)
            if not inside:
                raise UsageError(
                    _("{path} holds no .jsonl file: put examples there, one JSON object a line", path=path)
                )
            files.extend(inside)
        elif path.exists():
            raise UsageError(f"{path} {NO_FILE}")
        else:
            raise UsageError(_("{path} does not exist: name a .jsonl file or a folder of them", path=path))
    return list(dict.fromkeys(files))


def is_hand_written(path: Path) -> bool:
    """Whether a path is in `training/examples` or a folder of the guide's names, which only people write to.

    A link counts by its own place and by that of what it leads to.
    """
    return _among_hand_written(Path(os.path.abspath(path))) or _among_hand_written(path.resolve())


def file_chunks(file: Path, size: int) -> Iterator[FileChunk]:
    """Cut `file` into chunks of about `size` bytes; only the bytes around the cuts are read."""
    total = file.stat().st_size
    start = 0
    with open(file, "rb") as f:
        while start < total:
            f.seek(min(start + size, total))
            while (block := f.readline(MAX_LINE)) and not block.endswith(b"\n"):
                pass
            end = min(f.tell(), total)
            yield FileChunk(file, start, end)
            start = end


def chunk_lines(chunk: FileChunk) -> Iterator[Line]:
    """The lines of a chunk that are not blank, numbered from its beginning."""
    return iter_lines(chunk.file, chunk.start, chunk.end)


def total_size(files: list[Path]) -> int:
    """Bytes of all files."""
    return sum(os.stat(file).st_size for file in files)


def _among_hand_written(path: Path) -> bool:
    folders = (EXAMPLES, *GUIDE_FOLDERS.values())
    return any(above == "training" and name in folders for above, name in pairwise(path.parts))
