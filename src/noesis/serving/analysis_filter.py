"""Hiding the analysis block of an answer while it streams: `[ANÁLISE INTERNA] … [FIM DA ANÁLISE]` may be cut anywhere.

What can't be told yet (the beginning of a mark, white space that may turn out to stand before one) is held back until it can. A block
that never closes hides the rest of the answer. Small models misspell the marks: case and accents do not count.
"""

from __future__ import annotations

import unicodedata
from collections import deque
from collections.abc import Iterable
from typing import Any

from noesis.constitution.dialogue import ANALYSIS_CLOSE, ANALYSIS_OPEN


def _folded(text: str) -> tuple[str, list[int]]:
    """`text` in capitals without accents, and for each of its characters the place in `text` that it came from."""
    out, places = [], []
    for place, char in enumerate(text):
        for c in unicodedata.normalize("NFD", char):
            if not unicodedata.combining(c):
                for upper in c.upper():
                    out.append(upper)
                    places.append(place)
    return "".join(out), places


OPEN, CLOSE = _folded(ANALYSIS_OPEN)[0], _folded(ANALYSIS_CLOSE)[0]


def _find(text: str, mark: str) -> tuple[int, int | None]:
    """Where `mark` (folded) begins in `text` and where it ends; the end is None if `text` stops within it; (len(text), None) if it is not there."""
    folded, places = _folded(text)
    at = folded.find(mark)
    if at >= 0:
        last = at + len(mark) - 1
        return places[at], places[last] + 1
    for size in range(min(len(mark) - 1, len(folded)), 0, -1):
        if mark.startswith(folded[-size:]):
            return places[len(folded) - size], None
    return len(text), None


def ends_inside_analysis(text: str) -> bool:
    """Whether `text` (an answer that the model is to go on with) ends inside an analysis block."""
    probe = AnalysisFilter()
    probe.feed(text)
    return probe.inside


class AnalysisFilter:
    """What of an answer may be shown: feed it the pieces, show what it returns, and at the end what `finish` returns.

    However the pieces are cut, the sum is the same: the answer without its blocks and without white space around it.
    """

    def __init__(self, *, inside: bool = False) -> None:
        """`inside`: the answer begins within a block (the client began it)."""
        self.inside = inside
        self.read = 0  # bytes of the answer that were decided upon
        self.hidden: list[tuple[int, int]] = []  # bytes of the answer that belong to blocks, their marks included
        self._pending = ""
        self._space = ""  # white space that is held back
        self._shown = False

    def feed(self, piece: str) -> str:
        """What may be shown now that `piece` came."""
        self._pending += piece
        out: list[str] = []
        while True:
            begin, end = _find(self._pending, CLOSE if self.inside else OPEN)
            self._decide(begin, out)
            if end is None:
                return "".join(out)
            mark, self._pending = self._pending[: end - begin], self._pending[end - begin :]
            self._hide(len(mark.encode()))
            self.inside = not self.inside

    def finish(self) -> str:
        """What is left to show at the end: the beginning of a mark that did not become one."""
        out: list[str] = []
        self._decide(len(self._pending), out)
        return "".join(out)

    def _decide(self, count: int, out: list[str]) -> None:
        """Show or hide the first `count` characters of what is pending."""
        text, self._pending = self._pending[:count], self._pending[count:]
        if self.inside:
            self._hide(len(text.encode()))
            return
        self.read += len(text.encode())
        if visible := text.strip() if not self._shown else text.rstrip():
            out += [self._space if self._shown else "", visible]
            self._shown, self._space = True, ""
        self._space += text[len(text.rstrip()) :]

    def _hide(self, count: int) -> None:
        """The next `count` bytes belong to a block."""
        if count:
            self.hidden.append((self.read, self.read + count))
            self.read += count


class TokenFilter:
    """The `logprobs.content` entries of which no byte was hidden by an AnalysisFilter; entries hold the `bytes` of a token."""

    def __init__(self, text: AnalysisFilter) -> None:
        self._text = text
        self._waiting: deque[tuple[int, int, dict[str, Any]]] = deque()
        self._at = 0

    def feed(self, entries: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
        """Entries that may be shown now. Feed the text first."""
        for entry in entries:
            if size := len(entry.get("bytes") or ()):  # none: the token that ends the turn
                self._waiting.append((self._at, self._at + size, entry))
                self._at += size
        ready = []
        while self._waiting and self._waiting[0][1] <= self._text.read:
            first, last, entry = self._waiting.popleft()
            if not any(begin < last and first < end for begin, end in self._text.hidden):
                ready.append(entry)
        return ready
