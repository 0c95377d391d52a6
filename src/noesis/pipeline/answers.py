"""Answers of base and tuned model: to the Tribunal's prompts (the trial) and to held-out examples (the stage judge)."""

from __future__ import annotations

import gc
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from noesis.core.config import TribunalSection
from noesis.core.console import Progress
from noesis.core.files import scratch_folder, sha256_file, sha256_json
from noesis.core.i18n import _, retold
from noesis.core.messages import Message
from noesis.dataset.encode import prompt_messages
from noesis.dataset.schema import Example
from noesis.llm.clients.reply_cache import open_cache
from noesis.llm.tokenizer import load_tokenizer
from noesis.pipeline.gguf_files import base_gguf, write_adapter
from noesis.pipeline.session import RunSession
from noesis.tribunal.scoring import MODELS, Generate, answer_prompts
from noesis.tribunal.suite import EvalSample


def answer_generator(s: RunSession, section: TribunalSection, tuned: Path, loaded: dict[str, Any]) -> Generate:
    """A `Generate` in batches, from the weights that a merge would write.

    Args:
        tuned: folder of the tuned model's adapter.
        loaded: where the one model is stored that is both, in turn; clear it to free the memory.
    """
    from noesis.llm.generation.batch import generate_batch

    tokenizer = load_tokenizer(s.model.path)

    def generate(model: str, conversations: list[list[Message]], seeds: list[int]) -> list[str]:
        return generate_batch(
            _answering_model(s, tuned, model, loaded),
            tokenizer,
            conversations,
            max_tokens=section.trial_tokens,
            temperature=section.temperature,
            seeds=seeds,
        )

    return generate


def answer_identities(s: RunSession, adapter: Path) -> dict[str, str]:
    """Hashes of what decides the answers of base and tuned model, besides prompt and seed; part of the cache's keys."""
    base = sha256_json([s.model.revision, s.as_trained.lora.quantization.model_dump(), s.arithmetic])
    return {"base": base, "tuned": sha256_json([base, sha256_file(adapter / "adapter_model.safetensors")])}


class MemoryAnswerStore(dict[str, str]):
    """Answers in memory, in place of a trial's cache."""

    def put_all(self, values: dict[str, str], /) -> None:
        self.update(values)


def generate_answers(s: RunSession, section: TribunalSection, items: Sequence[EvalSample]) -> dict[str, str]:
    """Both models' answers to some of a trial's prompts, by their keys in the trial's cache."""
    store, adapter = MemoryAnswerStore(), s.run.adapter()
    identity, generate = answer_identities(s, adapter), answer_generator(s, section, adapter, {})
    for model in MODELS:
        answer_prompts(
            items,
            s.constitution,
            generate,
            store,
            identity=identity[model],
            model=model,
            section=section,
            seed=s.config.training.seed,
        )
    return store


def store_answers(s: RunSession, found: dict[str, str]) -> None:
    """Store answers that another machine generated where the trial of this run looks for them."""
    with open_cache(s.run.tribunal / "replies.sqlite") as cache:
        cache.put_all(found)


def base_and_tuned_answers(s: RunSession, examples: Sequence[Example]) -> dict[str, list[str]]:
    """Greedy answers to examples, in order, by `base` and `tuned`.

    One engine for both: on a CPU llama.cpp with the adapter off and on, on a GPU torch with the weights switched.
    """
    if not examples:
        return {"base": [], "tuned": []}
    conversations = [prompt_messages(s.constitution, example) for example in examples]
    if s.device.kind == "cuda":
        return _answers_on_gpu(s, conversations)
    from noesis.llm.llama_cpp import LlamaEngine

    answers = {}
    with scratch_folder(s.run.tribunal, "answering") as folder:
        engine = LlamaEngine(
            base_gguf(s), adapter=write_adapter(s, folder), parallel=min(4, len(conversations)), context=2048
        )
        for model, on in (("base", False), ("tuned", True)):
            with Progress(_("answer ({model})", model=retold(model)), len(conversations), _("prompts")) as progress:
                answers[model] = engine.answer_all(
                    conversations, max_tokens=s.config.training.tribunal.max_new_tokens, adapter=on, progress=progress
                )
    return answers


def _answers_on_gpu(s: RunSession, conversations: list[list[Message]]) -> dict[str, list[str]]:
    from noesis.llm.generation.batch import generate_batch

    section = s.config.training.tribunal
    tokenizer, adapter = load_tokenizer(s.model.path), s.run.adapter()
    answers: dict[str, list[str]] = {}
    loaded: dict[str, Any] = {}
    for name in MODELS:
        with Progress(_("answer ({name})", name=retold(name)), len(conversations), _("prompts")) as progress:
            answers[name] = generate_batch(
                _answering_model(s, adapter, name, loaded),
                tokenizer,
                conversations,
                max_tokens=section.max_new_tokens,
                on_answer=progress.advance,
            )
    loaded.clear()
    gc.collect()
    return answers


def _answering_model(s: RunSession, adapter: Path, wanted: str, loaded: dict[str, Any]) -> Any:
    """The merged model, or the base alone, as the run was trained; loaded once, then turned from one into the other.

    Args:
        wanted: base or tuned.
        loaded: which of the two it is, and the model; empty at first.
    """
    from noesis.llm.causal_model import load_merged_model, switch_adapter

    quantization, on = s.as_trained.lora.quantization, wanted == "tuned"
    if not loaded:
        loaded["model"] = load_merged_model(
            s.model.path,
            adapter if on else None,
            quantization=quantization,
            dtype=s.arithmetic,
            device=s.device.kind,
        )
    elif loaded["is"] != wanted:
        switch_adapter(loaded["model"], s.model.path, adapter, on=on, quantization=quantization, dtype=s.arithmetic)
    loaded["is"] = wanted
    return loaded["model"]
