"""Finds characters that a reader can't see, by Unicode's own tables (the library `regex`); what scripts need is text.

Text are: joiners inside emoji (families, professions) and in the scripts that are written with them (Persian, Hindi),
the variation selector after a character that has variants, the tags of a flag, marks of direction where letters run
from right to left, and line breaks of every kind. Hidden are: joiners between Latin letters, zero-width spaces,
overrides of direction, control characters, private use.
"""

from __future__ import annotations

import re
import unicodedata

import regex

LINE_BREAKS = "\n\x0b\x0c\r\x85\u2028\u2029"
_HIDDEN = r"[\p{Cc}\p{Cf}\p{Co}\p{Cs}\p{Zl}\p{Zp}\p{Default_Ignorable_Code_Point}]"
INVISIBLE = regex.compile(rf"[{_HIDDEN}--[\t{LINE_BREAKS}]]", regex.V1)
_UNUSUAL_BREAK = re.compile("[\x0b\x0c\x85\u2028\u2029]|\r(?!\n)")
_EMOJI = r"\p{Extended_Pictographic}[\p{Emoji_Modifier}\uFE0F]?"
_JOINING = (  # letters of scripts whose shapes a joiner changes, and the marks on them
    r"[[\p{Joining_Type=Dual_Joining}\p{Joining_Type=Right_Joining}\p{Joining_Type=Left_Joining}"
    r"\p{Indic_Syllabic_Category=Consonant}\p{Indic_Syllabic_Category=Virama}\p{Indic_Syllabic_Category=Pure_Killer}"
    r"\p{Indic_Syllabic_Category=Invisible_Stacker}\p{Indic_Syllabic_Category=Vowel_Dependent}"
    r"\p{Indic_Syllabic_Category=Vowel_Independent}\p{Indic_Syllabic_Category=Nukta}\p{Indic_Syllabic_Category=Bindu}"
    r"[\p{Mn}&&\p{Script_Extensions=Arabic}]]--[\p{Latin}\p{Common}]]"
)
_TEXT = regex.compile(
    rf"{_EMOJI}(?:\u200D{_EMOJI}){{1,9}}"
    r"|\U0001F3F4[\U000E0030-\U000E0039\U000E0061-\U000E007A]{3,6}\U000E007F"  # flags of England, Scotland, Wales
    rf"|(?<={_JOINING})\p{{Join_Control}}(?!\p{{Join_Control}})"
    rf"|(?<!\p{{Join_Control}})\p{{Join_Control}}(?={_JOINING})"
    r"|(?<=[\p{Emoji}\p{S}\p{P}\p{Han}\p{Myanmar}\p{Mongolian}\p{Phags_Pa}])\p{Variation_Selector}"
    r"|\p{Prepended_Concatenation_Mark}",  # these can be seen: Arabic signs of years and verses
    regex.V1,
)
_MARKS_OF_DIRECTION = regex.compile(r"[\u200E\u200F\u061C]")
_RIGHT_TO_LEFT = regex.compile(r"[\p{Bidi_Class=R}\p{Bidi_Class=AL}--\u200F]", regex.V1)


def invisible(text: str) -> str | None:
    """The name of the first hidden character in `text`; None if there is none."""
    if _is_western(text) and text.replace("\n", "").replace("\t", "").isprintable():
        return None  # ten times as fast, and true of most texts
    if not INVISIBLE.search(text):
        return None
    if _RIGHT_TO_LEFT.search(text):
        text = _MARKS_OF_DIRECTION.sub("", text)
    match = INVISIBLE.search(_TEXT.sub(" ", text))
    return unicodedata.name(match.group(), f"U+{ord(match.group()):04X}") if match else None


def unusual_break(text: str) -> str | None:
    """The name of the first line break in `text` that is no newline, such as U+2028; None if there is none."""
    match = _UNUSUAL_BREAK.search(text)
    return unicodedata.name(match.group(), f"U+{ord(match.group()):04X}") if match else None


def _is_western(text: str) -> bool:
    """Whether all characters are in Windows-1252: letters of Western Europe, and dashes and quotation marks."""
    try:
        text.encode("cp1252")
    except UnicodeEncodeError:
        return False
    return True
