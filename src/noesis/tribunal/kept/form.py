"""Length and repetition of answers: a tuned model that rambles or goes in circles shows here."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

RUN = 4  # words of a run that is looked for again in the same answer


@dataclass(frozen=True)
class Form:
    """Of some answers. words: mean number of words; repeated: share of runs of four words that stood before, 0..1."""

    answers: int
    words: float
    repeated: float


def form_of(answers: Sequence[str]) -> Form:
    """The figures of some answers; zeros of none."""
    texts = [re.findall(r"\w+", answer.lower()) for answer in answers]
    runs = [[tuple(words[i : i + RUN]) for i in range(len(words) - RUN + 1)] for words in texts]
    total, distinct = sum(map(len, runs)), sum(len(set(found)) for found in runs)
    return Form(
        len(answers),
        round(sum(map(len, texts)) / len(texts), 1) if texts else 0.0,
        round(1 - distinct / total, 4) if total else 0.0,
    )
