"""How much a run has to compute: tokens, and the rows that they come in. Exact with the model's tokenizer, else by a known ratio."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from noesis.constitution.conversation import Encoded, answer_text, opening
from noesis.constitution.document import Constitution
from noesis.train.shapes import TokenRatio

SAMPLED_STEPS = 64  # steps that are packed on trial


@dataclass(frozen=True)
class Work:
    """The rows of one epoch.

    lengths: tokens of each row; trained: how many of all of them carry loss
    plus_minus: relative error of the counts; 0 where the model's tokenizer counted them
    """

    lengths: tuple[int, ...]
    trained: int
    plus_minus: float = 0.0

    @cached_property
    def tokens(self) -> int:
        return sum(self.lengths)

    @cached_property
    def longest(self) -> int:
        return max(self.lengths)

    def padded(self, together: int) -> float:
        """Tokens of an epoch computed when `together` rows at random are padded to the longest of them."""
        n = len(self.lengths)
        return sum(
            n * length * ((i / n) ** together - ((i - 1) / n) ** together)
            for i, length in enumerate(sorted(self.lengths), 1)
        )

    def packed_rows(self, pack_length: int, sequences: int) -> float:
        """Rows of `pack_length` tokens that a step of `sequences` sequences fills on average, packed first-fit-decreasing."""
        rows, steps = 0, 0
        order = random.Random(0)  # noqa: S311  (a sample, not a secret)
        shuffled = list(self.lengths)
        while steps < SAMPLED_STEPS:
            order.shuffle(shuffled)
            for start in range(0, len(shuffled) - sequences + 1, sequences) or range(1):
                rows += len(first_fit(shuffled[start : start + sequences], pack_length))
                steps += 1
                if steps == SAMPLED_STEPS:
                    break
        return rows / steps

    def step_tokens(self, sequences: int) -> int:
        """Tokens of the heaviest step that can be drawn."""
        return sum(sorted(self.lengths)[-sequences:])


def first_fit(lengths: Sequence[int], pack_length: int) -> list[int]:
    """Tokens of each row after first-fit-decreasing packing of sequences of these lengths."""
    rows: list[int] = []
    for length in sorted(lengths, reverse=True):
        place = next((i for i, used in enumerate(rows) if used + length <= pack_length), None)
        if place is None:
            rows.append(length)
        else:
            rows[place] += length
    return rows


def count(rows: Sequence[Encoded]) -> Work:
    """The exact work of token rows."""
    return Work(tuple(len(row.input_ids) for row in rows), sum(row.trained for row in rows))


def estimate(
    records: list[dict[str, Any]], constitution: Constitution, ratio: TokenRatio, *, include_critique: bool
) -> Work:
    """The work of examples whose model's tokenizer is not here: from their bytes."""
    lengths, trained = [], 0
    for record in records:
        per_byte = ratio.en if record.get("language", "pt") == "en" else ratio.pt
        answer = round(len(answer_text(record, include_critique=include_critique).encode()) * per_byte)
        prompt = sum(len(message["content"].encode()) for message in opening(constitution, record))
        lengths.append(round(prompt * per_byte) + ratio.frame + answer)
        trained += answer + 1
    return Work(tuple(lengths), trained, ratio.plus_minus)
