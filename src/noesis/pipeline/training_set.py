"""From a dataset to the token rows that a method trains on, or to an estimate of their number."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from noesis.constitution.document import Constitution
from noesis.core.config import Config
from noesis.core.messages import Message
from noesis.dataset.encode import (
    example_pairs,
    prompt_messages,
    replay_rows,
    soft_pairs,
    target_text,
    training_rows,
)
from noesis.dataset.schema import Dataset, Example, PreferencePair
from noesis.llm.row_encoder import RowEncoder
from noesis.planning.model_shapes import TokenRatio
from noesis.planning.workload import PairWorkload, Workload, Workloads
from noesis.training.job import PreferencePairs, TrainingSet

Conversation = tuple[str, Sequence[Message], str]  # language, messages, the answer that is trained on


def build_training_set(
    config: Config, dataset: Dataset, encoder: RowEncoder, constitution: Constitution
) -> TrainingSet:
    """The token rows of the configured method. Held-out examples become pairs that are measured, never trained on.

    Raises:
        TrainingError: a row that could not be trained on as meant; the message names it.
    """
    t = config.training
    critique, longest = t.constitutional_ai.include_critique, t.max_length
    rows = pairs = None
    if t.method != "dpo":
        rows = training_rows(dataset.train, encoder, constitution, include_critique=critique, max_length=longest)
        rows += replay_rows(dataset.replay or (), encoder, max_length=longest)
    if t.method != "sft":
        train, held_out = (
            example_pairs(examples, encoder, constitution, include_critique=critique, max_length=longest)
            for examples in (dataset.train, dataset.held_out)
        )
        soft = soft_pairs(dataset.pairs or (), encoder, constitution, max_length=longest)
        pairs = PreferencePairs([*train, *soft], held_out)
    return TrainingSet(rows, pairs)


def estimate_workloads(config: Config, dataset: Dataset, constitution: Constitution, ratio: TokenRatio) -> Workloads:
    """What a run computes whose tokenizer is not on this machine, estimated from the bytes of its texts."""
    t = config.training
    critique = t.constitutional_ai.include_critique
    rows = pairs = None
    if t.method != "dpo":
        rows = estimate_workload(dataset.train, constitution, ratio, include_critique=critique)
        if dataset.replay:
            conversations = ([message.to_json() for message in row.messages] for row in dataset.replay)
            replay = _estimate((("en", c[:-1], c[-1]["content"]) for c in conversations), ratio)
            rows = _concatenated(rows, replay)
    if t.method != "sft":
        prompted: list[Example | PreferencePair] = [*dataset.train, *(dataset.pairs or ())]
        prompts = [(row.language, prompt_messages(constitution, row)) for row in prompted]
        chosen = [target_text(e, include_critique=critique) for e in dataset.train]
        rejected = [target_text(e, include_critique=critique, answer=e.response_initial) for e in dataset.train]
        chosen += [pair.chosen for pair in dataset.pairs or ()]
        rejected += [pair.rejected for pair in dataset.pairs or ()]
        both = _summed(
            *(
                _estimate(((*prompt, answer) for prompt, answer in zip(prompts, answers, strict=True)), ratio)
                for answers in (chosen, rejected)
            )
        )
        pairs = PairWorkload(both.lengths, both.trained, both.relative_error)
    return Workloads(rows, pairs)


def estimate_workload(
    examples: Sequence[Example], constitution: Constitution, ratio: TokenRatio, *, include_critique: bool
) -> Workload:
    """The work of supervised training on `examples`, estimated from the bytes of their texts."""
    return _estimate(
        (
            (e.language, prompt_messages(constitution, e), target_text(e, include_critique=include_critique))
            for e in examples
        ),
        ratio,
    )


def _estimate(conversations: Iterable[Conversation], ratio: TokenRatio) -> Workload:
    lengths, trained = [], 0
    for language, messages, answer in conversations:
        per_byte = ratio.en if language == "en" else ratio.pt
        answer_tokens = round(len(answer.encode()) * per_byte)
        prompt_bytes = sum(len(message["content"].encode()) for message in messages)
        lengths.append(round(prompt_bytes * per_byte) + ratio.frame + answer_tokens)
        trained += answer_tokens + 1
    return Workload(tuple(lengths), trained, ratio.plus_minus)


def _concatenated(a: Workload, b: Workload) -> Workload:
    """The rows of both."""
    return Workload((*a.lengths, *b.lengths), a.trained + b.trained, max(a.relative_error, b.relative_error))


def _summed(a: Workload, b: Workload) -> Workload:
    """Rows as long as those of both together, one by one."""
    lengths = tuple(x + y for x, y in zip(a.lengths, b.lengths, strict=True))
    return Workload(lengths, a.trained + b.trained, max(a.relative_error, b.relative_error))
