"""Answers of base and tuned model to the Tribunal's prompts, for the trial (`judging.py`) and for machines that share its answers."""

from __future__ import annotations

import gc
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from noesis.constitution.dialogue import opening
from noesis.core.config import TribunalSection
from noesis.core.console import Progress
from noesis.core.files import sha256_file, sha256_json
from noesis.core.messages import Message
from noesis.llm.clients.reply_cache import opened
from noesis.llm.tokenizer import load_tokenizer
from noesis.pipeline.gguf_files import base_gguf, write_adapter
from noesis.pipeline.session import Records, Session
from noesis.tribunal.scoring import WHO, Generate, answers
from noesis.tribunal.suite import Item


def answering(s: Session, section: TribunalSection, tuned: Path, held: dict[str, Any]) -> Generate:
    """Answers of base and tuned model, packed, from the weights that a merge would write; one of the two in memory at a time, in `held`."""
    from noesis.llm.torch_generate import answer_packed, loaded

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


def _answers(s: Session, asked: Records) -> dict[str, list[str]]:
    """Greedy answers in llama.cpp, from one process: the base that was trained on, with the adapter off and on. On a card by torch."""
    if not asked:
        return {"base": [], "tuned": []}
    if s.device.kind == "cuda":
        return _answers_on_card(s, asked)
    from noesis.llm.llama_cpp import Engine

    adapter = write_adapter(s)
    conversations = [opening(s.constitution, record) for record in asked]
    engine = Engine(base_gguf(s), adapter=adapter, parallel=min(4, len(asked)), context=2048)
    answers = {}
    for who, on in (("base", False), ("tuned", True)):
        with Progress(f"answer ({who})", len(asked), "prompts") as progress:
            answers[who] = engine.answer_all(
                conversations, max_tokens=s.config.training.tribunal.max_new_tokens, adapter=on, progress=progress
            )
    return answers


def _answers_on_card(s: Session, asked: Records) -> dict[str, list[str]]:
    """The same where a card is: all prompts in one batch, from the weights that a merge would write, one of the two models in memory at a time."""
    from noesis.llm.torch_generate import answer_packed, loaded

    tokenizer, t = load_tokenizer(s.model.path), s.config.training.tribunal
    answers = {}
    for who, adapter in (("base", None), ("tuned", s.run.adapter())):
        with Progress(f"answer ({who})", len(asked), "prompts") as progress:
            model = loaded(
                s.model.path,
                adapter,
                quantization=s.as_trained.lora.quantization,
                dtype=s.arithmetic,
                device=s.device.kind,
            )
            conversations = [opening(s.constitution, record) for record in asked]
            answers[who] = answer_packed(
                model, tokenizer, conversations, max_tokens=t.max_new_tokens, on_answer=progress.advance
            )
            del model
        gc.collect()
    return answers
