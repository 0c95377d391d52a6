"""The baseline for a judge that was trained on planted pairs: a bag of words trained on the same ones.

It understands nothing, and still it learns the stock of sentences that the rules plant, and enough of how bad answers
sound to be right on most of the benchmark. A trained judge that does no better has learnt no more.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence

import numpy as np

LEAST = 5  # pairs in which a word must tell the answers apart to count
STEPS, RATE, L2 = 300, 1.0, 1e-3

TextPair = tuple[str, str]  # (better, worse)


class BagOfWords:
    """Logistic regression on which words only the better and which only the worse answer has."""

    def __init__(self, pairs: Sequence[TextPair]) -> None:
        counts = Counter(word for better, worse in pairs for word in _words(better) ^ _words(worse))
        self.columns = {word: i for i, word in enumerate(w for w, count in counts.items() if count >= LEAST)}
        self.weights = np.zeros(len(self.columns))
        features = self._features(pairs)
        for _ in range(STEPS):
            wrong = 1 / (1 + np.exp(features @ self.weights))
            self.weights += RATE * (features.T @ wrong / len(features) - L2 * self.weights)

    def accuracy(self, pairs: Sequence[TextPair]) -> float:
        """The share in which the better answer scores above the worse; a tie is not right."""
        return float((self._features(pairs) @ self.weights > 1e-9).mean())

    def _features(self, pairs: Sequence[TextPair]) -> np.ndarray:
        """(pairs, words) 1 where only the better answer has the word, -1 where only the worse has it."""
        table = np.zeros((len(pairs), len(self.columns)))
        for row, (better, worse) in zip(table, pairs, strict=True):
            for sign, words in ((1, _words(better) - _words(worse)), (-1, _words(worse) - _words(better))):
                row[[self.columns[word] for word in words if word in self.columns]] = sign
        return table


def _words(text: str) -> set[str]:
    return set(re.findall(r"\w+", text.lower()))
