"""Answers of base and tuned model to the Tribunal's prompts, for the trial (`judging.py`) and for machines that share its answers."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from noesis.config import TribunalSection
from noesis.constitution.conversation import Message
from noesis.constitution.tokenizer import load_tokenizer
from noesis.files import sha256_file, sha256_json
from noesis.sessions import Session
from noesis.tribunal.cache import opened
from noesis.tribunal.suite import Item
from noesis.tribunal.trial import WHO, Generate, answers


def answering(s: Session, section: TribunalSection, tuned: Path, held: dict[str, Any]) -> Generate:
    """Answers of base and tuned model, packed, from the weights that a merge would write; one of the two in memory at a time, in `held`."""
    from noesis.release.merge import loaded
    from noesis.serve.batch import answer_packed

    tokenizer = load_tokenizer(s.model.path)

    def generate(who: str, conversations: list[list[Message]], seeds: list[int]) -> list[str]:
        if who not in held:
            held.clear()
            adapter = tuned if who == "tuned" else None
            held[who] = loaded(
                s.model.path,
                adapter,
                quantization=s.as_trained.lora.quantization,
                dtype=s.arithmetic,
                device=s.device.kind,
            )
        return answer_packed(
            held[who],
            tokenizer,
            conversations,
            max_tokens=section.trial_tokens,
            temperature=section.temperature,
            seeds=seeds,
        )

    return generate


def identity_of(s: Session, adapter: Path) -> dict[str, str]:
    """What decides the answers of base and tuned model, besides prompt and seed."""
    base = sha256_json([s.model.revision, s.as_trained.lora.quantization.model_dump(), s.arithmetic])
    return {"base": base, "tuned": sha256_json([base, sha256_file(adapter / "adapter_model.safetensors")])}


class Kept(dict[str, str]):
    """Answers in memory, in the place of a trial's cache."""

    def put_all(self, values: dict[str, str], /) -> None:
        self.update(values)


def answered(s: Session, section: TribunalSection, items: Sequence[Item]) -> dict[str, str]:
    """What both models answer to some of a trial's prompts, under the keys of the trial's cache."""
    kept, adapter = Kept(), s.run.adapter()
    identity, generate = identity_of(s, adapter), answering(s, section, adapter, {})
    for who in WHO:
        answers(
            items,
            s.constitution,
            generate,
            kept,
            identity=identity[who],
            who=who,
            section=section,
            seed=s.config.training.seed,
        )
    return kept


def keep_answers(s: Session, found: dict[str, str]) -> None:
    """Put answers that came from elsewhere where the trial of this run looks for them."""
    with opened(s.run.tribunal / "replies.sqlite") as cache:
        cache.put_all(found)
