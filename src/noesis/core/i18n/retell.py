"""English texts that were made elsewhere, told again in the language that is spoken.

What a record, another process, or a library says in English is found among the catalogue's keys: as it stands, or as
one of them with its fields filled in. What is not found stays English.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from functools import lru_cache
from string import Formatter
from typing import NamedTuple

from noesis.core.i18n.catalogue import COMMA_AND_POINT, Message, _catalogue
from noesis.core.i18n.keys import keys
from noesis.core.i18n.speech import LOCALES, spoken

LONGEST = 4000  # characters; what is longer is no message
DEEPEST = 4  # a reason inside a reason inside a message
MOST_TEXTS = 300  # that are looked up in one, itself and texts inside it
MOST_PARTS = 12  # that are joined
AMOUNT = re.compile(r"[+-]?\d[\d,]{0,20}(?:\.\d{1,20})? (?:s|B|kB|MB|GB|TB)")
FIGURE = re.compile(r"[+-]?\d{1,9}\.\d{3,9}(?: \[[+-]?\d{1,9}\.\d{1,9}, [+-]?\d{1,9}\.\d{1,9}\])?")  # an interval
WORD = re.compile(r"[^\W\d_]+")


class Reading(NamedTuple):
    """A text told again, and how much of it was not found: of each piece the square of its words."""

    told: str
    unknown: int


def retold(text: str) -> str:
    """An English `text` in the language that is spoken; unchanged where the catalogue has no such message.

    Of several that are joined (`a; b`, `a (b)`), each is told. A text that can be read in several ways is read in the
    one that leaves least of it in English.
    """
    if spoken() not in LOCALES or isinstance(text, Message) or len(text) > LONGEST:
        return text
    told = _told(text, spoken())
    return text if told == text else Message(told, text)


@lru_cache(maxsize=2048)
def _told(text: str, code: str) -> str:
    return _Reader(code).read(text, 0).told


class _Reader:
    """Reads a text, and each text inside it once."""

    def __init__(self, code: str) -> None:
        catalogue = _catalogue(code)
        assert catalogue is not None
        self._catalogue, self._keys = catalogue, keys(LOCALES[code])
        self._read: dict[tuple[str, int], Reading] = {}

    def read(self, text: str, depth: int) -> Reading:
        """The reading that leaves least unknown; of equal ones, as several messages, or by the key with most words."""
        if (text, depth) not in self._read:
            plain = _as_it_stands(text)
            if plain.unknown == 0 or depth > DEEPEST or len(self._read) >= MOST_TEXTS:
                return plain
            self._read[text, depth] = plain  # while its parts are read
            readings = (plain, *self._joined(text, depth), *self._by_key(text, depth))
            self._read[text, depth] = min(readings, key=lambda reading: reading.unknown)
        return self._read[text, depth]

    def _by_key(self, text: str, depth: int) -> Iterator[Reading]:
        for key, values in self._keys.fitting(text):
            read = {
                name: Reading(value.translate(COMMA_AND_POINT), 0)
                if key.is_number(name)
                else self.read(value, depth + 1)
                for name, value in values.items()
            }
            unknown = sum(reading.unknown for reading in read.values())
            if unknown and not key.telling:
                continue
            found = self._catalogue.ngettext(key.one, key.one, 2) if key.plural else self._catalogue.gettext(key.one)
            told = _filled(found, {name: reading.told for name, reading in read.items()})
            yield Reading(told, unknown)

    def _joined(self, text: str, depth: int) -> Iterator[Reading]:
        for separator, end in (("; ", ""), (" (", ")")):
            body = text.removesuffix(end)
            at = body.find(separator, 1) if text.endswith(end) else -1
            for _part in range(MOST_PARTS):
                if at < 0 or at + len(separator) >= len(body):
                    break
                parts = body[:at], body[at + len(separator) :]
                first, second = (self.read(part, depth) for part in parts)
                if (first.told, second.told) != parts:
                    yield Reading(f"{first.told}{separator}{second.told}{end}", first.unknown + second.unknown)
                at = body.find(separator, at + 1)


def _as_it_stands(text: str) -> Reading:
    if AMOUNT.fullmatch(text):
        return Reading(text.translate(COMMA_AND_POINT), 0)
    if FIGURE.fullmatch(text):
        return Reading(text.replace(".", ","), 0)
    return Reading(text, len(WORD.findall(text)) ** 2)


def _filled(template: str, values: dict[str, str]) -> str:
    if not values:
        return template
    return "".join(text + (values[name] if name else "") for text, name, _, _ in Formatter().parse(template))
