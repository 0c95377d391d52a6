"""How much a run has to compute: tokens, and the rows that they come in. Exact with the model's tokenizer, else by a known ratio."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

SAMPLED_STEPS = 64  # steps that are packed on trial


@dataclass(frozen=True)
class Workload:
    """The rows of one epoch.

    lengths: tokens of each row; trained: how many of all of them carry loss
    plus_minus: relative error of the counts; 0 where the model's tokenizer counted them
    """

    lengths: tuple[int, ...]
    trained: int
    relative_error: float = 0.0

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


@dataclass(frozen=True)
class Workloads:
    """What a run's method has to compute.

    sft: of supervised training; pairs: of preference training, a pair counting as one sequence; None: the method has no such part
    held_out_tokens: of the pairs that are measured and never trained on
    """

    sft: Workload | None = None
    pairs: Workload | None = None
    held_out_tokens: int = 0

    @property
    def last(self) -> Workload:
        """Of the part that leaves the run's adapters."""
        found = self.pairs or self.sft
        assert found is not None
        return found


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
