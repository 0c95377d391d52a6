"""Examples and soft-labelled pairs → pairs of token rows for preference training. Torch-free.

With `include_critique` the analysis block stands before both answers of an example: it is the same text there, so it cancels from the
comparison, which can't be won by merely writing a block; the likelihood term trains it together with the chosen answer.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from noesis.constitution.conversation import Encoded, Tokenizer, answer_text, encode, end_of_turn, objection, opening
from noesis.constitution.document import Constitution
from noesis.errors import TrainingError
from noesis.train.work import Work


@dataclass(frozen=True)
class Pair:
    """Two answers to one prompt.

    p: how likely `chosen` is the better one, 0.5 to 1
    """

    name: str
    chosen: Encoded
    rejected: Encoded
    p: float = 1.0

    @property
    def tokens(self) -> int:
        """Of both rows."""
        return len(self.chosen.input_ids) + len(self.rejected.input_ids)

    @property
    def sequences(self) -> list[tuple[list[int], list[int]]]:
        """(input_ids, labels) of the chosen and of the rejected answer."""
        return [(row.input_ids, row.labels) for row in (self.chosen, self.rejected)]


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


def example_pairs(
    records: list[dict[str, Any]],
    tokenizer: Tokenizer,
    constitution: Constitution,
    *,
    include_critique: bool,
    max_length: int,
) -> list[Pair]:
    """One pair an example, the revised answer against the initial one.

    Raises:
        TrainingError: a row that could not be trained on as meant; the message names it.
    """
    pairs = []
    for record in records:
        weak = record | {"response_revised": record["response_initial"]}
        answers = [answer_text(r, include_critique=include_critique) for r in (record, weak)]
        pairs.append((f"{record['id']} ({record.get('language', 'pt')})", record, answers, 1.0))
    return _encoded(pairs, tokenizer, constitution, max_length)


def soft_pairs(
    rows: list[dict[str, Any]], tokenizer: Tokenizer, constitution: Constitution, *, max_length: int
) -> list[Pair]:
    """The rows of a file of pairs (`data.preferences.PairRow`).

    Raises:
        TrainingError: a row that could not be trained on as meant; the message names it.
    """
    pairs = [
        (f"{row['id']} ({row['language']})", row, [row["chosen"], row["rejected"]], float(row["p_chosen"]))
        for row in rows
    ]
    return _encoded(pairs, tokenizer, constitution, max_length)


def _encoded(
    pairs: list[tuple[str, dict[str, Any], list[str], float]],
    tokenizer: Tokenizer,
    constitution: Constitution,
    max_length: int,
) -> list[Pair]:
    found = []
    stop = end_of_turn(tokenizer, name=pairs[0][0]) if pairs else -1
    for name, record, answers, p in pairs:
        rows = [encode(tokenizer, opening(constitution, record), answer, name=name) for answer in answers]
        for row, what in zip(rows, ("chosen", "rejected"), strict=True):
            if wrong := objection(row, stop=stop, max_length=max_length):
                raise TrainingError(f"row {name}, {what} answer: {wrong}")
        found.append(Pair(name, rows[0], rows[1], p))
    return found
