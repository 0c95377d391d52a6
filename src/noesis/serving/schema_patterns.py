"""The patterns of a JSON schema, which are ECMAScript's, for an engine of linear time, and for llama.cpp's grammars.

pydantic-core brings the engine (Rust's regex: no backtracking, a limit of size). It reads most of ECMAScript's syntax
alike; what means something else there is rewritten, references back are refused. Patterns that look around (Zod's of
addresses, Pydantic's of decimals) are for Python's engine, which backtracks: none but the child with its limits may
search for them (`answer_check.py`).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from functools import lru_cache

from pydantic_core import SchemaError as RegexError
from pydantic_core import SchemaValidator, core_schema

from noesis.core.errors import UsageError
from noesis.core.i18n import _

LONGEST = 1000  # characters
SPACE = r"\t-\r \u{a0}\u{1680}\u{2000}-\u{200a}\u{2028}\u{2029}\u{202f}\u{205f}\u{3000}\u{feff}"
CLASSES = {"d": "0-9", "w": "0-9A-Za-z_", "s": SPACE}  # of ASCII, where Rust's are of Unicode
LINE_ENDS = r"[^\n\r\u{2028}\u{2029}]"
_LOOKS, _NAMED = re.compile(r"\(\?<?[=!]"), re.compile(r"\(\?<\w")
_PIECE = re.compile(r"(?s:\\.|\[\^|.)")
# llama.cpp's grammars have texts and classes, one after another; groups and alternatives have too many readings.
_SIMPLE = re.compile(
    r"\^(?:(?:\[(?:[0-9A-Za-z_ .%+-]|\\[dw])+\]|\\[dw.+]|[0-9A-Za-z_ @:,/-])(?:[?*+]|\{\d{1,4}(?:,\d{0,4})?\})?)*\$",
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
            raise ValueError(_("it has more than {longest} characters", longest=LONGEST))
        if _looks_around(pattern):
            search = re.compile(_for_python(pattern)).search
            return lambda text: search(text) is not None
        schema = core_schema.str_schema(pattern=_for_rust(pattern), regex_engine="rust-regex")
        return SchemaValidator(schema).isinstance_python
    except (RegexError, ValueError, re.error, OverflowError, RecursionError) as error:
        why = str(error).rsplit("error: ", 1)[-1].strip()[:120]
        raise UsageError(
            _("the pattern {pattern!r} in the schema is not supported: {why}", pattern=pattern[:80], why=why)
        ) from None


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
            out.append(LINE_ENDS)
        else:
            inside = (inside or piece in ("[", "[^")) and piece != "]"
            out.append(piece)
    return "".join(out)


def _looks_around(pattern: str) -> bool:
    return any(_LOOKS.match(pattern, at) for at, piece, inside in _pieces(pattern) if piece == "(" and not inside)


def _for_python(pattern: str) -> str:
    out = []
    for at, piece, inside in _pieces(pattern):
        kind = piece[1:] if piece.startswith("\\") else ""
        if not inside and kind and kind in "123456789k":
            raise ValueError(_("backreferences are not supported"))
        if kind in CLASSES:
            out.append(CLASSES[kind] if inside else f"[{CLASSES[kind]}]")
        elif kind == "S" and not inside:
            out.append(f"[^{SPACE}]")
        elif kind in ("D", "W", "b", "B") and not inside:
            out.append(f"(?a:{piece})")
        elif inside and piece in ("[", "&", "~", "|"):  # sets' operators of its future
            out.append("\\" + piece)
        elif not inside and piece in (".", "$"):
            out.append(LINE_ENDS if piece == "." else r"\Z")
        elif not inside and piece == "?" and _NAMED.match(pattern, at - 1):
            out.append("?P")
        else:
            out.append(piece)
    return re.sub(r"\\u\{([0-9A-Fa-f]{1,4})\}", lambda found: rf"\u{found[1]:>04}", "".join(out))


def _pieces(pattern: str) -> Iterator[tuple[int, str, bool]]:
    """Each character or escape: where it stands, itself, and whether inside a class; brackets of classes are not."""
    inside = False
    for found in _PIECE.finditer(pattern):
        piece = found.group()
        closes = inside and piece == "]"
        yield found.start(), piece, inside and not closes
        inside = not closes and (inside or piece in ("[", "[^"))


def _without_first_looks(pattern: str) -> str:
    """The pattern without the conditions right behind its beginning: what it says of the text itself."""
    while pattern.startswith("^") and _LOOKS.match(pattern, 1):
        depth, end = 0, None
        for at, piece, inside in _pieces(pattern):
            depth += 0 if inside else (piece == "(") - (piece == ")")
            if at and not depth:
                end = at + 1
                break
        if end is None:
            return pattern
        pattern = "^" + pattern[end:]
    return pattern


def for_grammar(pattern: str) -> tuple[str, int, int] | None:
    """The pattern for a grammar, how many readings it may have open at once, and what its counts add up to.

    None where it is none that is easily bounded.
    """
    pattern = _without_first_looks(pattern) if len(pattern) <= LONGEST else ""
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
