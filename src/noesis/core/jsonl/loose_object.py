"""Fields of a reply that was asked for as a JSON object, where a person could read it and a JSON parser can't.

`renamed` takes an object that was parsed: in a wrapper, its names with accents or capitals, a field as an object of its
own. `scanned` takes text that is no JSON: Python's quotes, comments, a comma too many, quotation marks inside a text, a
missing last brace, a list in Markdown. It reads nothing where a name occurs twice: a reply may repeat what it judges,
and an object in there must not be taken for its own.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence
from typing import Any

LONGEST_WRAPPER = 3  # objects around the one that has the fields
VALUE_NAMES = ("score", "value", "points", "nota", "pontos", "valor")
TEXT_NAMES = ("span", "evidence", "quote", "evidencia", "trecho", "citacao")
_MARKS = "\"'`*_“”‘’"


def plain(name: str) -> str:
    """A field's name without case, accents and spacing: `Razão da incerteza` is `razao_da_incerteza`."""
    letters = unicodedata.normalize("NFKD", name)[:200]
    return re.sub(r"[\s\-]+", "_", "".join(c for c in letters if not unicodedata.combining(c)).strip().lower())


def renamed(found: dict[str, Any], names: Sequence[str], *, span: str = "_span") -> dict[str, Any]:
    """`found` with its fields under `names`, where a person would see them; other fields stay.

    Args:
        span: what follows a field's name in the name of the text that belongs to it.
    """
    known = set(names)
    for _ in range(LONGEST_WRAPPER):
        found = {plain(str(key)): value for key, value in found.items()} | {
            key: value for key, value in found.items() if key in known
        }
        inner = [value for value in found.values() if isinstance(value, dict)]
        if known & found.keys() - {"reasoning"} or len(inner) != 1:
            break
        found = {"reasoning": found["reasoning"], **inner[0]} if "reasoning" in found else inner[0]
    for name in names:
        own = found.get(name)
        if isinstance(own, dict):
            own = {plain(str(key)): value for key, value in own.items()}
            found[name] = next((own[key] for key in VALUE_NAMES if key in own), own)
            if name + span in known and name + span not in found:
                found[name + span] = next((own[key] for key in TEXT_NAMES if key in own), "")
        if name.endswith(span) and name in found and found[name] is None:
            found[name] = ""  # no passage
    return found


def scanned(text: str, names: Sequence[str]) -> dict[str, str] | None:
    """The text after each of `names` and a colon, up to the next of them; None unless each is there exactly once."""
    alternatives = "|".join(re.escape(name) for name in sorted(names, key=len, reverse=True))
    places = list(re.finditer(rf"(?<![\w])[{_MARKS}]{{0,3}}({alternatives})[{_MARKS}]{{0,3}}[ \t]{{0,9}}:", text))
    if sorted(match[1] for match in places) != sorted(names):
        return None
    ends = [match.start() for match in places[1:]] + [len(text)]
    return {match[1]: _value(text[match.end() : end]) for match, end in zip(places, ends, strict=True)}


def _value(text: str) -> str:
    """A value without what stands around it: quotation marks, the comma, a comment, braces that close."""
    text = text.strip()
    if text[:1] and text[0] in _MARKS:
        last = max(text.rfind(mark) for mark in _MARKS)
        return text[1:last].strip() if last > 0 else text[1:].strip()
    number = re.match(r"[0-9.]{1,9}(?=[\s,;}])", text)
    return number[0] if number else text.lstrip(_MARKS).rstrip(" \t\r\n,;{}[]|-" + _MARKS)
