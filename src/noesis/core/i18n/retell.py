"""English texts that were made elsewhere, told again in the language that is spoken.

What a record, another process, or a library says in English is found among the catalogue's keys: as it stands, or as
one of them with its fields filled in. What is not found stays English.
"""

from __future__ import annotations

import re
import struct
from functools import lru_cache
from string import Formatter
from typing import NamedTuple

from noesis.core.i18n.catalogue import COMMA_AND_POINT, DOMAIN, FOLDER, Message, _catalogue
from noesis.core.i18n.speech import LOCALES, spoken

LEAST = 6  # characters of its own that a key has, to be told from others; with its field first, more
LEAST_BEHIND = 10
LONGEST = 4000  # characters; what is longer is no message
DEEPEST = 4  # a reason inside a reason inside a message
FIELD = re.compile(r"[\w.]+")  # the name of one
AMOUNT = re.compile(r"[+-]?\d[\d,]{0,20}(?:\.\d{1,20})? (?:s|B|kB|MB|GB|TB)")
FIGURE = re.compile(r"[+-]?\d{1,9}\.\d{3,9}(?: \[[+-]?\d{1,9}\.\d{1,9}, [+-]?\d{1,9}\.\d{1,9}\])?")  # an interval


class Field(NamedTuple):
    """A field of a key, and the text after it."""

    name: str
    numeric: bool
    after: str


class Key(NamedTuple):
    """A key of the catalogue in pieces."""

    begins: str
    fields: tuple[Field, ...]
    own: int  # characters that are not fields
    one: str  # the key by which its translation is found
    plural: bool


def retold(text: str, depth: int = 0) -> str:
    """An English `text` in the language that is spoken; unchanged where the catalogue has no such message.

    Of several that are joined (`a; b`, `a (b)`), each is told.
    """
    if spoken() not in LOCALES or isinstance(text, Message) or len(text) > LONGEST or depth > DEEPEST:
        return text
    catalogue = _catalogue(spoken())
    assert catalogue is not None
    for key in _keys(LOCALES[spoken()]):
        if text.startswith(key.begins) and (values := _values(key, text)) is not None:
            told = {name: _told(value, key, name, depth) for name, value in values.items()}
            found = catalogue.ngettext(key.one, key.one, 2) if key.plural else catalogue.gettext(key.one)
            return Message(_fill(found, told), text)
    if AMOUNT.fullmatch(text):
        return Message(text.translate(COMMA_AND_POINT), text)
    if FIGURE.fullmatch(text):
        return Message(text.replace(".", ","), text)
    for separator, end in (("; ", ""), (" (", ")")):
        first, _found, second = text.removesuffix(end).partition(separator)
        if first and second and text.endswith(end):
            told_first, told_second = (retold(part, depth + 1) for part in (first, second))
            return Message(f"{told_first}{separator}{told_second}{end}", text)
    return text


def _values(key: Key, text: str) -> dict[str, str] | None:
    """What fills the fields of `key` in `text`; None if it is another message. Each piece is looked for once."""
    at = len(key.begins)
    values: dict[str, str] = {}
    for place, field in enumerate(key.fields):
        if place == len(key.fields) - 1:
            if not text.endswith(field.after):
                return None
            end = len(text) - len(field.after)
        else:
            end = text.find(field.after, at + 1) if field.after else at + 1
        if end < at or values.get(field.name, text[at:end]) != text[at:end]:
            return None
        values[field.name] = text[at:end]
        at = end + len(field.after)
    return values if at == len(text) else None


def _told(value: str, key: Key, name: str, depth: int) -> str:
    numeric = any(field.numeric for field in key.fields if field.name == name)
    return value.translate(COMMA_AND_POINT) if numeric else retold(value, depth + 1)


def _fill(template: str, values: dict[str, str]) -> str:
    if not values:
        return template
    return "".join(text + (values[name] if name else "") for text, name, _, _ in Formatter().parse(template))


@lru_cache(maxsize=1)
def _keys(locale: str) -> tuple[Key, ...]:
    """The catalogue's keys, those with the most words of their own first."""
    found = []
    for original in _originals((FOLDER / locale / "LC_MESSAGES" / f"{DOMAIN}.mo").read_bytes()):
        one, *many = original.split("\0")
        found += [_key(text, one, plural) for text, plural in ((one, False), *((text, True) for text in many))]
    return tuple(sorted(filter(_is_telling, found), key=lambda key: -key.own))


def _is_telling(key: Key) -> bool:
    """Whether a text that looks like `key` can be no other."""
    return not key.fields or key.own >= (LEAST if key.begins or key.plural else LEAST_BEHIND)


def _key(text: str, one: str, plural: bool) -> Key:
    pieces = list(Formatter().parse(text)) if "{" in text else [(text, None, None, None)]
    if not all(name is None or FIELD.fullmatch(name) for _, name, _, _ in pieces):
        pieces = [(text, None, None, None)]  # braces that stand for themselves
    begins, fields = str(pieces[0][0]), []
    for place, (_, name, specification, _) in enumerate(pieces):
        if name is not None:
            after = str(pieces[place + 1][0]) if place + 1 < len(pieces) else ""
            fields.append(Field(name, bool(specification), after))
    own = len(begins) + sum(len(field.after) for field in fields)
    return Key(begins, tuple(fields), own, one, plural)


def _originals(mo: bytes) -> list[str]:
    """The keys of a compiled catalogue. Page: https://www.gnu.org/software/gettext/manual/html_node/MO-Files.html"""
    count, table = struct.unpack_from("<2I", mo, 8)
    places = [struct.unpack_from("<2I", mo, table + 8 * i) for i in range(count)]
    return [mo[start : start + length].decode() for length, start in places if length]
