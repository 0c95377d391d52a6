"""The patterns of a JSON schema, which are ECMAScript's, for an engine of linear time, and for llama.cpp's grammars.

pydantic-core brings the engine (Rust's regex: no backtracking, a limit of size). It reads most of ECMAScript's syntax
alike; what means something else there is rewritten, what it has not (looking around, references back) is refused.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import lru_cache

from pydantic_core import SchemaError as RegexError
from pydantic_core import SchemaValidator, core_schema

from noesis.core.errors import UsageError

LONGEST = 1000  # characters
SPACE = r"\t-\r \u{a0}\u{1680}\u{2000}-\u{200a}\u{2028}\u{2029}\u{202f}\u{205f}\u{3000}\u{feff}"
CLASSES = {"d": "0-9", "w": "0-9A-Za-z_", "s": SPACE}  # of ASCII, where Rust's are of Unicode
_PIECE = re.compile(r"(?s:\\.|\[\^|.)")
# llama.cpp's grammars have texts and classes, one after another; groups and alternatives have too many readings.
_SIMPLE = re.compile(
    r"\^(?:(?:\[(?:[0-9A-Za-z_ -]|\\[dw])+\]|\\[dw]|[0-9A-Za-z_ @:,/-])(?:[?*+]|\{\d{1,4}(?:,\d{0,4})?\})?)*\$",
    re.ASCII,
)
_REPEATED = re.compile(r"[?*+]|\{(\d{1,4})(,)?(\d{0,4})\}")


@lru_cache(256)
def compiled(pattern: str) -> Callable[[str], bool]:
    """Whether a text contains the pattern, as ECMAScript has it.

    Raises:
        UsageError: it is no pattern, or none that takes linear time.
    """
    try:
        if len(pattern) > LONGEST:
            raise ValueError(f"it has more than {LONGEST} characters")
        schema = core_schema.str_schema(pattern=_for_rust(pattern), regex_engine="rust-regex")
        return SchemaValidator(schema).isinstance_python
    except (RegexError, ValueError) as error:
        why = str(error).rsplit("error: ", 1)[-1].strip()[:120]
        raise UsageError(f"the pattern {pattern[:80]!r} in the schema is not supported: {why}") from None


def _for_rust(pattern: str) -> str:
    out, inside = [], False
    for piece in _PIECE.findall(pattern):
        kind = piece[1:].casefold() if piece.startswith("\\") else ""
        if kind in CLASSES:
            out.append(f"[{'^' if piece[1].isupper() else ''}{CLASSES[kind]}]")
        elif kind == "b":
            out.append(r"\x08" if inside else f"(?-u:{piece})")
        elif inside and piece in ("[", "[^", "&", "~"):  # classes in classes, and sets' operators
            out.append("".join("\\" + char for char in piece))
        elif not inside and piece == ".":
            out.append(r"[^\n\r\u{2028}\u{2029}]")
        else:
            inside = (inside or piece in ("[", "[^")) and piece != "]"
            out.append(piece)
    return "".join(out)


def for_grammar(pattern: str) -> tuple[str, int, int] | None:
    """The pattern for a grammar, how many readings it may have open at once, and what its counts add up to.

    None where it is none that is easily bounded.
    """
    if not _SIMPLE.fullmatch(pattern):
        return None
    readings = most = 0
    for sign in _REPEATED.finditer(pattern):
        low, comma, high = (sign[1] or "0"), sign[2], sign[3]
        readings += 1 if not comma or not high else max(0, int(high) - int(low))
        most += int(high or low)
        if comma and high and int(high) < int(low):
            return None
    out, inside = [], False
    for piece in _PIECE.findall(pattern):
        inside = (inside or piece == "[") and piece != "]"
        members = CLASSES.get(piece[1:], "") if piece.startswith("\\") else ""
        out.append((members if inside else f"[{members}]") if members else piece)
    return "".join(out), readings, most
