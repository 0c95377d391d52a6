"""From a dataset to the token rows that a method trains on."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from noesis.constitution.dialogue import opening_messages
from noesis.constitution.document import Constitution
from noesis.core.config import Config
from noesis.dataset.encode import example_pairs, replay_rows, soft_pairs, target_text, training_rows
from noesis.llm.tokenizer import load_tokenizer
from noesis.planning.model_shapes import TokenRatio
from noesis.planning.workload import PairWorkload, Workload, Workloads
from noesis.training.job import PreferencePairs, TrainingSet

Records = list[dict[str, Any]]


def build_training_set(
    config: Config,
    folder: Path,
    train: Records,
    constitution: Constitution,
    *,
    held_out: Records | None = None,
    besides: dict[str, Records] | None = None,
) -> TrainingSet:
    """Token rows by the tokenizer in `folder`.

    Args:
        held_out: examples whose pairs are measured and never trained on.
        besides: what the run takes besides its examples (`data.preferences.besides`).

    Raises:
        TrainingError: a row that could not be trained on as meant; the message names it.
    """
    t, more = config.training, besides or {}
    tokenizer = load_tokenizer(folder)
    critique, longest = t.constitutional_ai.include_critique, t.max_length
    rows = pairs = None
    if t.method != "dpo":
        rows = training_rows(train, tokenizer, constitution, include_critique=critique, max_length=longest)
        rows += replay_rows(more.get("replay", []), tokenizer, max_length=longest)
    if t.method != "sft":
        own, kept = (
            example_pairs(part, tokenizer, constitution, include_critique=critique, max_length=longest)
            for part in (train, held_out or [])
        )
        pairs = PreferencePairs(
            [*own, *soft_pairs(more.get("pairs", []), tokenizer, constitution, max_length=longest)], kept
        )
    return TrainingSet(rows, pairs)


def estimate_workloads(
    config: Config,
    train: Records,
    constitution: Constitution,
    ratio: TokenRatio,
    *,
    besides: dict[str, Records] | None = None,
) -> Workloads:
    """The work of a run whose tokenizer is not here."""
    t, more = config.training, besides or {}
    critique = t.constitutional_ai.include_critique
    rows = pairs = None
    if t.method != "dpo":
        rows = estimate_workload(train, constitution, ratio, include_critique=critique)
        general = [
            {"language": "en", "prompt": " ".join(m["content"] for m in r["messages"]), "response_revised": ""}
            for r in more.get("replay", [])
        ]
        rows = (
            _both(rows, estimate_workload(general, constitution, ratio, include_critique=False), end_to_end=True)
            if general
            else rows
        )
    if t.method != "sft":
        soft = [r | {"response_revised": r["chosen"], "response_initial": r["rejected"]} for r in more.get("pairs", [])]
        parts = []
        for records, block in ((train, critique), (soft, False)):
            weak = [r | {"response_revised": r["response_initial"]} for r in records]
            parts.append(
                _both(
                    *(estimate_workload(part, constitution, ratio, include_critique=block) for part in (records, weak)),
                    end_to_end=False,
                )
            )
        both = _both(*parts, end_to_end=True) if soft else parts[0]
        pairs = PairWorkload(both.lengths, both.trained, both.relative_error)
    return Workloads(rows, pairs)


def _both(a: Workload, b: Workload, *, end_to_end: bool) -> Workload:
    """Two works as one: one after the other, or row by row."""
    lengths = (
        (*a.lengths, *b.lengths) if end_to_end else tuple(x + y for x, y in zip(a.lengths, b.lengths, strict=True))
    )
    return Workload(lengths, a.trained + b.trained, max(a.relative_error, b.relative_error))


def estimate_workload(
    records: list[dict[str, Any]], constitution: Constitution, ratio: TokenRatio, *, include_critique: bool
) -> Workload:
    """The work of examples whose model's tokenizer is not here: from their bytes."""
    lengths, trained = [], 0
    for record in records:
        per_byte = ratio.en if record.get("language", "pt") == "en" else ratio.pt
        answer = round(len(target_text(record, include_critique=include_critique).encode()) * per_byte)
        prompt = sum(len(message["content"].encode()) for message in opening_messages(constitution, record))
        lengths.append(round(prompt * per_byte) + ratio.frame + answer)
        trained += answer + 1
    return Workload(tuple(lengths), trained, ratio.plus_minus)
