"""Finds each judge in the critique of a tribunal example, however a person writes it.

The usual form is a paragraph headed `[VERITAS]`. People also write `[VERITAS - 40%]`, `**Veritas (40%)**:`, `Dikē:`, or
begin a sentence with the name. A judge who is only named in the middle of another's sentence is not there.
"""

from __future__ import annotations

import re
import unicodedata
from typing import NamedTuple

# As they read without case and accents: Dikē, Dikê, Δίκη; Sofia is Portuguese.
SPELLINGS = {"VERITAS": "veritas", "SOPHIA": "sophia|sofia|σοφια", "DIKE": "dike|δικη"}
_ANY = "|".join(SPELLINGS.values())
_START = r"(?:^|[.!?…;:|)\]*>]\s)[^\w\n]{0,9}"  # of a line or a sentence, with bullets, #, ** and quotation marks
_NUMBER = r"(?:\d{1,2}[.)]\s?[^\w\n]{0,8})?"
_TITLE = (  # "Já quanto à", "Do ponto de vista de", "According to the judge"; without accents
    r"(?:(?:e|and|mas|but|ja|now)\s)?"
    r"(?:(?:pel[ao]|por|para|for|by|under|in|segundo|conforme|quanto|de acordo com|d[oe] ponto de vista d[aeo]"
    r"|n[ao] (?:visao|otica|leitura) d[aeo]|according to|as for|from the (?:standpoint|viewpoint|point of view) of)\s)?"
    r"(?:(?:o|a|ao|the)\s)?(?:(?:juiza?|judge|voz d[aeo]|parecer d[aeo])\s)?[^\w\n]{0,4}"
)
_OTHERS = rf"(?:(?:{_ANY})(?:,\s|\se\s|\sand\s)){{0,2}}"  # Veritas and Sophia agree


class Judges(NamedTuple):
    """Of the judges, by their names in capital letters: who is absent, and who is named in an unusual form."""

    absent: tuple[str, ...]
    unusual: tuple[str, ...]


def find_judges(critique: str) -> Judges:
    """The judges who are absent from `critique`, or there in another form than `[VERITAS]`."""
    unlike = [judge for judge in SPELLINGS if f"[{judge}]" not in critique]
    text = _plain(critique) if unlike else ""
    absent = tuple(judge for judge in unlike if not _PATTERNS[judge].search(text))
    return Judges(absent, tuple(judge for judge in unlike if judge not in absent))


def _plain(text: str) -> str:
    """`text` without accents and case."""
    decomposed = unicodedata.normalize("NFKD", text)
    return "".join(c for c in decomposed if not unicodedata.combining(c)).casefold()


def _pattern(names: str) -> re.Pattern[str]:
    bracketed = rf"[\[【<][^\w\n]{{0,4}}{_TITLE}\b(?:{names})\b[^\]】>\n]{{0,40}}[\]】>]"
    opening = rf"{_START}{_NUMBER}{_TITLE}{_OTHERS}\b(?:{names})\b"
    label = rf"\((?:{names})\)\s?:"  # A verdade (Veritas): …
    return re.compile(f"{bracketed}|{opening}|{label}", re.MULTILINE)


_PATTERNS = {judge: _pattern(names) for judge, names in SPELLINGS.items()}
