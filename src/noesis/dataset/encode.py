"""Examples → token rows with labels; refuses what could not be trained on as meant."""

from __future__ import annotations

from typing import Any

from noesis.constitution.dialogue import ANALYSIS_CLOSE, ANALYSIS_OPEN, opening_messages
from noesis.constitution.document import Constitution
from noesis.core.errors import TrainingError
from noesis.llm.chat_template import Tokenizer, encode, end_of_turn, refusal_reason
from noesis.llm.token_rows import TokenPair, TokenRow


def training_rows(
    records: list[dict[str, Any]],
    tokenizer: Tokenizer,
    constitution: Constitution,
    *,
    include_critique: bool,
    max_length: int,
) -> list[TokenRow]:
    """One row an example, in the same order.

    Raises:
        TrainingError: a row is longer than `max_length`, trains no token, or does not train its end of turn; the message names it.
    """
    names = [f"{record['id']} ({record.get('language', 'pt')})" for record in records]
    stop = end_of_turn(tokenizer, name=names[0])
    rows = []
    for name, record in zip(names, records, strict=True):
        row = encode(
            tokenizer,
            opening_messages(constitution, record),
            target_text(record, include_critique=include_critique),
            name=name,
        )
        if wrong := refusal_reason(row, stop=stop, max_length=max_length):
            raise TrainingError(f"row {name} {wrong}")
        rows.append(row)
    return rows


def replay_rows(rows: list[dict[str, Any]], tokenizer: Tokenizer, *, max_length: int) -> list[TokenRow]:
    """Rows of general conversations (`data.preferences.ReplayRow`), with their own system prompt or none; the last answer is trained on.

    Raises:
        TrainingError: as `training_rows`.
    """
    found = []
    stop = end_of_turn(tokenizer, name="replay") if rows else -1
    for number, row in enumerate(rows, 1):
        *messages, answer = row["messages"]
        encoded = encode(tokenizer, messages, answer["content"], name=f"replay {number}")
        if wrong := refusal_reason(encoded, stop=stop, max_length=max_length):
            raise TrainingError(f"row replay {number} {wrong}")
        found.append(encoded)
    return found


def answer_rows(
    records: list[dict[str, Any]], field: str, tokenizer: Tokenizer, constitution: Constitution
) -> list[TokenRow]:
    """Rows whose scored part is `record[field]` (`response_initial` or `response_revised`), for comparing their likelihoods."""
    return [
        encode(tokenizer, opening_messages(constitution, record), str(record[field]), name=record["id"])
        for record in records
    ]


def target_text(record: dict[str, Any], *, include_critique: bool) -> str:
    """What the model is trained to say: the revised answer, with the critique as an analysis block before it if asked."""
    if not include_critique:
        return str(record["response_revised"])
    return f"{ANALYSIS_OPEN}\n{record['critique']}\n{ANALYSIS_CLOSE}\n\n{record['response_revised']}"


def example_pairs(
    records: list[dict[str, Any]],
    tokenizer: Tokenizer,
    constitution: Constitution,
    *,
    include_critique: bool,
    max_length: int,
) -> list[TokenPair]:
    """One pair an example, the revised answer against the initial one.

    Raises:
        TrainingError: a row that could not be trained on as meant; the message names it.
    """
    pairs = []
    for record in records:
        weak = record | {"response_revised": record["response_initial"]}
        answers = [target_text(r, include_critique=include_critique) for r in (record, weak)]
        pairs.append((f"{record['id']} ({record.get('language', 'pt')})", record, answers, 1.0))
    return _encoded(pairs, tokenizer, constitution, max_length)


def soft_pairs(
    rows: list[dict[str, Any]], tokenizer: Tokenizer, constitution: Constitution, *, max_length: int
) -> list[TokenPair]:
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
) -> list[TokenPair]:
    found = []
    stop = end_of_turn(tokenizer, name=pairs[0][0]) if pairs else -1
    for name, record, answers, p in pairs:
        rows = [encode(tokenizer, opening_messages(constitution, record), answer, name=name) for answer in answers]
        for row, what in zip(rows, ("chosen", "rejected"), strict=True):
            if wrong := refusal_reason(row, stop=stop, max_length=max_length):
                raise TrainingError(f"row {name}, {what} answer: {wrong}")
        found.append(TokenPair(name, rows[0], rows[1], p))
    return found
