"""Answers of base and tuned model: for the stage judge, the trial, and machines that share a trial's answers."""

from __future__ import annotations

import gc
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from noesis.constitution.dialogue import opening_messages
from noesis.core.config import TribunalSection
from noesis.core.console import Progress
from noesis.core.files import sha256_file, sha256_json
from noesis.core.messages import Message
from noesis.llm.clients.reply_cache import open_cache
from noesis.llm.tokenizer import load_tokenizer
from noesis.pipeline.gguf_files import base_gguf, write_adapter
from noesis.pipeline.session import Records, RunSession
from noesis.tribunal.scoring import MODELS, Generate, answer_prompts
from noesis.tribunal.suite import EvalSample


def answer_generator(s: RunSession, section: TribunalSection, tuned: Path, loaded: dict[str, Any]) -> Generate:
    """Generates answers of base and tuned model in batches, from the weights that a merge would write.

    Args:
        tuned: folder of the adapter.
        loaded: holds the one model that is in memory, so that the caller can free it.
    """
    from noesis.llm.torch_generate import generate_batch, load_merged_model

    tokenizer = load_tokenizer(s.model.path)

    def generate(who: str, conversations: list[list[Message]], seeds: list[int]) -> list[str]:
        if who not in loaded:
            loaded.clear()
            adapter = tuned if who == "tuned" else None
            loaded[who] = load_merged_model(
                s.model.path,
                adapter,
                quantization=s.as_trained.lora.quantization,
                dtype=s.arithmetic,
                device=s.device.kind,
            )
        return generate_batch(
            loaded[who],
            tokenizer,
            conversations,
            max_tokens=section.trial_tokens,
            temperature=section.temperature,
            seeds=seeds,
        )

    return generate


def answer_identities(s: RunSession, adapter: Path) -> dict[str, str]:
    """Hashes of what decides the answers of base and tuned model, apart from prompt and seed."""
    base = sha256_json([s.model.revision, s.as_trained.lora.quantization.model_dump(), s.arithmetic])
    return {"base": base, "tuned": sha256_json([base, sha256_file(adapter / "adapter_model.safetensors")])}


class MemoryAnswerStore(dict[str, str]):
    """Answers in memory, instead of in a trial's cache."""

    def put_all(self, values: dict[str, str], /) -> None:
        self.update(values)


def generate_answers(s: RunSession, section: TribunalSection, items: Sequence[EvalSample]) -> dict[str, str]:
    """Answers of both models to some of a trial's prompts, under the keys of the trial's cache."""
    store, adapter = MemoryAnswerStore(), s.run.adapter()
    identity, generate = answer_identities(s, adapter), answer_generator(s, section, adapter, {})
    for who in MODELS:
        answer_prompts(
            items,
            s.constitution,
            generate,
            store,
            identity=identity[who],
            who=who,
            section=section,
            seed=s.config.training.seed,
        )
    return store


def store_answers(s: RunSession, found: dict[str, str]) -> None:
    """Store answers from another machine where the trial of this run looks for them."""
    with open_cache(s.run.tribunal / "replies.sqlite") as cache:
        cache.put_all(found)


def base_and_tuned_answers(s: RunSession, prompts: Records) -> dict[str, list[str]]:
    """Greedy answers of both models.

    On a GPU by torch; else by llama.cpp in one process, on the base that was trained on, with the adapter off and on.
    """
    if not prompts:
        return {"base": [], "tuned": []}
    if s.device.kind == "cuda":
        return _answers_on_gpu(s, prompts)
    from noesis.llm.llama_cpp import LlamaEngine

    adapter = write_adapter(s)
    conversations = [opening_messages(s.constitution, record) for record in prompts]
    engine = LlamaEngine(base_gguf(s), adapter=adapter, parallel=min(4, len(prompts)), context=2048)
    answers = {}
    for who, on in (("base", False), ("tuned", True)):
        with Progress(f"answer ({who})", len(prompts), "prompts") as progress:
            answers[who] = engine.answer_all(
                conversations, max_tokens=s.config.training.tribunal.max_new_tokens, adapter=on, progress=progress
            )
    return answers


def _answers_on_gpu(s: RunSession, prompts: Records) -> dict[str, list[str]]:
    """All prompts in one batch, from the weights that a merge would write; one model in memory at a time."""
    from noesis.llm.torch_generate import generate_batch, load_merged_model

    tokenizer, t = load_tokenizer(s.model.path), s.config.training.tribunal
    answers = {}
    for who, adapter in (("base", None), ("tuned", s.run.adapter())):
        with Progress(f"answer ({who})", len(prompts), "prompts") as progress:
            model = load_merged_model(
                s.model.path,
                adapter,
                quantization=s.as_trained.lora.quantization,
                dtype=s.arithmetic,
                device=s.device.kind,
            )
            conversations = [opening_messages(s.constitution, record) for record in prompts]
            answers[who] = generate_batch(
                model, tokenizer, conversations, max_tokens=t.max_new_tokens, on_answer=progress.advance
            )
            del model
        gc.collect()
    return answers
