"""Finds characters that a reader can't see, by Unicode's own tables (the library `regex`); what scripts need is text.

Text are: joiners inside emoji (families, professions) and in the scripts that are written with them (Persian, Hindi),
the variation selector after a character that has variants, the tags of a flag, marks of direction where letters run
from right to left, in pairs where they need two, spaces of zero width in scripts without spaces (Thai, Khmer), and line
breaks of every kind.

`invisible` finds what is refused: joiners between Latin letters, other spaces of zero width, overrides of direction,
control characters, private use, the blank of Braille beside other letters, and any two that stand together.

`stray` finds what is warned of, for PDF files, web pages and word processors leave it behind: a soft hyphen, a word
joiner or a byte order mark that stands alone, and the emoji's variation selector after another symbol.
"""

from __future__ import annotations

import re
import unicodedata

import regex

from noesis.core.i18n import _

LINE_BREAKS = "\n\x0b\x0c\r\x85\u2028\u2029"
_HIDDEN = r"[\p{Cc}\p{Cf}\p{Co}\p{Cs}\p{Zl}\p{Zp}\p{Default_Ignorable_Code_Point}]"
_NOT_SEEN = rf"[[{_HIDDEN}--[\t{LINE_BREAKS}]]\u2800]"
INVISIBLE = regex.compile(_NOT_SEEN, regex.V1)
_STRAY = regex.compile(
    rf"(?<!{_NOT_SEEN})(?:[\u00AD\u2060\uFEFF]|(?<=[\p{{S}}--\p{{Emoji}}])[\uFE0E\uFE0F])(?!{_NOT_SEEN})", regex.V1
)
_UNUSUAL_BREAK = re.compile("[\x0b\x0c\x85\u2028\u2029]|\r(?!\n)")
_EMOJI = r"\p{Extended_Pictographic}[\p{Emoji_Modifier}\uFE0F]?"
_FLAGS = "|".join("".join(chr(0xE0000 + ord(c)) for c in code) for code in ("gbeng", "gbsct", "gbwls"))  # all there are
_JOINING = (  # letters of scripts whose shapes a joiner changes, and the marks on them
    r"[[\p{Joining_Type=Dual_Joining}\p{Joining_Type=Right_Joining}\p{Joining_Type=Left_Joining}"
    r"\p{Indic_Syllabic_Category=Consonant}\p{Indic_Syllabic_Category=Virama}\p{Indic_Syllabic_Category=Pure_Killer}"
    r"\p{Indic_Syllabic_Category=Invisible_Stacker}\p{Indic_Syllabic_Category=Vowel_Dependent}"
    r"\p{Indic_Syllabic_Category=Vowel_Independent}\p{Indic_Syllabic_Category=Nukta}\p{Indic_Syllabic_Category=Bindu}"
    r"[\p{Mn}&&\p{Script_Extensions=Arabic}]]--[\p{Latin}\p{Common}]]"
)
_TEXT = regex.compile(
    rf"{_EMOJI}(?:\u200D{_EMOJI}){{1,9}}"
    rf"|\U0001F3F4(?:{_FLAGS})\U000E007F"
    rf"|(?<={_JOINING})\p{{Join_Control}}(?!\p{{Join_Control}})"
    rf"|(?<!\p{{Join_Control}})\p{{Join_Control}}(?={_JOINING})"
    r"|(?<=\p{Emoji})[\uFE0E\uFE0F]|(?<=\p{Mongolian})[\u180B-\u180D\u180F]"  # as in Unicode's lists of variants
    r"|(?<=[\p{Sm}0\p{Myanmar}\p{Phags_Pa}])\uFE00|(?<=[、。，．！：；？])[\uFE00\uFE01]"
    r"|(?<=\p{Han})[\uFE00-\uFE02\U000E0100-\U000E01EF]"
    r"|(?<=\p{Line_Break=Complex_Context})\u200B(?=\p{Line_Break=Complex_Context})"
    r"|(?<=[\u2801-\u28FF]\u2800{0,9})\u2800|\u2800(?=\u2800{0,9}[\u2801-\u28FF])"
    r"|\p{Prepended_Concatenation_Mark}",  # these can be seen: Arabic signs of years and verses
    regex.V1,
)
_MARKS_OF_DIRECTION = regex.compile(r"[\u200E\u200F\u061C]")
_RIGHT_TO_LEFT = regex.compile(r"[\p{Bidi_Class=R}\p{Bidi_Class=AL}--\u200F]", regex.V1)
_PAIR = regex.compile(  # isolates and embeddings with their ends, in a paragraph
    r"([\u2066-\u2068])([^\u2066-\u2069\n\u2029]*)\u2069|([\u202A\u202B])([^\u202A-\u202E\n\u2029]*)\u202C"
)


def invisible(text: str) -> str | None:
    """The name of the first hidden character in `text` that must not be there, and its place; None if there is none."""
    if _is_plain(text) or not INVISIBLE.search(text):
        return None
    if _RIGHT_TO_LEFT.search(text):
        text = "\n".join(map(_directed, text.split("\n")))
    text = _TEXT.sub(" ", _STRAY.sub("", text))
    match = INVISIBLE.search(text)
    return _named(text, match) if match else None


def stray(text: str) -> str | None:
    """The name and the place of the first character in `text` that some program left behind; None if there is none."""
    match = None if _is_plain(text) else _STRAY.search(text)
    return _named(text, match) if match else None


def _named(text: str, match: regex.Match[str] | re.Match[str]) -> str:
    """The name of a character, and what is before it (no more, for it may be private)."""
    before = text[max(0, match.start() - 10) : match.start()]
    place = _("after {before!r}", before=before) if before else _("at the beginning")
    return f"{unicodedata.name(match.group(), f'U+{ord(match.group()):04X}')}, {place}"


def _directed(line: str) -> str:
    """A line without the marks of direction that it needs: a line from left to right needs none."""
    if not _RIGHT_TO_LEFT.search(line):
        return line
    line = _MARKS_OF_DIRECTION.sub("", line)
    for _time in range(2):  # a pair may be inside another
        line = _PAIR.sub(_without_marks, line)
    return line


def _without_marks(pair: regex.Match[str]) -> str:
    """What a pair of marks encloses, if it runs from right to left or is a name within what does; else all of it."""
    inside: str = pair[2] if pair[1] else pair[4]
    around = pair.string[max(0, pair.start() - 100) : pair.start()] + pair.string[pair.end() : pair.end() + 100]
    within = pair[0][0] not in "\u2067\u202b" and _RIGHT_TO_LEFT.search(around)
    return inside if within or _RIGHT_TO_LEFT.search(inside) else pair[0]


def unusual_break(text: str) -> str | None:
    """The name of the first line break in `text` that is no newline, such as U+2028; None if there is none."""
    match = _UNUSUAL_BREAK.search(text)
    return unicodedata.name(match.group(), f"U+{ord(match.group()):04X}") if match else None


def _is_plain(text: str) -> bool:
    """Whether all characters can be seen and are in Windows-1252; ten times as fast as a search, true of most texts."""
    try:
        text.encode("cp1252")
    except UnicodeEncodeError:
        return False
    return text.replace("\n", "").replace("\t", "").isprintable()
