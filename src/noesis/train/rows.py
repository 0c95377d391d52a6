"""Examples → token rows with labels; refuses what could not be trained on as meant."""

from __future__ import annotations

from typing import Any

from noesis.constitution.conversation import Encoded, Tokenizer, answer_text, encode, end_of_turn, objection, opening
from noesis.constitution.document import Constitution
from noesis.errors import TrainingError


def training_rows(
    records: list[dict[str, Any]],
    tokenizer: Tokenizer,
    constitution: Constitution,
    *,
    include_critique: bool,
    max_length: int,
) -> list[Encoded]:
    """One row an example, in the same order.

    Raises:
        TrainingError: a row is longer than `max_length`, trains no token, or does not train its end of turn; the message names it.
    """
    names = [f"{record['id']} ({record.get('language', 'pt')})" for record in records]
    stop = end_of_turn(tokenizer, name=names[0])
    rows = []
    for name, record in zip(names, records, strict=True):
        row = encode(
            tokenizer, opening(constitution, record), answer_text(record, include_critique=include_critique), name=name
        )
        if wrong := objection(row, stop=stop, max_length=max_length):
            raise TrainingError(f"row {name} {wrong}")
        rows.append(row)
    return rows


def replay_rows(rows: list[dict[str, Any]], tokenizer: Tokenizer, *, max_length: int) -> list[Encoded]:
    """Rows of general conversations (`data.preferences.ReplayRow`), with their own system prompt or none; the last answer is trained on.

    Raises:
        TrainingError: as `training_rows`.
    """
    found = []
    stop = end_of_turn(tokenizer, name="replay") if rows else -1
    for number, row in enumerate(rows, 1):
        *messages, answer = row["messages"]
        encoded = encode(tokenizer, messages, answer["content"], name=f"replay {number}")
        if wrong := objection(encoded, stop=stop, max_length=max_length):
            raise TrainingError(f"row replay {number} {wrong}")
        found.append(encoded)
    return found


def answer_rows(
    records: list[dict[str, Any]], field: str, tokenizer: Tokenizer, constitution: Constitution
) -> list[Encoded]:
    """Rows whose scored part is `record[field]` (`response_initial` or `response_revised`), for comparing their likelihoods."""
    return [
        encode(tokenizer, opening(constitution, record), str(record[field]), name=record["id"]) for record in records
    ]
