"""Read JSONL files: by pieces that can be checked side by side, by line, or whole."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import IO, Any, NamedTuple

from noesis.core.errors import UsageError

MAX_LINE = 4_000_000  # bytes; a longer line is reported, not parsed


class FileChunk(NamedTuple):
    """A run of whole lines of one file: bytes `start` to `end`."""

    file: Path
    start: int
    end: int


def find_files(paths: list[Path]) -> list[Path]:
    """JSONL files named by `paths`: files as they are, folders by their `*.jsonl`, sorted.

    Raises:
        UsageError: a path does not exist, or a folder holds no JSONL file.
    """
    files: list[Path] = []
    for path in paths:
        if path.is_file():
            files.append(path)
        elif path.is_dir():
            inside = sorted(path.glob("*.jsonl"))
            if not inside:
                raise UsageError(f"{path} holds no .jsonl file: put examples there, one JSON object a line")
            files.extend(inside)
        else:
            raise UsageError(f"{path} does not exist: name a .jsonl file or a folder of them")
    return list(dict.fromkeys(files))


def is_hand_written(path: Path) -> bool:
    """Whether a file or folder lies in `training/philosophical` or `training/philosophical_en`, which only people write to."""
    parts = path.resolve().parts
    return any(above == "training" and name in ("philosophical", "philosophical_en") for above, name in pairwise(parts))


def file_chunks(file: Path, size: int) -> Iterator[FileChunk]:
    """Cut `file` into runs of lines of about `size` bytes; only the cuts are looked at."""
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


def lines(piece: FileChunk) -> Iterator[tuple[int, int, bytes]]:
    """(line number within the piece from 0, offset in the file, line) of each line that is not blank.

    A line over MAX_LINE comes cut to MAX_LINE + 1 bytes, so that it can be told and never fills the memory.
    """
    with open(piece.file, "rb") as f:
        f.seek(piece.start)
        number = 0
        while (offset := f.tell()) < piece.end and (line := f.readline(MAX_LINE + 1)):
            if len(line) > MAX_LINE:
                _skip_line(f, line)
            if line.strip():
                yield number, offset, line
            number += 1


def _skip_line(f: IO[bytes], line: bytes) -> None:
    while line and not line.endswith(b"\n"):
        line = f.readline(MAX_LINE)


class LineReader:
    """Lines of several files by (file, offset, length); keeps the files open."""

    def __init__(self, files: list[Path]) -> None:
        self._handles = [open(file, "rb") for file in files]  # noqa: SIM115

    def __enter__(self) -> LineReader:
        return self

    def __exit__(self, *_: object) -> None:
        for handle in self._handles:
            handle.close()

    def line(self, file: int, offset: int, length: int) -> bytes:
        """One line without its end and without a byte-order mark."""
        handle = self._handles[file]
        handle.seek(offset)
        data = handle.read(length)
        return data.removeprefix(b"\xef\xbb\xbf").strip()

    def record(self, file: int, offset: int, length: int) -> dict[str, Any]:
        """One line as the record in it."""
        value: dict[str, Any] = json.loads(self.line(file, offset, length))
        return value


def total_size(files: list[Path]) -> int:
    """Bytes of all files."""
    return sum(os.stat(file).st_size for file in files)
