"""The catalogue's keys in pieces, so that a text can be recognised as one of them with its fields filled in."""

from __future__ import annotations

import re
import struct
from collections.abc import Iterator
from functools import lru_cache
from string import Formatter
from typing import NamedTuple

from noesis.core.i18n.catalogue import DOMAIN, FOLDER

LEAST = 4  # characters of its own that a key with fields has
TELLING = 6  # with so many it is recognised whatever its fields hold, with its field first, more
TELLING_BEHIND = 10
FIELD = re.compile(r"[\w.]+")  # the name of one
NUMBER = re.compile(r"[+-]?(?:\d[\d,]{0,20}(?:\.\d{1,20})?(?:e[+-]?\d{1,3})?|nan|inf)%?")


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

    @property
    def telling(self) -> bool:
        """Whether a text that looks like this can be no other, whatever the fields hold."""
        return not self.fields or self.own >= (TELLING if self.begins or self.plural else TELLING_BEHIND)

    def is_number(self, name: str) -> bool:
        """Whether the field `name` is written as a number."""
        return any(field.numeric for field in self.fields if field.name == name)

    def values(self, text: str) -> dict[str, str] | None:
        """What fills the fields in `text`; None if it is another message. Each piece is looked for once."""
        if not text.startswith(self.begins):
            return None
        at = len(self.begins)
        values: dict[str, str] = {}
        for place, field in enumerate(self.fields):
            if place == len(self.fields) - 1:
                if not text.endswith(field.after):
                    return None
                end = len(text) - len(field.after)
            else:
                end = text.find(field.after, at + 1) if field.after else at + 1
            if end < at or values.get(field.name, text[at:end]) != text[at:end]:
                return None
            if field.numeric and not NUMBER.fullmatch(text, at, end):
                return None
            values[field.name] = text[at:end]
            at = end + len(field.after)
        return values if at == len(text) else None


class Keys(NamedTuple):
    """The catalogue's keys: those without fields by their text, the others by their first character, if it is known."""

    whole: dict[str, Key]
    filled: dict[str, tuple[Key, ...]]

    def fitting(self, text: str) -> Iterator[tuple[Key, dict[str, str]]]:
        """The keys that `text` can be, and what then fills their fields; those with most words of their own first."""
        if text in self.whole:
            yield self.whole[text], {}
        for begins in (text[:1], ""):
            for key in self.filled.get(begins, ()):
                if (values := key.values(text)) is not None:
                    yield key, values


@lru_cache(maxsize=1)
def keys(locale: str) -> Keys:
    """The keys of a compiled catalogue."""
    found = []
    for original in _originals((FOLDER / locale / "LC_MESSAGES" / f"{DOMAIN}.mo").read_bytes()):
        one, *many = original.split("\0")
        found += [_key(text, one, plural) for text, plural in ((one, False), *((text, True) for text in many))]
    whole = {key.begins: key for key in found if not key.fields}
    filled: dict[str, list[Key]] = {}
    for key in sorted((key for key in found if key.fields and key.own >= LEAST), key=lambda key: -key.own):
        filled.setdefault(key.begins[:1], []).append(key)
    return Keys(whole, {begins: tuple(same) for begins, same in filled.items()})


def _key(text: str, one: str, plural: bool) -> Key:
    pieces = list(Formatter().parse(text)) if "{" in text else [(text, None, None, None)]
    if not all(name is None or FIELD.fullmatch(name) for _, name, _, _ in pieces):
        pieces = [(text, None, None, None)]  # braces that stand for themselves
    begins = ""
    fields: list[Field] = []
    for literal, name, specification, conversion in pieces:
        if fields:
            fields[-1] = fields[-1]._replace(after=fields[-1].after + literal)
        else:
            begins += literal
        if name is not None:
            fields.append(Field(name, conversion is None and _is_numeric(specification or ""), ""))
    own = len(begins) + sum(len(field.after) for field in fields)
    return Key(begins, tuple(fields), own, one, plural)


def _is_numeric(specification: str) -> bool:
    return specification.endswith((",", "d", "e", "f", "g", "%")) and not specification.startswith("%")  # a date


def _originals(mo: bytes) -> list[str]:
    """The keys of a compiled catalogue. Page: https://www.gnu.org/software/gettext/manual/html_node/MO-Files.html"""
    count, table = struct.unpack_from("<2I", mo, 8)
    places = [struct.unpack_from("<2I", mo, table + 8 * i) for i in range(count)]
    return [mo[start : start + length].decode() for length, start in places if length]
