"""The analysis block of an answer as it is served: where a client's beginning leaves it, and its log-probabilities."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from typing import Any

from noesis.constitution.analysis_block import AnalysisFilter


def ends_inside_analysis(text: str) -> bool:
    """Whether `text` (the beginning of an answer that the model is to continue) ends inside an analysis block."""
    probe = AnalysisFilter()
    probe.feed(text)
    return probe.inside


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
