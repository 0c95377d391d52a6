"""Reading JSON Lines (https://jsonlines.org): one JSON object a line, UTF-8. All JSONL of the project is read here, and
the JSON files of models (`read_json_file`).

A line ends at a newline byte and nowhere else. U+2028, U+2029, U+0085 and the form feed are ordinary text inside a JSON
string, so `str.splitlines`, which breaks lines at them, must never be used on JSONL.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, NamedTuple, TypeVar

from noesis.core.errors import DataError

if TYPE_CHECKING:
    from pydantic import BaseModel

MAX_LINE = 4_000_000  # bytes; a longer line is reported, never parsed
MAX_FILE = 50_000_000  # bytes of a model's JSON file
BYTE_ORDER_MARK = b"\xef\xbb\xbf"

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
    with open(file, "rb") as f:
        f.seek(start)
        number, offset = 1, start
        while (end is None or offset < end) and (data := f.readline(MAX_LINE + 1)):
            if len(data) > MAX_LINE:
                _skip_line(f, data)
            if data.strip():
                yield Line(number, offset, data)
            number, offset = number + 1, f.tell()


def parse_object(data: bytes, most: int = MAX_LINE) -> dict[str, Any]:
    """The JSON object in a line of at most `most` bytes.

    Raises:
        ValueError: the line is too long, not JSON, or not a JSON object.
    """
    if len(data) > most:
        raise ValueError(f"longer than {most:,} bytes")
    try:
        value = json.loads(data.removeprefix(BYTE_ORDER_MARK))
    except RecursionError:
        raise ValueError("JSON nested too deeply to be read") from None
    except ValueError as error:
        raise ValueError(f"not JSON ({error})") from None
    if not isinstance(value, dict):
        raise ValueError(f"expected a JSON object, found {type(value).__name__}")
    return value


def read_json_file(file: Path, most: int = MAX_FILE) -> dict[str, Any]:
    """The JSON object that `file`, a stranger's, consists of.

    Args:
        most: bytes; a longer file is not read.

    Raises:
        FileNotFoundError: it does not exist.
        ValueError: it is too long, or not a JSON object; the message does not name it.
    """
    with open(file, "rb") as f:
        data = f.read(most + 1)
    if len(data) > most:
        raise ValueError(f"longer than {most:,} bytes")
    return parse_object(data, most)


def whole_number(raw: dict[str, Any], key: str, least: int, most: int) -> int:
    """`raw[key]` of a stranger's JSON, a whole number.

    Raises:
        ValueError: it is missing, of another type, or outside of `least` to `most`; the message names the key.
    """
    value = raw.get(key)
    if type(value) is not int or not least <= value <= most:
        raise ValueError(f"{key} is {repr(value)[:60]}: expected a whole number from {least} to {most}")
    return value


def fraction(raw: dict[str, Any], key: str, above: float, most: float, *, zero: bool = False) -> float:
    """`raw[key]` of a stranger's JSON, a number above `above`; with `zero` also `above` itself.

    Raises:
        ValueError: it is missing, of another type, not finite, or outside; the message names the key.
    """
    value = raw.get(key)
    if (
        not isinstance(value, (int, float))
        or isinstance(value, bool)
        or not (above < value <= most or (zero and value == above))
    ):
        raise ValueError(f"{key} is {repr(value)[:60]}: expected a number above {above:g} and up to {most:g}")
    return float(value)


def iter_objects(file: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """(line number from 1, object) for each line of `file` that is not blank.

    Raises:
        DataError: a line is not a JSON object; the message names file and line.
    """
    for line in iter_lines(file):
        try:
            value = parse_object(line.data)
        except ValueError as error:
            raise DataError(f"{file}:{line.number}: {error}") from None
        yield line.number, value


def read_objects(file: Path) -> list[dict[str, Any]]:
    """The objects of `file`.

    Raises:
        DataError: a line is not a JSON object; the message names file and line.
    """
    return [value for _, value in iter_objects(file)]


def iter_intact_objects(file: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """Like `iter_objects`, but skips lines that are not JSON objects, such as one whose writer was killed."""
    for line in iter_lines(file):
        try:
            value = parse_object(line.data)
        except ValueError:
            continue
        yield line.number, value


def read_models(file: Path, model: type[M]) -> Iterator[tuple[str, M]]:
    """(place, row) for each line of `file`, checked by a pydantic model; the place is `file:line`, for messages.

    Raises:
        DataError: the first line that does not fit the model, with the field and what is wrong with it.
    """
    from pydantic import ValidationError

    for number, value in iter_objects(file):
        place = f"{file}:{number}"
        try:
            row = model.model_validate(value)
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(str(part) for part in first["loc"])
            message = first["msg"].removeprefix("Value error, ")
            raise DataError(f"{place}: {f'{where}: ' if where else ''}{message}") from None
        yield place, row


def _skip_line(f: IO[bytes], data: bytes) -> None:
    """Read to the end of a line of which `data` was read."""
    while data and not data.endswith(b"\n"):
        data = f.readline(MAX_LINE)
