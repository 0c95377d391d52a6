"""Languages: their codes, texts in several of them, and which one a text is in."""

from __future__ import annotations

from noesis.core.language.by_language import TEXTS, ByLanguage
from noesis.core.language.codes import ALL, CODES, NAMES, Language, LanguageCode
from noesis.core.language.detection import detect, missing_accents, other_language

__all__ = [
    "ALL",
    "CODES",
    "NAMES",
    "TEXTS",
    "ByLanguage",
    "Language",
    "LanguageCode",
    "detect",
    "missing_accents",
    "other_language",
]
