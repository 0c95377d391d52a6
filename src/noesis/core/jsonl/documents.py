"""JSON files of strangers, of models and of runs: one object a file, and the numbers in it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from noesis.core.i18n import _
from noesis.core.jsonl.parse import LineError, parse_object
from noesis.core.rooted import guarded_root, open_plain

MAX_FILE = 50_000_000  # bytes


def read_json_file(file: Path, most: int = MAX_FILE, *, constants: bool = True) -> dict[str, Any]:
    """The JSON object that `file`, a stranger's, consists of; opened as by `open_plain`.

    Args:
        most: bytes; a longer file is not read.
        constants: read NaN and Infinity, which models' files hold.

    Raises:
        FileNotFoundError: it does not exist.
        ValueError: it is too long, or not a JSON object; the message does not name it.
    """
    if guarded_root(file) is None and file.exists() and not file.is_file():  # a pipe would wait for its writer
        raise LineError("not-json", _("not a plain file"))
    with open_plain(file) as f:
        data = f.read(most + 1)
    if len(data) > most:
        raise LineError("too-long", _("longer than {most:,} bytes", most=most))
    return parse_object(data, most, constants=constants)


def whole_number(raw: dict[str, Any], key: str, least: int, most: int) -> int:
    """`raw[key]` of a stranger's JSON, a whole number.

    Raises:
        ValueError: it is missing, of another type, or outside of `least` to `most`; the message names the key.
    """
    value = raw.get(key)
    if type(value) is not int or not least <= value <= most:
        raise ValueError(
            _(
                "{key} is {value}: expected a whole number from {least} to {most}",
                key=key,
                value=repr(value)[:60],
                least=least,
                most=most,
            )
        )
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
        raise ValueError(
            _(
                "{key} is {value}: expected a number above {above:g} and up to {most:g}",
                key=key,
                value=repr(value)[:60],
                above=above,
                most=most,
            )
        )
    return float(value)
