"""What Noesis says to a person, in their language: gettext catalogues, and numbers as the language writes them."""

from __future__ import annotations

from noesis.core.i18n.catalogue import N_, Message, _, in_english, joined, ngettext, number, spelled, translated
from noesis.core.i18n.retell import retold
from noesis.core.i18n.speech import SPOKEN, VARIABLE, speak, spoken

__all__ = [
    "N_",
    "SPOKEN",
    "VARIABLE",
    "Message",
    "_",
    "in_english",
    "joined",
    "ngettext",
    "number",
    "retold",
    "speak",
    "spelled",
    "spoken",
    "translated",
]
