"""Which language is spoken: `--lang`, else NOESIS_LANG, else the locale (LC_ALL, LC_MESSAGES, LANG), else English."""

from __future__ import annotations

import os
from collections.abc import Mapping

VARIABLE = "NOESIS_LANG"
SPOKEN = {"en": "English", "pt": "português"}
LOCALES = {"pt": "pt_BR"}  # where the catalogue lies; English needs none

_spoken: str | None = None


def preferred(environment: Mapping[str, str]) -> str:
    """The language that the environment asks for: the first variable that is set decides.

    A value is a locale (`pt_BR.UTF-8`, `C`) or a code (`pt`, `pt-BR`); whatever it names that is not spoken is English.
    """
    for name in (VARIABLE, "LC_ALL", "LC_MESSAGES", "LANG"):
        if value := environment.get(name):
            code = value[:2].lower()
            return code if code in SPOKEN and not value[2:3].isalpha() else "en"
    return "en"


def speak(code: str) -> None:
    """Speak this language (`pt` or `en`) from now on, in the processes that this one starts too.

    LANGUAGE is what the standard library's gettext asks, and so typer's own words.
    """
    global _spoken
    os.environ[VARIABLE] = _spoken = code
    os.environ["LANGUAGE"] = LOCALES.get(code, code)


def spoken() -> str:
    """The code of the language that is spoken; the environment is asked once."""
    global _spoken
    if _spoken is None:
        _spoken = preferred(os.environ)
    return _spoken
