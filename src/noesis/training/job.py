"""What is trained on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from noesis.llm.token_rows import TokenPair, TokenRow
from noesis.planning.workload import PairWorkload, Workload, Workloads


@dataclass(frozen=True)
class PreferencePairs:
    """What preference training takes: pairs to train on, and pairs that are held out."""

    train: Sequence[TokenPair]
    held_out: Sequence[TokenPair] = ()

    @property
    def tokens(self) -> int:
        """Of one pass over the pairs trained on."""
        return sum(pair.tokens for pair in self.train)

    @property
    def work(self) -> PairWorkload:
        """For the planner: a pair counts as one sequence, since both its rows are computed before either can be forgotten."""
        return PairWorkload(
            tuple(pair.tokens for pair in self.train),
            sum(pair.chosen.trained + pair.rejected.trained for pair in self.train),
            held_out_tokens=sum(pair.tokens for pair in self.held_out),
        )


@dataclass(frozen=True)
class TrainingSet:
    """The token rows of each part that the method has."""

    rows: list[TokenRow] | None = None
    pairs: PreferencePairs | None = None

    @property
    def workloads(self) -> Workloads:
        """For the planner."""
        return Workloads(
            sft=None if self.rows is None else count_workload(self.rows),
            pairs=None if self.pairs is None else self.pairs.work,
        )


def count_workload(rows: Sequence[TokenRow]) -> Workload:
    """The exact work of token rows."""
    return Workload(tuple(len(row.input_ids) for row in rows), sum(row.trained for row in rows))
