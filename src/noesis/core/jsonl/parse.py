"""One line of JSON Lines → the JSON object in it, or what is wrong with it.

JSON is what RFC 8259 calls so, and no more: readers disagree about NaN, a key that stands twice, and half a surrogate
pair, so none of them is read.
"""

from __future__ import annotations

import json
import math
import re
from collections import Counter
from collections.abc import Iterator
from typing import Any

MAX_LINE = 4_000_000  # bytes; a longer line is reported, never parsed
MAX_DEPTH = 64  # of nested objects and lists; what can be read at any depth may fail when it is written
BYTE_ORDER_MARK = b"\xef\xbb\xbf"
_UTF16_MARKS = (b"\xff\xfe", b"\xfe\xff")
_GZIP = b"\x1f\x8b"
_SURROGATE = re.compile(r"\\u[dD][89a-fA-F]")


class LineError(ValueError):
    """Why a line holds no JSON object. code: the kind of the mistake, for counting."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code


def parse_object(data: bytes, most: int = MAX_LINE, *, constants: bool = False) -> dict[str, Any]:
    """The JSON object in a line of at most `most` bytes.

    Args:
        constants: read NaN and Infinity too.

    Raises:
        LineError: the line is too long, not UTF-8, not JSON, nested too deeply, or not a JSON object.
    """
    if len(data) > most:
        raise LineError("too-long", f"longer than {most:,} bytes")
    try:
        text = data.removeprefix(BYTE_ORDER_MARK).decode()
        value = json.loads(
            text,
            parse_constant=None if constants else _refuse_constant,
            parse_float=_finite,
            object_pairs_hook=_without_duplicates,
        )
    except LineError:
        raise
    except UnicodeDecodeError as error:
        place = f"byte 0x{data[error.start]:02x} at column {error.start + 1}"
        raise LineError("not-utf8", f"not UTF-8{_looks_like(data)}: {place}; save the file as UTF-8") from None
    except RecursionError:
        raise _too_deep() from None
    except json.JSONDecodeError as error:  # its own text counts lines inside of this one
        if b"\x00" in data[:4]:
            raise LineError("not-utf8", "not UTF-8 (it looks like UTF-16): save the file as UTF-8") from None
        column = min(error.pos, len(error.doc.rstrip())) + 1
        raise LineError("not-json", f"not JSON: {error.msg} at column {column}{_json_advice(text)}") from None
    except ValueError as error:  # an integer of thousands of digits
        raise LineError("not-json", f"not JSON: {error}") from None
    if not isinstance(value, dict):
        advice = "; write each of its items on a line of its own" if isinstance(value, list) else ""
        raise LineError("not-an-object", f"expected a JSON object, found {type(value).__name__}{advice}")
    if data.count(b"[") + data.count(b"{") > MAX_DEPTH and _depth_exceeds(value, MAX_DEPTH):
        raise _too_deep()
    if _SURROGATE.search(text) and (half := _lone_surrogate(value)):
        message = f"half a character: the surrogate {half} stands alone; write the whole character"
        raise LineError("not-unicode", message)
    return value


def _refuse_constant(name: str) -> None:
    raise LineError("not-json", f"not JSON: {name} is not JSON")


def _finite(digits: str) -> float:
    value = float(digits)
    if not math.isfinite(value):
        raise LineError("not-json", f"not JSON: the number {digits[:40]} is too large")
    return value


def _without_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    made = dict(pairs)
    if len(made) < len(pairs):
        counts = Counter(name for name, _ in pairs)
        name = next(name for name, count in counts.items() if count > 1)[:80]
        message = f"the field {name!r} appears twice in one object; which one is meant?"
        raise LineError("duplicate-field", message)
    return made


def _looks_like(data: bytes) -> str:
    if data.startswith(_GZIP):
        return " (it looks like a gzip archive: unpack it)"
    return " (it looks like UTF-16)" if data[:2] in _UTF16_MARKS or b"\x00" in data[:4] else ""


def _json_advice(text: str) -> str:
    """What people put into a .jsonl file that is JSON of another shape, or nearly JSON."""
    line = text.strip()
    if line in ("{", "[", "[{"):
        return " (it looks like one JSON document over many lines: write one object a line)"
    if "\r" in line:
        return " (its lines end in CR alone, as on old systems: save the file with LF)"
    if line.startswith(("{'", "[{'")):
        return " (single quotes: this is how Python prints it; write it with json.dumps)"
    return " (several objects on one line: write one a line)" if line.replace(" ", "").find("}{") > 0 else ""


def _too_deep() -> LineError:
    return LineError("not-json", f"JSON nested too deeply to be read: more than {MAX_DEPTH} levels")


def _depth_exceeds(value: Any, limit: int) -> bool:
    level = [value]
    for _ in range(limit + 1):
        if not level:
            return False
        level = [
            item
            for outer in level
            if isinstance(outer, dict | list)
            for item in (outer.values() if isinstance(outer, dict) else outer)
            if isinstance(item, dict | list)
        ]
    return bool(level)


def _lone_surrogate(value: Any) -> str | None:
    """The first half of a surrogate pair that stands alone in a text of a JSON value, as JSON writes it."""
    for text in texts_in(value):
        try:
            text.encode()
        except UnicodeEncodeError as error:
            return f"\\u{ord(text[error.start]):04x}"
    return None


def texts_in(value: Any) -> Iterator[str]:
    """Every text in a JSON value: keys too."""
    todo = [value]
    while todo:
        item = todo.pop()
        if isinstance(item, str):
            yield item
        elif isinstance(item, dict):
            todo += [*item.values(), *item]
        elif isinstance(item, list):
            todo += item
