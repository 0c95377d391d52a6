"""Answers of base and tuned model to the Tribunal's prompts, for the trial (`judging.py`) and for machines that share its answers."""

from __future__ import annotations

import gc
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from noesis.core.config import TribunalSection
from noesis.core.console import Progress
from noesis.core.files import sha256_file, sha256_json
from noesis.core.messages import Message
from noesis.dataset.encode import prompt_messages
from noesis.dataset.schema import Example
from noesis.llm.clients.reply_cache import open_cache
from noesis.llm.tokenizer import load_tokenizer
from noesis.pipeline.gguf_files import base_gguf, write_adapter
from noesis.pipeline.session import RunSession
from noesis.tribunal.scoring import MODELS, Generate, answer_prompts
from noesis.tribunal.suite import EvalSample


def answer_generator(s: RunSession, section: TribunalSection, tuned: Path, held: dict[str, Any]) -> Generate:
    """Answers of base and tuned model, packed, from the weights that a merge would write; one of the two in memory at a time, in `held`."""
    from noesis.llm.torch_generate import generate_batch, load_merged_model

    tokenizer = load_tokenizer(s.model.path)

    def generate(who: str, conversations: list[list[Message]], seeds: list[int]) -> list[str]:
        if who not in held:
            held.clear()
            adapter = tuned if who == "tuned" else None
            held[who] = load_merged_model(
                s.model.path,
                adapter,
                quantization=s.as_trained.lora.quantization,
                dtype=s.arithmetic,
                device=s.device.kind,
            )
        return generate_batch(
            held[who],
            tokenizer,
            conversations,
            max_tokens=section.trial_tokens,
            temperature=section.temperature,
            seeds=seeds,
        )

    return generate


def answer_identities(s: RunSession, adapter: Path) -> dict[str, str]:
    """What decides the answers of base and tuned model, besides prompt and seed."""
    base = sha256_json([s.model.revision, s.as_trained.lora.quantization.model_dump(), s.arithmetic])
    return {"base": base, "tuned": sha256_json([base, sha256_file(adapter / "adapter_model.safetensors")])}


class MemoryAnswerStore(dict[str, str]):
    """Answers in memory, in the place of a trial's cache."""

    def put_all(self, values: dict[str, str], /) -> None:
        self.update(values)


def generate_answers(s: RunSession, section: TribunalSection, items: Sequence[EvalSample]) -> dict[str, str]:
    """What both models answer to some of a trial's prompts, under the keys of the trial's cache."""
    kept, adapter = MemoryAnswerStore(), s.run.adapter()
    identity, generate = answer_identities(s, adapter), answer_generator(s, section, adapter, {})
    for who in MODELS:
        answer_prompts(
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


def store_answers(s: RunSession, found: dict[str, str]) -> None:
    """Put answers that came from elsewhere where the trial of this run looks for them."""
    with open_cache(s.run.tribunal / "replies.sqlite") as cache:
        cache.put_all(found)


def base_and_tuned_answers(s: RunSession, asked: Sequence[Example]) -> dict[str, list[str]]:
    """Greedy answers in llama.cpp, from one process: the base that was trained on, with the adapter off and on. On a card by torch."""
    if not asked:
        return {"base": [], "tuned": []}
    if s.device.kind == "cuda":
        return _answers_on_card(s, asked)
    from noesis.llm.llama_cpp import LlamaEngine

    adapter = write_adapter(s)
    conversations = [prompt_messages(s.constitution, example) for example in asked]
    engine = LlamaEngine(base_gguf(s), adapter=adapter, parallel=min(4, len(asked)), context=2048)
    answers = {}
    for who, on in (("base", False), ("tuned", True)):
        with Progress(f"answer ({who})", len(asked), "prompts") as progress:
            answers[who] = engine.answer_all(
                conversations, max_tokens=s.config.training.tribunal.max_new_tokens, adapter=on, progress=progress
            )
    return answers


def _answers_on_card(s: RunSession, asked: Sequence[Example]) -> dict[str, list[str]]:
    """The same where a card is: all prompts in one batch, from the weights that a merge would write, one of the two models in memory at a time."""
    from noesis.llm.torch_generate import generate_batch, load_merged_model

    tokenizer, t = load_tokenizer(s.model.path), s.config.training.tribunal
    answers = {}
    for who, adapter in (("base", None), ("tuned", s.run.adapter())):
        with Progress(f"answer ({who})", len(asked), "prompts") as progress:
            model = load_merged_model(
                s.model.path,
                adapter,
                quantization=s.as_trained.lora.quantization,
                dtype=s.arithmetic,
                device=s.device.kind,
            )
            conversations = [prompt_messages(s.constitution, example) for example in asked]
            answers[who] = generate_batch(
                model, tokenizer, conversations, max_tokens=t.max_new_tokens, on_answer=progress.advance
            )
            del model
        gc.collect()
    return answers
