"""Examples, preference pairs and replayed conversations → token rows with labels.

A row that could not be trained on as meant is refused, by its name.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Literal

from noesis.constitution.dialogue import opening_messages, with_analysis, with_revision
from noesis.constitution.document import Constitution
from noesis.core.errors import TrainingError
from noesis.core.i18n import _
from noesis.core.messages import Message
from noesis.dataset.schema import Example, PreferencePair, ReplayRow
from noesis.llm.chat_template import break_controls, end_of_turn, refusal_reason
from noesis.llm.row_encoder import RowEncoder
from noesis.llm.token_rows import IGNORED, DistillPrompt, TokenPair, TokenRow


def training_rows(
    examples: Sequence[Example],
    encoder: RowEncoder,
    constitution: Constitution,
    *,
    include_critique: bool,
    max_length: int,
) -> list[TokenRow]:
    """One row for each example, in the same order.

    Args:
        max_length: tokens.

    Raises:
        TrainingError: a row is longer than `max_length`, trains no token, or does not train its end of turn; the
            message names it.
    """
    if not examples:
        return []
    stop = end_of_turn(encoder.tokenizer, name=examples[0].name)
    rows = []
    for example in examples:
        answer = target_text(example, include_critique=include_critique)
        row = encoder.encode(prompt_messages(constitution, example), answer, name=example.name)
        rows.append(_checked(row, f"row {example.name} ", stop, max_length))
    return rows


def replay_rows(rows: Sequence[ReplayRow], encoder: RowEncoder, *, max_length: int, anchored: bool) -> list[TokenRow]:
    """Rows of general conversations, with their own system prompt or none; the last answer is trained on.

    Args:
        anchored: the model is held to the base's distribution there, instead of to the words.

    Raises:
        TrainingError: as `training_rows`.
    """
    encoded = []
    stop = end_of_turn(encoder.tokenizer, name="replay") if rows else -1
    for number, row in enumerate(rows, 1):
        *messages, answer = (message.to_json() for message in row.messages)
        token_row = encoder.encode(messages, answer["content"], name=f"replay {number}")
        checked = _checked(token_row, f"row replay {number} ", stop, max_length)
        encoded.append(replace(checked, anchored=anchored))
    return encoded


def own_answer_rows(
    conversations: Sequence[list[Message]],
    answers: Sequence[str],
    encoder: RowEncoder,
    *,
    max_length: int,
    max_new_tokens: int,
    anchored: bool,
) -> list[TokenRow]:
    """Rows of what the base itself answered, control tokens broken up; an answer of nothing makes no row.

    Args:
        max_new_tokens: length of an answer at which the base was stopped; the end of such a one is not trained.
        anchored: as in `replay_rows`.

    Raises:
        TrainingError: as `training_rows`.
    """
    encoded = []
    stop = end_of_turn(encoder.tokenizer, name="everyday") if answers else -1
    for number, (messages, answer) in enumerate(zip(conversations, answers, strict=True), 1):
        if not answer.strip():
            continue
        name = f"everyday {number}"
        (broken,) = break_controls(encoder.tokenizer, [{"role": "assistant", "content": answer}])
        row = _checked(encoder.encode(messages, broken["content"], name=name), f"row {name} ", stop, max_length)
        if row.trained >= max_new_tokens:  # a token or so may be cut off with the spaces at its end
            row = replace(row, labels=[*row.labels[:-1], IGNORED])
        encoded.append(replace(row, anchored=anchored))
    return encoded


def answer_rows(
    examples: Sequence[Example],
    which: Literal["initial", "revised"],
    encoder: RowEncoder,
    constitution: Constitution,
) -> list[TokenRow]:
    """Rows whose labels are the initial or the revised answer, for comparing their likelihoods."""
    return [
        encoder.encode(
            prompt_messages(constitution, example),
            example.response_revised if which == "revised" else example.response_initial,
            name=example.id,
        )
        for example in examples
    ]


def example_pairs(
    examples: Sequence[Example],
    encoder: RowEncoder,
    constitution: Constitution,
    *,
    include_critique: bool,
    max_length: int,
) -> list[TokenPair]:
    """One pair for each example, the revised answer against the initial one.

    Raises:
        TrainingError: a row that could not be trained on as meant; the message names it.
    """
    return _pairs(
        [
            (
                example.name,
                prompt_messages(constitution, example),
                target_text(example, include_critique=include_critique),
                target_text(example, include_critique=include_critique, answer=example.response_initial),
                1.0,
            )
            for example in examples
        ],
        encoder,
        max_length,
    )


def soft_pairs(
    pairs: Sequence[PreferencePair], encoder: RowEncoder, constitution: Constitution, *, max_length: int
) -> list[TokenPair]:
    """The pairs of a file, each with the probability that its chosen answer is the better one.

    Raises:
        TrainingError: a row that could not be trained on as meant; the message names it.
    """
    return _pairs(
        [
            (pair.name, prompt_messages(constitution, pair), pair.chosen, pair.rejected, float(pair.p_chosen))
            for pair in pairs
        ],
        encoder,
        max_length,
    )


def distill_prompts(
    examples: Sequence[Example], encoder: RowEncoder, constitution: Constitution, *, max_length: int
) -> list[DistillPrompt]:
    """What model and teacher read of each example, in the same order.

    Args:
        max_length: tokens that are left beside the answer.

    Raises:
        TrainingError: a prompt is longer, or holds a control token; the message names it.
    """
    if examples:
        end_of_turn(encoder.tokenizer, name=examples[0].name)
    found = []
    for example in examples:
        # encoded with an answer, so that the text is checked as every other row's
        parts = []
        for messages in (prompt_messages(constitution, example), teacher_messages(constitution, example)):
            row = encoder.encode(messages, example.response_revised, name=example.name)
            ids = row.input_ids[: row.labels.index(next(label for label in row.labels if label != IGNORED))]
            if len(ids) > max_length:
                raise TrainingError(
                    _(
                        "row {name}: with critique and revised answer its prompt has {ids} tokens, and "
                        "max_length leaves {max_length} beside the answer (distill.max_new_tokens): raise max_length "
                        "in training_config.yaml or shorten the example",
                        name=example.name,
                        ids=len(ids),
                        max_length=max_length,
                    )
                )
            parts.append(ids)
        found.append(DistillPrompt(*parts))
    return found


def teacher_messages(constitution: Constitution, example: Example) -> list[Message]:
    """What the teacher of self-distillation reads: the prompt with critique and revised answer."""
    asked = with_revision(example.language, example.prompt, example.critique, example.response_revised)
    return opening_messages(constitution, example.language, asked, example.earlier)


def prompt_messages(constitution: Constitution, row: Example | PreferencePair) -> list[Message]:
    """What the model reads before the answer: system prompt, earlier turns, the user's prompt."""
    return opening_messages(constitution, row.language, row.prompt, row.earlier)


def target_text(example: Example, *, include_critique: bool, answer: str | None = None) -> str:
    """The text that the model is trained to write: `answer`, after the critique as an analysis block if configured.

    Args:
        answer: None: the revised one.
    """
    answer = example.response_revised if answer is None else answer
    return with_analysis(example.critique, answer) if include_critique else answer


def _pairs(
    pairs: Sequence[tuple[str, list[Message], str, str, float]], encoder: RowEncoder, max_length: int
) -> list[TokenPair]:
    """Token pairs of (name, messages, chosen answer, rejected answer, probability of the chosen one)."""
    encoded = []
    stop = end_of_turn(encoder.tokenizer, name=pairs[0][0]) if pairs else -1
    for name, messages, chosen, rejected, p in pairs:
        rows = [
            _checked(encoder.encode(messages, answer, name=name), f"row {name}, {what} answer: ", stop, max_length)
            for what, answer in (("chosen", chosen), ("rejected", rejected))
        ]
        encoded.append(TokenPair(name, rows[0], rows[1], p))
    return encoded


def _checked(row: TokenRow, name: str, stop: int, max_length: int) -> TokenRow:
    if reason := refusal_reason(row, stop=stop, max_length=max_length):
        raise TrainingError(f"{name}{reason}")
    return row
