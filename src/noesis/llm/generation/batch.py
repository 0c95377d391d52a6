"""Batched generation in torch: many conversations share each pass through the weights (`benchmarks/tribunal.py`).

A pass for one token is bound by memory, not by arithmetic, so that 32 conversations at once cost little more than one.
Sampling depends on prompt and seed alone: each conversation has random numbers of its own, whatever else is in its
batch. (Rounding does depend on the batch, in the last bits, which can decide a near tie.)

A GPU decodes by `static_decoder.py`. On a CPU the cache grows with the answers, finished rows leave, and a prefix that
the whole batch shares (a system prompt, examples) is computed once.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from noesis.core.errors import ModelError
from noesis.core.i18n import _
from noesis.core.messages import Message
from noesis.core.text import common_prefix
from noesis.llm.chat_template import break_controls, end_of_turn, render
from noesis.llm.generation.sampling import PENALISED, next_token, sampling_noise
from noesis.llm.generation.static_decoder import attends_in_every_layer, decode_statically, rows_that_fit
from noesis.llm.tokenizer import ChatTokenizer

BATCH = 32  # conversations at once on a CPU
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
            _(
                "a prompt of {longest} tokens and an answer of {max_tokens} exceed the model's context of {window}: "
                "lower tribunal.trial_tokens",
                longest=longest,
                max_tokens=max_tokens,
                window=window,
            )
        )
    seeds = seeds or [0] * len(prompts)
    stops = sorted({i for i in (end_of_turn(tokenizer), tokenizer.eos_token_id) if i is not None})
    static = model.device.type == "cuda" and attends_in_every_layer(model)
    if static:
        batch = rows_that_fit(model, longest + max_tokens)
    answers = [""] * len(prompts)
    order = sorted(range(len(prompts)), key=lambda i: len(prompts[i]))  # similar lengths together: less padding
    for start in range(0, len(order), batch):
        rows = order[start : start + batch]
        found = (decode_statically if static else _decode)(
            model,
            [prompts[i] for i in rows],
            max_tokens=max_tokens,
            temperature=temperature,
            noise=sampling_noise([seeds[i] for i in rows], max_tokens),
            stops=stops,
        )
        for i, ids in zip(rows, found, strict=True):
            answers[i] = tokenizer.decode(ids).strip()
        if on_answer is not None:
            on_answer(len(rows))
    return answers


def _decode(
    model: Any, prompts: list[list[int]], *, max_tokens: int, temperature: float, noise: Any, stops: list[int]
) -> list[list[int]]:
    """Token ids of each answer, without the one of `stops` that ends it.

    Finished rows leave the batch once half of it is finished.
    """
    import torch
    from transformers import DynamicCache

    common = shared_beginning(prompts)
    width, pad = max(map(len, prompts)) - common, stops[0]
    ids = torch.tensor(
        [[pad] * (width + common - len(p)) + p[common:] for p in prompts], device=model.device
    )  # (rows, width), padded on the left
    mask = torch.tensor(
        [[1] * common + [0] * (width + common - len(p)) + [1] * (len(p) - common) for p in prompts], device=model.device
    )
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
        for draw in range(max_tokens):
            out = model(
                input_ids=ids,
                attention_mask=mask,
                position_ids=positions,
                past_key_values=cache,
                use_cache=True,
                logits_to_keep=1,
            )
            recent = torch.tensor([_last(seen[row]) for row in rows])
            tokens = next_token(out.logits[:, -1].float().cpu(), recent, temperature, noise[rows, draw])
            for row, token in zip(rows, tokens.tolist(), strict=True):
                if token in stops:
                    ended.add(row)
                elif row not in ended:
                    seen[row].append(token)
            active = [k for k, row in enumerate(rows) if row not in ended]
            if not active:
                break
            positions = positions[:, -1:] + 1
            ids = tokens[:, None].to(model.device)
            mask = torch.cat([mask, mask.new_ones(len(rows), 1)], dim=1)
            if 2 * len(active) <= len(rows):
                keep = torch.tensor(active, device=model.device)
                cache.batch_select_indices(keep)
                ids, mask, positions = ids[keep], mask[keep], positions[keep]
                rows = [rows[k] for k in active]
    return [ids_[len(p) :] for ids_, p in zip(seen, prompts, strict=True)]


def _last(tokens: list[int]) -> list[int]:
    """The last PENALISED tokens; if there are fewer, the first of them again and again."""
    last = tokens[-PENALISED:]
    return last[:1] * (PENALISED - len(last)) + last


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
    for messages in conversations:
        ids = torch.tensor([prompt_ids(tokenizer, messages)], device=model.device)
        with torch.inference_mode():
            logits = model(input_ids=ids, logits_to_keep=1).logits[0, -1].float()
        top = torch.log_softmax(logits, -1).topk(min(count, len(logits)))
        found.append([(tokenizer.decode([int(i)]), float(p)) for p, i in zip(top.values, top.indices, strict=True)])
    return found


def prompt_ids(tokenizer: ChatTokenizer, conversation: list[Message]) -> list[int]:
    """The tokens that a model reads before it says the next one; a last message of the assistant's is continued."""
    messages = break_controls(tokenizer, conversation)
    begun = messages[-1]["content"] if messages[-1]["role"] == "assistant" else ""
    text = render(tokenizer, messages[:-1] if begun else messages, add_generation_prompt=True) + begun
    return list(tokenizer(text)["input_ids"])
