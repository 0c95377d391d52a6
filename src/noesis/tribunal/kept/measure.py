"""A model's outcomes on the small tasks, as it stands: with its adapter on, off or scaled, whatever the caller set."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from noesis.core.messages import Message
from noesis.llm.tokenizer import ChatTokenizer
from noesis.tribunal.code_checks import passes, refuses
from noesis.tribunal.kept.items import KeptItem

ANSWER_TOKENS = 24  # of an answer in the model's own words


@dataclass(frozen=True)
class Outcome:
    """What a model did with one item, as it is stored; `is_right` decides.

    scores: natural-log probability of the answer and of each distractor, in order; empty where it answered itself
    said: its greedy answer
    """

    scores: tuple[float, ...] = ()
    said: str = ""

    def to_json(self) -> dict[str, Any]:
        return {name: value for name, value in asdict(self).items() if value} or {"said": ""}

    @classmethod
    def from_json(cls, stored: dict[str, Any]) -> Outcome:
        return cls(tuple(float(x) for x in stored.get("scores", ())), str(stored.get("said", "")))


def is_right(item: KeptItem, outcome: Outcome) -> bool:
    """Whether the outcome is the item's key: the answer likelier than every distractor, or the requirements met."""
    if item.choices:
        answer, *others = outcome.scores
        return all(answer > other for other in others)
    if item.decline is not None:
        return bool(outcome.said) and refuses(outcome.said) == item.decline
    return all(passes(check, outcome.said) for check in item.check)


def conversation(item: KeptItem) -> list[Message]:
    """The item as it is put to a model: without the constitution, in one message."""
    return [{"role": "user", "content": item.prompt}]


def outcomes(
    model: Any,
    tokenizer: ChatTokenizer,
    items: Sequence[KeptItem],
    *,
    on_items: Callable[[int], None] | None = None,
) -> list[Outcome]:
    """What the model does with each item, in order.

    Args:
        model: a causal language model of transformers that is loaded, in evaluation mode.
        on_items: called with the number of items that were measured.
    """
    from noesis.llm.generation.batch import generate_batch
    from noesis.llm.generation.choices import choice_log_likelihoods

    chosen, written = [i for i in items if i.choices], [i for i in items if not i.choices]
    scores = choice_log_likelihoods(
        model, tokenizer, [conversation(i) for i in chosen], [i.choices for i in chosen], on_prompts=on_items
    )
    said = generate_batch(
        model, tokenizer, [conversation(i) for i in written], max_tokens=ANSWER_TOKENS, on_answer=on_items
    )
    found = {item.id: Outcome(scores=tuple(round(x, 5) for x in s)) for item, s in zip(chosen, scores, strict=True)}
    found |= {item.id: Outcome(said=text) for item, text in zip(written, said, strict=True)}
    return [found[item.id] for item in items]


def measure_kept(model: Any, tokenizer: ChatTokenizer, items: Sequence[KeptItem]) -> list[bool]:
    """Whether the model, as it stands, is right on each item, in order.

    Args:
        model: as `outcomes`. A model with an adapter is measured inside `training.base_model.compute_context`.
    """
    return [is_right(item, found) for item, found in zip(items, outcomes(model, tokenizer, items), strict=True)]
