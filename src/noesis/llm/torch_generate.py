"""Batched generation in torch: many conversations share each pass through the weights (`benchmarks/tribunal.py`).

On a CPU, a pass for one token is bound by memory, not by arithmetic, so that 32 conversations at once cost little more
than one. Sampling depends on prompt and seed alone: each conversation has a generator of its own, whatever else is in
its batch. (Rounding does depend on the batch, in the last bits, which can decide a near tie.) A prefix that the whole
batch shares (a system prompt, examples) is computed once.
"""

from __future__ import annotations

import gc
from collections.abc import Callable
from pathlib import Path
from typing import Any

from noesis.core.config import Quantization
from noesis.core.console import say
from noesis.core.errors import ModelError
from noesis.core.messages import Message
from noesis.core.text import common_prefix
from noesis.llm.causal_model import load_causal_model
from noesis.llm.chat_template import break_controls, end_of_turn, render
from noesis.llm.llama_cpp import REPEAT_PENALTY
from noesis.llm.tokenizer import ChatTokenizer
from noesis.llm.weights import iter_trained_weights, read_adapter

BATCH = 32  # conversations at once
PENALISED = 64  # last tokens that the repetition penalty considers
TOP_K = 40  # as llama.cpp's default
SHARED_FROM = 32  # shortest shared prefix, in tokens, that is worth computing separately


def generate_batch(
    model: Any,
    tokenizer: ChatTokenizer,
    conversations: list[list[Message]],
    *,
    max_tokens: int,
    temperature: float = 0.0,
    seeds: list[int] | None = None,
    batch: int = BATCH,
    on_answer: Callable[[int], None] | None = None,
) -> list[str]:
    """One answer to each conversation, in order.

    Args:
        model: a causal language model of transformers, with its adapter on or off.
        seeds: of each conversation, for a temperature above 0.
        on_answer: called with the number of new answers.

    Raises:
        ModelError: a conversation and its answer are longer than the model's context.
    """
    prompts = [
        tokenizer(render(tokenizer, break_controls(tokenizer, c), add_generation_prompt=True))["input_ids"]
        for c in conversations
    ]
    window = int(getattr(model.config, "max_position_embeddings", 0) or 1 << 30)
    longest = max((len(p) for p in prompts), default=0)
    if longest + max_tokens > window:
        raise ModelError(
            f"a prompt of {longest} tokens and an answer of {max_tokens} exceed the model's context of {window}: "
            "lower tribunal.trial_tokens"
        )
    seeds = seeds or [0] * len(prompts)
    end, eos = end_of_turn(tokenizer), tokenizer.eos_token_id  # as llama.cpp, which stops at both
    stops = [end] if eos is None else [end, eos]
    answers = [""] * len(prompts)
    order = sorted(range(len(prompts)), key=lambda i: len(prompts[i]))  # similar lengths together: less padding
    for start in range(0, len(order), batch):
        rows = order[start : start + batch]
        found = _generate(model, [prompts[i] for i in rows], [seeds[i] for i in rows], max_tokens, temperature, stops)
        for i, ids in zip(rows, found, strict=True):
            answers[i] = tokenizer.decode(ids).strip()
        if on_answer is not None:
            on_answer(len(rows))
    return answers


def _generate(
    model: Any, prompts: list[list[int]], seeds: list[int], max_tokens: int, temperature: float, stops: list[int]
) -> list[list[int]]:
    """Token ids of each answer, without the one of `stops` that ends it.

    Finished rows leave the batch once half of it is finished.
    """
    import torch
    from transformers import DynamicCache

    common = shared_beginning(prompts)
    width = max(map(len, prompts)) - common
    ids = torch.tensor(
        [[stops[0]] * (width + common - len(p)) + p[common:] for p in prompts], device=model.device
    )  # (rows, width), padded on the left
    mask = torch.tensor(
        [[1] * common + [0] * (width + common - len(p)) + [1] * (len(p) - common) for p in prompts], device=model.device
    )
    generators = [torch.Generator().manual_seed(seed) for seed in seeds]
    seen = [list(p) for p in prompts]
    rows = list(range(len(prompts)))  # which prompt each row of the batch is
    ended: set[int] = set()
    cache = DynamicCache(config=model.config)
    with torch.inference_mode():
        if common:
            first = torch.tensor([prompts[0][:common]], device=model.device)
            model(input_ids=first, past_key_values=cache, use_cache=True, logits_to_keep=1)
            cache.batch_repeat_interleave(len(prompts))
        positions = (mask.cumsum(1) - 1).clamp(min=0)[:, common:]
        for _ in range(max_tokens):
            out = model(
                input_ids=ids,
                attention_mask=mask,
                position_ids=positions,
                past_key_values=cache,
                use_cache=True,
                logits_to_keep=1,
            )
            logits = out.logits[:, -1].float().cpu()
            tokens = [_sample(logits[k], seen[row], temperature, generators[row]) for k, row in enumerate(rows)]
            for row, token in zip(rows, tokens, strict=True):
                if token in stops:
                    ended.add(row)
                elif row not in ended:
                    seen[row].append(token)
            active = [k for k, row in enumerate(rows) if row not in ended]
            if not active:
                break
            positions = positions[:, -1:] + 1
            ids = torch.tensor([[t] for t in tokens], device=model.device)
            mask = torch.cat([mask, mask.new_ones(len(rows), 1)], dim=1)
            if 2 * len(active) <= len(rows):
                keep = torch.tensor(active, device=model.device)
                cache.batch_select_indices(keep)
                ids, mask, positions = ids[keep], mask[keep], positions[keep]
                rows = [rows[k] for k in active]
    return [ids_[len(p) :] for ids_, p in zip(seen, prompts, strict=True)]


def shared_beginning(prompts: list[list[int]]) -> int:
    """Tokens of the prefix that all prompts share, leaving each at least one; 0 where it is too short to matter."""
    if len(prompts) < 2:
        return 0
    shared = common_prefix(min(prompts), max(prompts))  # in lexicographic order these two differ first
    length = min(shared, min(map(len, prompts)) - 1)
    return length if length >= SHARED_FROM else 0


def next_tokens(
    model: Any, tokenizer: ChatTokenizer, conversations: list[list[Message]], count: int
) -> list[list[tuple[str, float]]]:
    """The likeliest next tokens of each conversation, as (text, natural-log probability), the likeliest first.

    A last message whose role is assistant is continued.

    Args:
        count: how many tokens.
    """
    import torch

    found = []
    for messages in (break_controls(tokenizer, c) for c in conversations):
        prefill = messages[-1]["content"] if messages[-1]["role"] == "assistant" else ""
        text = render(tokenizer, messages[:-1] if prefill else messages, add_generation_prompt=True) + prefill
        ids = tokenizer(text)["input_ids"]
        with torch.inference_mode():
            logits = model(input_ids=torch.tensor([ids], device=model.device), logits_to_keep=1).logits[0, -1].float()
        top = torch.log_softmax(logits, -1).topk(min(count, len(logits)))
        found.append([(tokenizer.decode([int(i)]), float(p)) for p, i in zip(top.values, top.indices, strict=True)])
    return found


def _sample(logits: Any, seen: list[int], temperature: float, generator: Any) -> int:
    """The next token of one row. logits: (vocabulary,), changed in place."""
    import torch

    recent = torch.tensor(sorted(set(seen[-PENALISED:])))
    values = logits[recent]
    logits[recent] = torch.where(values > 0, values / REPEAT_PENALTY, values * REPEAT_PENALTY)
    if temperature == 0:
        return int(logits.argmax())
    top, places = logits.topk(min(TOP_K, len(logits)))
    return int(places[torch.multinomial(torch.softmax(top / temperature, -1), 1, generator=generator)])


def free_gpu_memory() -> None:
    """Free the GPU's memory as far as a running process can; does nothing without a GPU."""
    import torch

    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
        say(f"  the answering model has left the GPU: {torch.cuda.memory_allocated() / 2**30:.1f} GiB still in use")


def load_merged_model(
    base: Path, adapter_folder: Path | None, *, quantization: Quantization, dtype: str, device: str = "cpu"
) -> Any:
    """The merged model in memory, to generate answers with.

    Args:
        adapter_folder: None: the base alone, as it was trained against.
        dtype: of weights and arithmetic.
        device: `cpu` or `cuda`.
    """
    import torch

    model = load_causal_model(base, dtype=getattr(torch, dtype))
    adapter = read_adapter(adapter_folder) if adapter_folder is not None else None
    state = model.state_dict()
    with torch.inference_mode():
        for name, weight in iter_trained_weights(base, quantization, dtype, adapter):
            if name in state:  # tied weights are there once
                state[name].copy_(weight)
    return model.to(device).eval()
