"""Examples → token rows with labels; refuses what could not be trained on as meant."""

from __future__ import annotations

from typing import Any

from noesis.constitution.conversation import Encoded, Tokenizer, answer_text, encode, end_of_turn, opening
from noesis.constitution.document import Constitution
from noesis.errors import TrainingError


def training_rows(records: list[dict[str, Any]], tokenizer: Tokenizer, constitution: Constitution, *, include_critique: bool, max_length: int) -> list[Encoded]:
    """One row an example, in the same order.

    Raises:
        TrainingError: a row is longer than `max_length`, trains no token, or does not train its end of turn; the message names it.
    """
    stop = end_of_turn(tokenizer)
    rows = []
    for record in records:
        name = f"{record['id']} ({record.get('language', 'pt')})"
        row = encode(tokenizer, opening(constitution, record), answer_text(record, include_critique=include_critique), name=name)
        if len(row.input_ids) > max_length:
            raise TrainingError(
                f"row {name} has {len(row.input_ids)} tokens, more than max_length {max_length} in training_config.yaml: "
                "raise it or shorten the example; answers are never cut"
            )
        if row.labels[-1] != stop:
            raise TrainingError(f"row {name}: its end-of-turn token is not trained, so the model would never stop; look at it with  noesis data inspect")
        rows.append(row)
    return rows


def answer_rows(records: list[dict[str, Any]], field: str, tokenizer: Tokenizer, constitution: Constitution) -> list[Encoded]:
    """Rows whose scored part is `record[field]` (`response_initial` or `response_revised`), for comparing their likelihoods."""
    return [encode(tokenizer, opening(constitution, record), str(record[field]), name=record["id"]) for record in records]
