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

from noesis.core.i18n import _

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
        raise LineError("too-long", _("longer than {most:,} bytes", most=most))
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
        place = _("byte 0x{data:02x} at column {start}", data=data[error.start], start=error.start + 1)
        raise LineError(
            "not-utf8",
            _("not UTF-8{looks_like}: {place}; save the file as UTF-8", looks_like=_looks_like(data), place=place),
        ) from None
    except RecursionError:
        raise _too_deep() from None
    except json.JSONDecodeError as error:  # its own text counts lines inside of this one
        if b"\x00" in data[:4]:
            raise LineError("not-utf8", _("not UTF-8 (it looks like UTF-16): save the file as UTF-8")) from None
        column = min(error.pos, len(error.doc.rstrip())) + 1
        raise LineError(
            "not-json",
            _(
                "not JSON: {msg} at column {column}{json_advice}",
                msg=error.msg,
                column=column,
                json_advice=_json_advice(text),
            ),
        ) from None
    except ValueError as error:  # an integer of thousands of digits
        raise LineError("not-json", _("not JSON: {error}", error=error)) from None
    if not isinstance(value, dict):
        advice = _("; write each of its items on a line of its own") if isinstance(value, list) else ""
        raise LineError(
            "not-an-object", _("expected a JSON object, found {name}{advice}", name=type(value).__name__, advice=advice)
        )
    if data.count(b"[") + data.count(b"{") > MAX_DEPTH and _depth_exceeds(value, MAX_DEPTH):
        raise _too_deep()
    if _SURROGATE.search(text) and (half := _lone_surrogate(value)):
        message = _("half a character: the surrogate {half} stands alone; write the whole character", half=half)
        raise LineError("not-unicode", message)
    return value


def _refuse_constant(name: str) -> None:
    raise LineError("not-json", _("not JSON: {name} is not JSON", name=name))


def _finite(digits: str) -> float:
    value = float(digits)
    if not math.isfinite(value):
        raise LineError("not-json", _("not JSON: the number {digits} is too large", digits=digits[:40]))
    return value


def _without_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    made = dict(pairs)
    if len(made) < len(pairs):
        counts = Counter(name for name, _ in pairs)
        name = next(name for name, count in counts.items() if count > 1)[:80]
        message = _("the field {name!r} appears twice in one object; which one is meant?", name=name)
        raise LineError("duplicate-field", message)
    return made


def _looks_like(data: bytes) -> str:
    if data.startswith(_GZIP):
        return _(" (it looks like a gzip archive: unpack it)")
    return _(" (it looks like UTF-16)") if data[:2] in _UTF16_MARKS or b"\x00" in data[:4] else ""


def _json_advice(text: str) -> str:
    """What people put into a .jsonl file that is JSON of another shape, or nearly JSON."""
    line = text.strip()
    if line in ("{", "[", "[{"):
        return _(" (it looks like one JSON document over many lines: write one object a line)")
    if "\r" in line:
        return _(" (its lines end in CR alone, as on old systems: save the file with LF)")
    if line.startswith(("{'", "[{'")):
        return _(" (single quotes: this is how Python prints it; write it with json.dumps)")
    return _(" (several objects on one line: write one a line)") if line.replace(" ", "").find("}{") > 0 else ""


def _too_deep() -> LineError:
    return LineError(
        "not-json", _("JSON nested too deeply to be read: more than {max_depth} levels", max_depth=MAX_DEPTH)
    )


def _depth_exceeds(value: Any, limit: int) -> bool:
    level = [value]
    for _level in range(limit + 1):
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
