"""Reading JSON Lines (https://jsonlines.org): one JSON object a line, UTF-8. All JSONL of the project is read here.

A line ends at a newline byte and nowhere else. U+2028, U+2029, U+0085 and the form feed are ordinary text inside a JSON
string, so `str.splitlines`, which breaks lines at them, must never be used on JSONL.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, NamedTuple, TypeVar

from noesis.core.console import size
from noesis.core.errors import DataError
from noesis.core.files import files_in
from noesis.core.i18n import _
from noesis.core.jsonl.parse import MAX_LINE, parse_object, texts_in
from noesis.core.rooted import open_plain

if TYPE_CHECKING:
    from pydantic import BaseModel

MAX_RUN_FILE = 256_000_000  # bytes of a run's answers, verdicts or metrics: thousands of times what a usual run has
M = TypeVar("M", bound="BaseModel")


class Line(NamedTuple):
    """A line that is not blank.

    number: from 1, counted from where reading began
    offset: of its first byte in the file
    data: its bytes; MAX_LINE + 1 of them for a line that is longer than that
    """

    number: int
    offset: int
    data: bytes


def iter_lines(file: Path, start: int = 0, end: int | None = None) -> Iterator[Line]:
    """The lines of `file` that are not blank; with `start` and `end`, those that begin in this range of bytes."""
    with open_plain(file) as f:
        if start:
            f.seek(start)
        number, offset = 1, start
        while (end is None or offset < end) and (data := f.readline(MAX_LINE + 1)):
            if len(data) > MAX_LINE:
                _skip_line(f, data)
            if data.strip():
                yield Line(number, offset, data)
            number, offset = number + 1, f.tell()


def iter_objects(file: Path, *, most: int | None = None) -> Iterator[tuple[int, dict[str, Any]]]:
    """(line number from 1, object) for each line of `file` that is not blank.

    Args:
        most: bytes of a file that is read whole, such as `MAX_RUN_FILE`.

    Raises:
        DataError: a line is not a JSON object, or the file has more bytes; the message names file and line.
    """
    _require_at_most(file, most)
    for line in iter_lines(file):
        try:
            value = parse_object(line.data)
        except ValueError as error:
            raise DataError(f"{file}:{line.number}: {error}") from None
        yield line.number, value


def read_objects(file: Path, *, most: int | None = None) -> list[dict[str, Any]]:
    """The objects of `file`. Arguments and error: as `iter_objects`."""
    return [value for _, value in iter_objects(file, most=most)]


def iter_intact_objects(file: Path, *, most: int | None = None) -> Iterator[tuple[int, dict[str, Any]]]:
    """Like `iter_objects`, but skips lines that are not JSON objects, such as one whose writer was killed."""
    _require_at_most(file, most)
    for line in iter_lines(file):
        try:
            value = parse_object(line.data)
        except ValueError:
            continue
        yield line.number, value


def read_models(file: Path, model: type[M]) -> Iterator[tuple[str, M]]:
    """(place, row) for each line of a file that users give, checked by a pydantic model; the place is `file:line`.

    Raises:
        DataError: the first line that does not fit the model, with the field as the line has it and what is wrong.
    """
    from pydantic import ValidationError

    for number, value in iter_objects(file):
        place = f"{file}:{number}"
        if _has_nul(value):
            raise DataError(_("{place}: contains the character U+0000, which no text has", place=place))
        try:
            row = model.model_validate(value)
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(_path_in(value, first["loc"]))
            message = first["msg"].removeprefix("Value error, ")
            raise DataError(f"{place}: {f'{where}: ' if where else ''}{message}") from None
        yield place, row


def jsonl_files(folder: Path, *, below: bool = False) -> list[Path]:
    """The JSONL files in a folder (with `below`, also in the folders below it), sorted."""
    return files_in(folder, ".jsonl", below=below)


def _require_at_most(file: Path, most: int | None) -> None:
    if most is None:
        return
    with open_plain(file) as f:  # not by its name, which may lead elsewhere
        found = os.fstat(f.fileno()).st_size
    if found > most:
        raise DataError(
            _(
                "{file} has {found}, and no run writes more than {most} there: it was not read; "
                "restore the file, or don't trust where the run comes from",
                file=file,
                found=size(found),
                most=size(most),
            )
        )


def _has_nul(value: Any) -> bool:
    """Whether a text in a JSON value contains U+0000."""
    return any("\0" in text for text in texts_in(value))


def _path_in(value: Any, path: tuple[int | str, ...]) -> Iterator[str]:
    """The path of a field, without the steps that checking added to what the user wrote (one item made a list)."""
    for part in path:
        if isinstance(part, int) and isinstance(value, dict):
            continue
        yield str(part)
        found = isinstance(value, dict) and part in value
        found = found or (isinstance(value, list) and isinstance(part, int) and part < len(value))
        value = value[part] if found else None


def _skip_line(f: IO[bytes], data: bytes) -> None:
    """Read to the end of a line of which `data` was read."""
    while data and not data.endswith(b"\n"):
        data = f.readline(MAX_LINE)
