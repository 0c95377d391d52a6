"""Hide the analysis block of an answer while it streams: `[ANÁLISE INTERNA] … [FIM DA ANÁLISE]` may be split anywhere.

What can't be decided yet (the beginning of a mark, white space that may turn out to precede one) is withheld until it
can. A block that never closes hides the rest of the answer. Small models misspell the marks, so case and accents are
ignored.
"""

from __future__ import annotations

import unicodedata
from collections import deque
from collections.abc import Iterable
from typing import Any

from noesis.constitution.dialogue import ANALYSIS_CLOSE, ANALYSIS_OPEN


def _fold(text: str) -> tuple[str, list[int]]:
    """`text` in capitals without accents, and the index in `text` that each of its characters came from."""
    folded, indices = [], []
    for index, char in enumerate(text):
        for c in unicodedata.normalize("NFD", char):
            if not unicodedata.combining(c):
                for upper in c.upper():
                    folded.append(upper)
                    indices.append(index)
    return "".join(folded), indices


OPEN, CLOSE = _fold(ANALYSIS_OPEN)[0], _fold(ANALYSIS_CLOSE)[0]


def _find(text: str, mark: str) -> tuple[int, int | None]:
    """Where `mark` (folded) begins and ends in `text`.

    The end is None if `text` stops inside the mark; the result is (len(text), None) if there is no mark.
    """
    folded, indices = _fold(text)
    at = folded.find(mark)
    if at >= 0:
        return indices[at], indices[at + len(mark) - 1] + 1
    for size in range(min(len(mark) - 1, len(folded)), 0, -1):
        if mark.startswith(folded[-size:]):
            return indices[len(folded) - size], None
    return len(text), None


def ends_inside_analysis(text: str) -> bool:
    """Whether `text` (the beginning of an answer that the model is to continue) ends inside an analysis block."""
    probe = AnalysisFilter()
    probe.feed(text)
    return probe.inside


class AnalysisFilter:
    """Returns the visible part of an answer that is fed to it in pieces; `finish` returns the rest.

    However the answer is split, the visible parts add up to the same text: the answer without its analysis blocks and
    without white space at either end.
    """

    def __init__(self, *, inside: bool = False) -> None:
        """Args:
        inside: the answer begins inside a block (which the client began).
        """
        self.inside = inside
        self.decided = 0  # bytes of the answer that were shown or hidden
        self.hidden: list[tuple[int, int]] = []  # byte ranges of the blocks, marks included
        self._pending = ""
        self._space = ""  # white space that is withheld
        self._any_shown = False

    def feed(self, piece: str) -> str:
        """What can be shown now that `piece` has arrived."""
        self._pending += piece
        visible: list[str] = []
        while True:
            begin, end = _find(self._pending, CLOSE if self.inside else OPEN)
            self._decide(begin, visible)
            if end is None:
                return "".join(visible)
            mark, self._pending = self._pending[: end - begin], self._pending[end - begin :]
            self._hide(len(mark.encode()))
            self.inside = not self.inside

    def finish(self) -> str:
        """What is left to show at the end: the beginning of a mark that did not become one."""
        visible: list[str] = []
        self._decide(len(self._pending), visible)
        return "".join(visible)

    def _decide(self, count: int, visible: list[str]) -> None:
        """Show or hide the first `count` pending characters."""
        text, self._pending = self._pending[:count], self._pending[count:]
        if self.inside:
            self._hide(len(text.encode()))
            return
        self.decided += len(text.encode())
        if shown := text.rstrip() if self._any_shown else text.strip():
            visible += [self._space if self._any_shown else "", shown]
            self._any_shown, self._space = True, ""
        self._space += text[len(text.rstrip()) :]

    def _hide(self, count: int) -> None:
        """Hide the next `count` bytes."""
        if count:
            self.hidden.append((self.decided, self.decided + count))
            self.decided += count


class TokenFilter:
    """Passes on the `logprobs.content` entries (one per token, with its `bytes`) that an AnalysisFilter shows."""

    def __init__(self, text: AnalysisFilter) -> None:
        self._text = text
        self._waiting: deque[tuple[int, int, dict[str, Any]]] = deque()
        self._received = 0  # bytes

    def feed(self, entries: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
        """The entries that can be shown now. Feed the text to the AnalysisFilter first."""
        for entry in entries:
            if size := len(entry.get("bytes") or ()):  # none: the token that ends the turn
                self._waiting.append((self._received, self._received + size, entry))
                self._received += size
        ready = []
        while self._waiting and self._waiting[0][1] <= self._text.decided:
            first, last, entry = self._waiting.popleft()
            if not any(begin < last and first < end for begin, end in self._text.hidden):
                ready.append(entry)
        return ready
