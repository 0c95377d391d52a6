"""The analysis block of an answer, `[ANÁLISE INTERNA] … [FIM DA ANÁLISE]`, and the one way to hide it.

Models misspell the marks: case, accents, white space, punctuation, symbols, invisible and combined characters don't
count, letters and brackets count as what they look like, and the English words do. Markdown around a mark goes with it.
What can't be decided yet (the beginning of a mark, white space and Markdown that may turn out to precede one) is
withheld until it can. A block that never closes hides the rest of the answer. One that never opens hides what stands
before its end, back to the block before; a stream has shown that already, except for what arrives with the mark itself.
"""

from __future__ import annotations

import re
import unicodedata
from functools import lru_cache

ANALYSIS_OPEN = "[ANÁLISE INTERNA]"
ANALYSIS_CLOSE = "[FIM DA ANÁLISE]"
OTHER_OPENINGS = ("[INTERNAL ANALYSIS]",)
OTHER_CLOSINGS = tuple(
    f"[{end} {what}]"
    for end in ("FIM DA", "FIM DE", "FIM", "END OF THE", "END OF", "END", "/")
    for what in ("ANÁLISE INTERNA", "ANÁLISE", "INTERNAL ANALYSIS", "ANALYSIS")
)
BRACKETS = "[［﹇⁅❲⟦⟬⦋⦍⦏【〔〖〘〚"  # all characters that begin a mark; those of NFKC checked by a test
# Markdown before a mark, which belongs to it: a heading, a quotation, an item of a list, emphasis.
_FRAME, LONGEST_FRAME = re.compile(r"(?:[#>-]+[ \t]*)?[*_~`]*"), 16
EMPHASIS = "*_~`"
IGNORED = ("C", "M", "P", "S", "Z")  # Unicode categories: control and format, combining, punctuation, symbol, space
# What looks like the letters of the marks in other scripts (as in Unicode's confusables.txt), and digits for letters.
ALIKE = {
    other: letter
    for letter, others in {
        "[": BRACKETS,
        "]": "]］﹈⁆❳⟧⟭⦌⦎⦐】〕〗〙〛",
        "/": "/⁄∕⟋",
        "A": "АаΑαᎪꓮΛ4",
        "D": "ԀԁᎠꓓ",
        "E": "ЕеΕεЄєᎬꓰΣ3",
        "F": "ҒғϜϝꓝ",
        "H": "НнҺһΗհᎻꓧ",
        "I": "ІіΙιЇїᎥꓲІӀӏ1",
        "L": "ᏞꓡԼլ",
        "M": "МмΜμᎷꓟ",
        "N": "ΝνηИиПпꓠո",
        "O": "ОоΟοσօꓳ0",
        "R": "ЯяГгᎡꓣ",
        "S": "ЅѕՏᏚꓢς5",
        "T": "ТтΤτᎢꓔ",
        "Y": "УуΥυҮүꓬ",
    }.items()
    for other in others
}
_LATIN = re.compile(  # the letter that a Latin one, with whatever is added to it, is named after
    r"(?:LATIN (?:SMALL |CAPITAL )?LETTER (?:SMALL CAPITAL |DOTLESS )?|INDICATOR SYMBOL LETTER )"
    r"([A-Z])(?= WITH |$)"
)


def hide_analysis(text: str) -> str:
    """`text` without its analysis blocks, as it is served; unchanged if it has none."""
    answer = AnalysisFilter()
    visible = answer.feed(text) + answer.finish()
    return visible if answer.hidden else text


@lru_cache(4096)
def _letters(char: str) -> str:
    """What of a character counts in a mark; may be empty. I and l look the same, and are."""
    return "".join(map(_letter, unicodedata.normalize("NFKD", char))).replace("i", "l")


def _letter(char: str) -> str:
    if alike := ALIKE.get(char):
        return alike.casefold()
    if not char.isascii() and (latin := _LATIN.search(unicodedata.name(char, ""))):
        return latin[1].casefold()
    return "" if unicodedata.category(char)[0] in IGNORED else char.casefold()


def _folded(marks: tuple[str, ...]) -> tuple[str, ...]:
    return tuple("".join(map(_letters, mark)) for mark in marks)


def _beginnings(marks: tuple[str, ...]) -> frozenset[str]:
    return frozenset(mark[:end] for mark in marks for end in range(1, len(mark) + 1))


OPENINGS, CLOSINGS = _folded((ANALYSIS_OPEN, *OTHER_OPENINGS)), _folded((ANALYSIS_CLOSE, *OTHER_CLOSINGS))
_BEGINNINGS = {False: _beginnings((*OPENINGS, *CLOSINGS)), True: _beginnings(CLOSINGS)}  # by whether inside


class AnalysisFilter:
    """Returns the visible part of an answer that is fed to it in pieces; `finish` returns the rest.

    However the answer is split, the visible parts add up to the same text: the answer without its analysis blocks and
    without white space at either end. The time is linear in the answer's length.
    """

    def __init__(self, *, inside: bool = False) -> None:
        """Args:
        inside: the answer begins inside a block (which the client began).
        """
        self.inside = inside
        self.decided = 0  # bytes of the answer that were shown or hidden
        self.hidden: list[tuple[int, int]] = []  # byte ranges of the blocks, marks included
        self._pending: list[str] = []  # characters that may be a mark
        self._letters: list[tuple[str, int]] = []  # what counts of them, and which of them it came from
        self._frame = 0  # how many of them are Markdown before a mark
        self._last = ""  # the character before them
        self._owed: str | None = None  # what ends the Markdown of the mark that stands right before; None: none does
        self._open_emphasis = ""  # what the Markdown before the block's beginning has begun, and nothing has ended
        self._space: list[str] = []  # white space that is withheld
        self._any_shown = self._any_returned = False
        self._block_end = 0  # how much of what `feed` has found so far stands before the last block

    def feed(self, piece: str) -> str:
        """What can be shown now that `piece` has arrived."""
        visible: list[str] = []
        self._block_end = 0
        for char in piece:
            if self._ends_markdown(char):
                continue
            self._pending.append(char)
            if not self._letters:
                if self._may_precede_a_mark():
                    self._frame = len(self._pending)
                    continue
                if char not in BRACKETS:
                    self._decide(len(self._pending), visible)
                    continue
            for letter in _letters(char):
                self._letters.append((letter, len(self._pending) - 1))
                if self._mark_ends(visible):
                    break
            if not self._letters:
                self._decide(len(self._pending), visible)
        self._any_returned |= bool(visible)
        return "".join(visible)

    def finish(self) -> str:
        """What is left to show at the end: the beginning of a mark that did not become one."""
        visible: list[str] = []
        self._letters = []
        self._decide(len(self._pending), visible)
        return "".join(visible)

    def _may_precede_a_mark(self) -> bool:
        """Whether what is pending is Markdown at the beginning of a word."""
        begins = self._frame > 0 or (len(self._pending) == 1 and (not self._last or self._last.isspace()))
        return begins and len(self._pending) <= LONGEST_FRAME and bool(_FRAME.fullmatch("".join(self._pending)))

    def _ends_markdown(self, char: str) -> bool:
        """Hide a character right behind a mark that ends the Markdown before it."""
        if self._pending or self._owed is None:
            return False
        if not self._owed or char not in (self._owed[0], ":"):
            self._owed = None
            return False
        if char != ":":
            self._owed = self._open_emphasis = self._owed[1:]
        self._pending.append(char)
        self._hide(1)
        return True

    def _mark_ends(self, visible: list[str]) -> bool:
        """Drop from the front what can't begin a mark; if what is left is one, hide it."""
        while self._letters:
            text, begin = "".join(letter for letter, _ in self._letters), self._letters[0][1]
            if text not in _BEGINNINGS[self.inside]:
                del self._letters[0]
                continue
            if begin != self._frame:
                self._decide(begin, visible)
            if text not in CLOSINGS and (self.inside or text not in OPENINGS):
                return False
            if not self.inside and text in CLOSINGS:
                self._take_back(visible)
            emphasis = "".join(char for char in reversed(self._pending[: self._frame]) if char in EMPHASIS)
            self._open_emphasis = self._owed = emphasis or (self._open_emphasis if self.inside else "")
            self._hide(len(self._pending))
            self.inside, self._letters = text in OPENINGS, []
            self._block_end = len(visible)
            return True
        return False

    def _decide(self, count: int, visible: list[str]) -> None:
        """Show or hide the first `count` pending characters."""
        if not count:
            return
        if self.inside:
            self._hide(count)
            return
        shown = self._pending[:count]
        self._take(count)
        for char in shown:
            if char.isspace():
                if self._any_shown:
                    self._space.append(char)
                continue
            visible += self._space
            visible.append(char)
            self._space, self._any_shown = [], True

    def _take_back(self, visible: list[str]) -> None:
        """Hide what stands between the last block and the end of one that has no beginning, unless it was returned."""
        del visible[self._block_end :]
        self._space, self._any_shown = [], self._any_returned or bool(visible)
        begin = self.hidden[-1][1] if self.hidden else 0
        self.hidden.append((begin, self.decided))

    def _hide(self, count: int) -> None:
        """Hide the first `count` pending characters."""
        begin = self.decided
        self._take(count)
        if self.hidden and self.hidden[-1][1] == begin:
            self.hidden[-1] = (self.hidden[-1][0], self.decided)
        else:
            self.hidden.append((begin, self.decided))

    def _take(self, count: int) -> None:
        self._last, self._frame = self._pending[count - 1], 0
        self.decided += len("".join(self._pending[:count]).encode(errors="surrogatepass"))
        del self._pending[:count]
        self._letters = [(letter, index - count) for letter, index in self._letters]
