"""From a dataset to the token rows that a method trains on, or to an estimate of their number."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace

from noesis.constitution.document import Constitution
from noesis.core.config import Config
from noesis.core.messages import Message
from noesis.dataset.encode import (
    distill_prompts,
    example_pairs,
    own_answer_rows,
    prompt_messages,
    replay_rows,
    soft_pairs,
    target_text,
    teacher_messages,
    training_rows,
)
from noesis.dataset.everyday import own_conversations
from noesis.dataset.schema import Dataset, Example, PreferencePair
from noesis.llm.chat_template import render
from noesis.llm.row_encoder import RowEncoder
from noesis.planning.model_shapes import TokenRatio
from noesis.planning.workload import PairWorkload, Workload, Workloads
from noesis.training.job import PreferencePairs, TrainingSet, count_sampled, sampled_workload

Conversation = tuple[str, Sequence[Message], str]  # language, messages, the answer that is trained on


def build_training_set(
    config: Config,
    dataset: Dataset,
    encoder: RowEncoder,
    constitution: Constitution,
    own_answers: Sequence[str] | None = None,
) -> TrainingSet:
    """The token rows of the configured method. Held-out examples become pairs that are measured, never trained on.

    Args:
        own_answers: of the base to `own_conversations`; None: there are none, or they are not written yet.

    Raises:
        TrainingError: a row that could not be trained on as meant; the message names it.
    """
    t = config.training
    critique, longest = t.constitutional_ai.include_critique, t.max_length
    rows = pairs = None
    if t.on_rows:
        rows = training_rows(dataset.train, encoder, constitution, include_critique=critique, max_length=longest)
        anchored = t.replay.kl_weight > 0
        rows += replay_rows(dataset.replay or (), encoder, max_length=longest, anchored=anchored)
        if own_answers is not None:
            rows += own_answer_rows(
                [messages for _, messages in own_conversations(config, dataset, constitution)],
                own_answers,
                encoder,
                max_length=longest,
                max_new_tokens=t.replay.max_new_tokens,
                anchored=anchored,
            )
    if t.on_pairs:
        train, held_out = (
            example_pairs(examples, encoder, constitution, include_critique=critique, max_length=longest)
            for examples in (dataset.train, dataset.held_out)
        )
        soft = soft_pairs(dataset.pairs or (), encoder, constitution, max_length=longest)
        pairs = PreferencePairs([*train, *soft], held_out)
    prompts = None
    if t.method == "distill":
        prompts = distill_prompts(dataset.train, encoder, constitution, max_length=longest - t.distill.max_new_tokens)
    return TrainingSet(rows, pairs, prompts)


def planned_workloads(
    config: Config, dataset: Dataset, constitution: Constitution, encoder: RowEncoder, known: TrainingSet
) -> Workloads:
    """What a run computes that is not trained yet: answers which the base has still to write count at full length.

    Args:
        known: the training set without them.
    """
    asked = own_conversations(config, dataset, constitution)
    if known.prompts is not None:
        return Workloads(sft=count_sampled(known.prompts, config.training.distill.max_new_tokens))
    if known.rows is None or not asked:
        return known.workloads
    tokenizer = encoder.tokenizer
    prompts = [
        len(tokenizer(render(tokenizer, messages, add_generation_prompt=True), add_special_tokens=False)["input_ids"])
        for _, messages in asked
    ]
    return replace(known.workloads, sft=_with_own(config, known.workloads.sft, prompts))


def estimate_workloads(config: Config, dataset: Dataset, constitution: Constitution, ratio: TokenRatio) -> Workloads:
    """What a run computes whose tokenizer is not on this machine, estimated from the bytes of its texts."""
    t = config.training
    critique = t.constitutional_ai.include_critique
    rows = pairs = None
    if t.on_rows:
        rows = estimate_workload(dataset.train, constitution, ratio, include_critique=critique)
        if dataset.replay:
            conversations = ([message.to_json() for message in row.messages] for row in dataset.replay)
            replay = _estimate((("en", c[:-1], c[-1]["content"]) for c in conversations), ratio)
            anchored = replay.tokens if t.replay.kl_weight else 0
            rows = _concatenated(rows, replace(replay, anchored=anchored))
        asked = own_conversations(config, dataset, constitution)
        if asked:
            to_base = _estimate(((language, messages, "") for language, messages in asked), ratio)
            rows = _with_own(config, rows, to_base.lengths)
    if t.on_pairs:
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
    if t.method == "distill":
        student, teacher = (
            _estimate(((e.language, write(constitution, e), "") for e in dataset.train), ratio)
            for write in (prompt_messages, teacher_messages)
        )
        rows = sampled_workload(student.lengths, teacher.lengths, t.distill.max_new_tokens, ratio.plus_minus)
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


def _with_own(config: Config, rows: Workload | None, prompts: Sequence[int]) -> Workload:
    """`rows` and the base's own answers, which are not longer than this.

    Args:
        prompts: tokens of what it is asked.
    """
    assert rows is not None
    answer = config.training.replay.max_new_tokens + 1
    lengths = tuple(prompt + answer for prompt in prompts)
    anchored = sum(lengths) if config.training.replay.kl_weight else 0
    own = Workload(lengths, answer * len(prompts), anchored=anchored, own_answers=len(prompts))
    return _concatenated(rows, own)


def _concatenated(a: Workload, b: Workload) -> Workload:
    """The rows of both."""
    return Workload(
        (*a.lengths, *b.lengths),
        a.trained + b.trained,
        max(a.relative_error, b.relative_error),
        a.anchored + b.anchored,
        a.own_answers + b.own_answers,
    )


def _summed(a: Workload, b: Workload) -> Workload:
    """Rows as long as those of both together, one by one."""
    lengths = tuple(x + y for x, y in zip(a.lengths, b.lengths, strict=True))
    return Workload(lengths, a.trained + b.trained, max(a.relative_error, b.relative_error))
