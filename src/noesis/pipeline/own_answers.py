"""The base's own answers to everyday requests, which are replayed against forgetting: `replay: {file: self}`.

They are written greedily before the first step, and kept in the run: a run that goes on, and one that is made again
(`noesis replay`), trains on the same.
"""

from __future__ import annotations

import gc
from pathlib import Path

from noesis.core.console import Progress, say
from noesis.core.files import make_folder, sha256_json, write_json
from noesis.core.i18n import _, ngettext
from noesis.core.jsonl import read_json_file
from noesis.core.messages import Message
from noesis.dataset.everyday import own_conversations, say_if_few
from noesis.llm.tokenizer import load_tokenizer
from noesis.pipeline.gguf_files import base_gguf
from noesis.pipeline.session import RunSession
from noesis.training.methods import OWN_ANSWERS_FILE


def own_answers(s: RunSession) -> list[str] | None:
    """The base's answer to each of `own_conversations`; None where the run replays none."""
    asked = own_conversations(s.config, s.dataset, s.constitution)
    if not s.config.training.replay.by_base or s.training_set.rows is None:
        return None
    say_if_few(s.config, len(s.dataset.train), asked)
    conversations = [messages for _, messages in asked]
    limit = s.config.training.replay.max_new_tokens
    file = s.run.checkpoints / OWN_ANSWERS_FILE
    key = sha256_json([s.model.revision, conversations, limit])
    stored = _stored(file, key, len(conversations))
    if stored is None:
        say(
            _(
                "  the base answers {requests}, which are replayed against forgetting",
                requests=ngettext("{count:,} everyday request", "{count:,} everyday requests", len(asked)),
            )
        )
        stored = _answers(s, conversations, limit) if conversations else []
        make_folder(file.parent)
        write_json(file, {"key": key, "sha256": sha256_json(stored), "answers": stored})
    return stored


def _stored(file: Path, key: str, count: int) -> list[str] | None:
    """The answers as they were written; None: there are none, or they are of other questions, or changed."""
    try:
        found = read_json_file(file, constants=False)
        answers = found["answers"]
        valid = found["key"] == key and found["sha256"] == sha256_json(answers) and len(answers) == count
        return answers if valid and all(isinstance(answer, str) for answer in answers) else None
    except (FileNotFoundError, ValueError, KeyError, TypeError, AttributeError):
        return None


def _answers(s: RunSession, conversations: list[list[Message]], limit: int) -> list[str]:
    """Greedy answers of the base as it is trained on: by llama.cpp on a CPU, by torch on a GPU."""
    with Progress(_("answer (base)"), len(conversations), _("prompts")) as progress:
        if s.device.kind == "cuda":
            return _answers_on_gpu(s, conversations, limit, progress)
        from noesis.llm.llama_cpp import LlamaEngine

        engine = LlamaEngine(base_gguf(s), parallel=min(4, len(conversations)), context=2048 + limit)
        return engine.answer_all(conversations, max_tokens=limit, adapter=False, progress=progress)


def _answers_on_gpu(s: RunSession, conversations: list[list[Message]], limit: int, progress: Progress) -> list[str]:
    from noesis.llm.causal_model import load_merged_model
    from noesis.llm.generation.batch import generate_batch

    model = load_merged_model(
        s.model.path, None, quantization=s.as_trained.lora.quantization, dtype=s.arithmetic, device=s.device.kind
    )
    answers = generate_batch(
        model, load_tokenizer(s.model.path), conversations, max_tokens=limit, on_answer=progress.advance
    )
    del model
    gc.collect()
    return answers
