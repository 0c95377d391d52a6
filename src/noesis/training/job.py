"""What is trained on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from noesis.llm.token_rows import Encoded, Pair
from noesis.planning.workload import Work, Workloads


@dataclass(frozen=True)
class Preferences:
    """What preference training takes: pairs to train on, and pairs that are held out."""

    train: Sequence[Pair]
    held_out: Sequence[Pair] = ()

    @property
    def tokens(self) -> int:
        """Of one pass over the pairs trained on."""
        return sum(pair.tokens for pair in self.train)

    @property
    def work(self) -> Work:
        """For the planner: a pair counts as one sequence, since both its rows are computed before either can be forgotten."""
        return Work(
            tuple(pair.tokens for pair in self.train),
            sum(pair.chosen.trained + pair.rejected.trained for pair in self.train),
        )


@dataclass(frozen=True)
class Material:
    """The token rows of each part that the method has."""

    rows: list[Encoded] | None = None
    pairs: Preferences | None = None

    @property
    def workloads(self) -> Workloads:
        """For the planner."""
        return Workloads(
            sft=None if self.rows is None else count(self.rows),
            pairs=None if self.pairs is None else self.pairs.work,
            held_out_tokens=sum(pair.tokens for pair in self.pairs.held_out) if self.pairs else 0,
        )


def count(rows: Sequence[Encoded]) -> Work:
    """The exact work of token rows."""
    return Work(tuple(len(row.input_ids) for row in rows), sum(row.trained for row in rows))
