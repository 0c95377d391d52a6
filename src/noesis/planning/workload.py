"""How much a run computes: the lengths of its token rows, counted with the model's tokenizer or estimated."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

from noesis.core.i18n import _

SAMPLED_STEPS = 64  # steps that are packed to estimate how many rows a step fills


@dataclass(frozen=True)
class Workload:
    """The rows of one epoch.

    lengths: tokens of each row
    trained: tokens of all rows that carry loss
    relative_error: of the counts; 0: counted with the model's own tokenizer
    anchored: tokens of the rows at which the model is held to the base, which reads them, too
    own_answers: rows whose answer the base has still to write
    sampled: rows whose answer the model writes anew in every epoch
    """

    lengths: tuple[int, ...]
    trained: int
    relative_error: float = 0.0
    anchored: int = 0
    own_answers: int = 0
    sampled: int = 0

    @cached_property
    def tokens(self) -> int:
        return sum(self.lengths)

    @cached_property
    def longest(self) -> int:
        return max(self.lengths)

    def padded(self, batch: int) -> float:
        """Expected tokens of an epoch when `batch` random rows at a time are padded to the longest of them."""
        n = len(self.lengths)
        return sum(
            n * length * ((i / n) ** batch - ((i - 1) / n) ** batch) for i, length in enumerate(sorted(self.lengths), 1)
        )

    def packed_rows(self, pack_length: int, sequences: int) -> float:
        """Average number of rows of `pack_length` tokens that a step of `sequences` sequences fills."""
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
        """Tokens of the largest step of `sequences` sequences."""
        return sum(sorted(self.lengths)[-sequences:])


@dataclass(frozen=True)
class PairWorkload(Workload):
    """The pairs of one epoch of preference training. A pair counts as one row: both answers are computed together.

    held_out_tokens: tokens of the pairs that are evaluated and never trained on
    """

    held_out_tokens: int = 0


@dataclass(frozen=True)
class Workloads:
    """What a run's method computes; at least one of the two.

    sft: of supervised training; None: the method has none
    pairs: of preference training; None: the method has none

    Raises:
        ValueError: both are None.
    """

    sft: Workload | None = None
    pairs: PairWorkload | None = None

    def __post_init__(self) -> None:
        if self.sft is None and self.pairs is None:
            raise ValueError(_("a method trains on rows, on pairs or on both; neither was given"))

    @property
    def last(self) -> Workload:
        """The workload of the part that leaves the run's adapters."""
        return next(work for work in (self.pairs, self.sft) if work is not None)


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
