"""The arms of preference.py, some of which are meant to forget less than `sft`, and the rule that chooses a default."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from noesis.dataset.schema import Dataset

_DPO = {"training.method": "dpo", "training.dpo.learning_rate": 5e-5}
_BOTH = {"training.method": "sft+dpo", "training.dpo.learning_rate": 5e-5}
_CRITIQUE = {"training.constitutional_ai.include_critique": True}

# name of an arm → the settings in which it differs from `sft`
ARMS: dict[str, dict[str, Any]] = {
    "sft": {},
    "dpo": _DPO,
    "sft+dpo": _BOTH,
    "sft replay self": {"training.replay.file": "self", "training.replay.share": 0.25},
    "sft kl 1": {"training.replay.kl_weight": 1.0, "training.replay.share": 0.25},
    "distill": {"training.method": "distill"},
    "sft kl 4": {"training.replay.kl_weight": 4.0, "training.replay.share": 0.25},
    "sft critique": _CRITIQUE,
    "dpo critique": _DPO | _CRITIQUE,
    "sft+dpo critique": _BOTH | _CRITIQUE,
}
DEFAULT_ARMS = tuple(ARMS)[:6]


def training_set_of(
    config: Any, dataset: Dataset, encoder: Any, constitution: Any, write: Callable[[list[Any], int], list[str]]
) -> tuple[Any, Any]:
    """(training set, workload) as the train stage makes them, the base's own answers included.

    Args:
        write: answers of the base, to conversations, of so many tokens at most.
    """
    from noesis.dataset.everyday import own_conversations
    from noesis.pipeline.training_set import build_training_set, planned_workloads

    conversations = [messages for _, messages in own_conversations(config, dataset, constitution)]
    answers = None
    if conversations:
        answers = write(conversations, config.training.replay.max_new_tokens)
    known = build_training_set(config, dataset, encoder, constitution)
    work = planned_workloads(config, dataset, constitution, encoder, known)
    return build_training_set(config, dataset, encoder, constitution, answers), work


def choose(preference: Mapping[str, float], fall: Mapping[str, float], bound: float) -> str:
    """Of the arms whose right answers to keyed items fell by no more than `bound`, the one that prefers most.

    Args:
        preference: share of held-out pairs whose revised answer is preferred, by arm.
        fall: share of all keyed items, base's right answers minus the arm's.
    """
    sound = [arm for arm in preference if fall[arm] <= bound]
    if not sound:
        least = min(preference, key=lambda arm: (fall[arm], -preference[arm]))
        return f"no arm stays within {bound:g}: {least} falls least, by {fall[least]:.3f}; the default stays as it is"
    best = max(sound, key=lambda arm: (preference[arm], -fall[arm]))
    return f"{best}: prefers {preference[best]:.3f}, most of {len(sound)} arms that fall by no more than {bound:g}"
