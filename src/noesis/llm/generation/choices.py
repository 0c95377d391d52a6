"""How likely a model finds each of a few given answers to a prompt: no token is generated.

The prompt is computed once and its keys and values are shared by its answers; several prompts share a pass.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from noesis.core.messages import Message
from noesis.core.text import common_prefix
from noesis.llm.chat_template import encode
from noesis.llm.generation.static_decoder import attends_in_every_layer
from noesis.llm.tokenizer import ChatTokenizer

ROWS = 64  # answers that share a pass


def choice_log_likelihoods(
    model: Any,
    tokenizer: ChatTokenizer,
    prompts: list[list[Message]],
    choices: list[tuple[str, ...]],
    *,
    on_prompts: Callable[[int], None] | None = None,
) -> list[list[float]]:
    """Natural-log probability of each choice as the whole answer, its end of turn included, to each prompt.

    Args:
        model: a causal language model of transformers, with its adapter on or off.
        choices: of each prompt, at least one.
        on_prompts: called with the number of prompts that were read.

    Raises:
        TrainingError: the model's chat template refuses a prompt or rewrites an answer.
    """
    import torch

    groups = [
        [encode(tokenizer, prompt, choice, name=repr(choice)).input_ids for choice in options]
        for prompt, options in zip(prompts, choices, strict=True)
    ]
    starts = [
        encode(tokenizer, prompt, options[0], name="prompt") for prompt, options in zip(prompts, choices, strict=True)
    ]
    answers = [len(row.input_ids) - row.trained for row in starts]  # where the answer begins
    order = sorted(range(len(groups)), key=lambda i: len(groups[i][0]))  # similar lengths together: less padding
    found: list[list[float]] = [[] for _ in groups]
    together = attends_in_every_layer(model)
    with torch.inference_mode():
        while order:
            part = [order.pop(0)]
            while together and order and sum(len(groups[i]) for i in [*part, order[0]]) <= ROWS:
                part.append(order.pop(0))
            score = _shared if together else _one_by_one
            scores = score(model, [groups[i] for i in part], [answers[i] for i in part])
            for i, values in zip(part, scores, strict=True):
                found[i] = values
            if on_prompts is not None:
                on_prompts(len(part))
    return found


def _one_by_one(model: Any, groups: list[list[list[int]]], firsts: list[int]) -> list[list[float]]:
    """As `_shared`, each row in a pass of its own: for layers that can't be padded on the left."""
    import torch

    found = []
    for rows, first in zip(groups, firsts, strict=True):
        values = []
        for row in rows:
            ids = torch.tensor([row], device=model.device)
            logits = model(input_ids=ids, logits_to_keep=len(row) - first + 1, use_cache=False).logits[0, :-1].float()
            values.append(float(_of(logits[None], ids[:, first:]).double().sum()))
        found.append(values)
    return found


def _shared(model: Any, groups: list[list[list[int]]], firsts: list[int]) -> list[list[float]]:
    """The log probability of each row's tokens from its answer's first on.

    Args:
        groups: rows of token ids; those of one group begin alike.
        firsts: where the answer begins in the rows of each group.
    """
    import torch
    from transformers import DynamicCache

    device = model.device
    # what a group shares, but for the token before the answer, which predicts its first
    shared = [
        min(first - 1, *(common_prefix(rows[0], row) for row in rows))
        for rows, first in zip(groups, firsts, strict=True)
    ]
    width = max(shared)
    ids = torch.tensor([[0] * (width - n) + rows[0][:n] for rows, n in zip(groups, shared, strict=True)], device=device)
    mask = torch.tensor([[0] * (width - n) + [1] * n for n in shared], device=device)
    counts = torch.tensor([len(rows) for rows in groups], device=device)
    cache = DynamicCache(config=model.config)
    if width:
        positions = (mask.cumsum(1) - 1).clamp(min=0)
        model(
            input_ids=ids,
            attention_mask=mask,
            position_ids=positions,
            past_key_values=cache,
            use_cache=True,
            logits_to_keep=1,
        )
        cache.batch_select_indices(torch.arange(len(groups), device=device).repeat_interleave(counts))
    ends = [row[n:] for rows, n in zip(groups, shared, strict=True) for row in rows]
    skipped = [f - 1 - n for rows, f, n in zip(groups, firsts, shared, strict=True) for _ in rows]
    longest = max(map(len, ends))
    tail = torch.tensor([row + [0] * (longest - len(row)) for row in ends], device=device)
    own = torch.tensor([[1] * len(row) + [0] * (longest - len(row)) for row in ends], device=device)
    seen = torch.cat([mask.repeat_interleave(counts, dim=0), own], dim=1)
    places = (seen.cumsum(1) - 1).clamp(min=0)[:, width:]
    logits = model(
        input_ids=tail, attention_mask=seen, position_ids=places, past_key_values=cache, use_cache=True
    ).logits[:, :-1]
    scores = _of(logits.float(), tail[:, 1:])  # (rows, longest - 1)
    column = torch.arange(1, longest, device=device)
    answer = (own[:, 1:] == 1) & (column[None] > torch.tensor(skipped, device=device)[:, None])
    sums = iter((scores.double() * answer).sum(1).tolist())
    return [[next(sums) for _ in rows] for rows in groups]


def _of(logits: Any, ids: Any) -> Any:
    """Natural-log probabilities of `ids` (rows, length) by logits (rows, length, vocabulary)."""
    return logits.gather(2, ids[..., None])[..., 0] - logits.logsumexp(-1)
