"""Messages in the language that is spoken.

    say(_("{count:,} examples, loss {loss:.4f}", count=4087, loss=0.7))    # pt: 4.087 exemplos, perda 0,7000

The English text is the key, as gettext has it; `make messages` gathers the keys, and translations stand in
`locale/pt_BR/LC_MESSAGES/noesis.po`. A message remembers its English, in which every file is written (`in_english`): so
a run made in one language is the same, byte for byte, as one made in another.

Page: https://docs.python.org/3/library/gettext.html
"""

from __future__ import annotations

import gettext
from collections.abc import Iterable
from functools import lru_cache
from pathlib import Path
from string import Formatter
from typing import Any

import noesis
from noesis.core.i18n.speech import LOCALES, spoken

DOMAIN = "noesis"
FOLDER = Path(noesis.__file__).parent / "locale"
COMMA_AND_POINT = str.maketrans(",.", ".,")


class Message(str):
    """A text in the language that is spoken, which knows its English."""

    __slots__ = ("english",)
    english: str

    def __new__(cls, text: str, english: str) -> Message:
        """A text and its English."""
        message = super().__new__(cls, text)
        message.english = english
        return message

    def __getnewargs__(self) -> tuple[str, str]:  # type: ignore[override]
        """What a copy is made of."""
        return str.__str__(self), self.english

    def __str__(self) -> str:
        """Itself, so that `str(error)` keeps the English too."""
        return self


def _(message: str, /, **values: Any) -> str:
    """`message` in the language that is spoken, its `{fields}` filled with `values`.

    Numbers with a format specification are written as the language writes them. Without values nothing is filled in,
    and braces stand for themselves.
    """
    catalogue = _catalogue(spoken())
    return _filled(message, message if catalogue is None else catalogue.gettext(message), values)


def translated(message: str, code: str) -> str:
    """`message` in the language `code`, whichever is spoken; in English if it has no catalogue."""
    catalogue = _catalogue(code)
    return message if catalogue is None else catalogue.gettext(message)


def ngettext(one: str, many: str, count: int, /, **values: Any) -> str:
    """`one` or `many` by the language's rule for `count`, which is also a value: `{count:,} row`, `{count:,} rows`."""
    english = one if count == 1 else many
    catalogue = _catalogue(spoken())
    text = english if catalogue is None else catalogue.ngettext(one, many, count)
    return _filled(english, text, {"count": count} | values)


def N_(message: str, /, **values: Any) -> str:
    """An English text for a record, or a constant: `retold` says it in the spoken language where it is shown."""
    return message.format_map(in_english(values)) if values else message


def number(value: float, specification: str) -> str:
    """A number as the language writes it: `number(4087, ",")` is 4,087 or 4.087."""
    english = format(value, specification)
    return english if spoken() == "en" else Message(_localised(value, specification), english)


def spelled(figures: str) -> str:
    """Figures that were formatted in English, with the language's comma and point."""
    return figures if spoken() == "en" else Message(figures.translate(COMMA_AND_POINT), figures)


def joined(separator: str, parts: Iterable[str]) -> str:
    """`separator.join(parts)` that keeps the English of messages."""
    found = list(parts)
    text = separator.join(found)
    if not any(isinstance(part, Message) for part in found):
        return text
    return Message(text, separator.join(in_english(part) for part in found))


def in_english(value: Any) -> Any:
    """`value` with each message in it, at any depth of dicts, lists and tuples, in English: what files hold.

    Of an exception, its message.
    """
    if spoken() == "en":
        return value
    if isinstance(value, Message):
        return value.english
    if isinstance(value, BaseException):
        return in_english(str(value))
    if isinstance(value, dict):
        return {in_english(key): in_english(item) for key, item in value.items()}
    if type(value) in (list, tuple):
        return type(value)(in_english(item) for item in value)
    return value


def _filled(english: str, text: str, values: dict[str, Any]) -> str:
    if spoken() == "en":
        return english.format_map(values) if values else english
    if not values:
        return Message(text, english)
    plain = {name: in_english(value) for name, value in values.items()}
    return Message(_SPOKEN_NUMBERS.vformat(text, (), values), english.format_map(plain))


class _SpokenNumbers(Formatter):
    def format_field(self, value: Any, format_spec: str) -> str:
        return _localised(value, format_spec) if isinstance(value, int | float) else format(value, format_spec)


_SPOKEN_NUMBERS = _SpokenNumbers()


def _localised(value: float, specification: str) -> str:
    return format(value, specification).translate(COMMA_AND_POINT)


@lru_cache(maxsize=len(LOCALES))
def _catalogue(code: str) -> gettext.NullTranslations | None:
    if code not in LOCALES:
        return None
    return gettext.translation(DOMAIN, FOLDER, languages=[LOCALES[code]])
