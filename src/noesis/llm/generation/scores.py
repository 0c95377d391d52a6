"""Which of a few words a model would say next, after each of many endings of one beginning: no token is generated.

The beginning is computed once and its keys and values are shared by its endings, which are one batch. On a GPU several
beginnings with all of their endings share a pass.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

from noesis.core.errors import ModelError
from noesis.core.i18n import _
from noesis.core.messages import Message
from noesis.core.text import common_prefix
from noesis.llm.generation.batch import prompt_ids
from noesis.llm.generation.static_decoder import rows_that_fit
from noesis.llm.tokenizer import ChatTokenizer

ROWS = 32  # endings that share a pass on a CPU
IMPOSSIBLE = -100.0  # natural-log probability below which a token is not told


class ScoredEnding(NamedTuple):
    """tokens: of the whole prompt; likely: (spelling of a choice, natural-log probability)."""

    tokens: int
    likely: tuple[tuple[str, float], ...]


def spelling_tokens(tokenizer: ChatTokenizer, choices: tuple[str, ...]) -> dict[int, str]:
    """The tokens of one model that are one of some words, alone or with space around it, and their texts."""
    found = {}
    for choice in choices:
        for text in (choice, f" {choice}", f"\n{choice}", f"{choice} "):
            for token in tokenizer(text)["input_ids"]:
                if tokenizer.decode([token]).strip() == choice:
                    found[token] = tokenizer.decode([token])
    return found


def score_endings(
    model: Any, tokenizer: ChatTokenizer, groups: list[list[list[Message]]], choices: tuple[str, ...]
) -> list[list[ScoredEnding]]:
    """How likely each spelling of the choices comes next after each conversation.

    Args:
        model: a causal language model of transformers.
        groups: conversations; those of one group begin alike. A last message of the assistant's is continued.

    Raises:
        ModelError: a prompt is longer than the model's context, or no choice is a token of this model.
    """
    import torch

    rows = [[prompt_ids(tokenizer, conversation) for conversation in group] for group in groups]
    longest = max(len(row) for group in rows for row in group)
    window = int(getattr(model.config, "max_position_embeddings", 0) or 1 << 30)
    if longest > window:
        raise ModelError(
            _("a prompt of {longest} tokens exceeds the model's context of {window}", longest=longest, window=window)
        )
    tokens = spelling_tokens(tokenizer, choices)
    if not tokens:
        raise ModelError(_("none of {choices} is a token of this model: use --ask quote", choices=", ".join(choices)))
    most = rows_that_fit(model, longest) if model.device.type == "cuda" else ROWS
    found: list[list[ScoredEnding]] = [[] for _ in groups]
    with torch.inference_mode():
        for part in _parts([len(group) for group in rows], most):
            chosen = [(i, rows[i][first:last]) for i, first, last in part]
            table = _next_logprobs(model, [endings for _, endings in chosen], list(tokens))
            lines = iter(table.tolist())
            for i, endings in chosen:
                for row in endings:
                    pairs = zip(tokens.values(), next(lines), strict=True)
                    found[i].append(ScoredEnding(len(row), tuple(pair for pair in pairs if pair[1] > IMPOSSIBLE)))
    return found


def _parts(counts: list[int], most: int) -> Iterator[list[tuple[int, int, int]]]:
    """(group, first ending, the one after the last) of each pass: at most `most` endings together, in order."""
    part: list[tuple[int, int, int]] = []
    room = most
    for i, count in enumerate(counts):
        first = 0
        while first < count:
            if not room:
                yield part
                part, room = [], most
            last = min(count, first + room)
            part.append((i, first, last))
            room -= last - first
            first = last
    if part:
        yield part


def _next_logprobs(model: Any, groups: list[list[list[int]]], ids: list[int]) -> Any:
    """Natural-log probabilities of the tokens `ids` after each row, float32 (rows, len(ids)).

    Args:
        groups: rows of token ids; those of one group begin alike.
    """
    import torch
    from transformers import DynamicCache

    device = model.device
    shared = [min(common_prefix(rows[0], row[:-1]) for row in rows) for rows in groups]  # each row keeps one to read
    starts, mask = _padded([rows[0][:length] for rows, length in zip(groups, shared, strict=True)], device)
    cache = DynamicCache(config=model.config)
    counts = torch.tensor([len(rows) for rows in groups], device=device)
    if starts.shape[1]:
        _forward(model, starts, mask, mask, cache)
        cache.batch_select_indices(torch.arange(len(groups), device=device).repeat_interleave(counts))
    ends, own = _padded([row[length:] for rows, length in zip(groups, shared, strict=True) for row in rows], device)
    seen = torch.cat([mask.repeat_interleave(counts, dim=0), own], dim=1)
    logits = _forward(model, ends, seen, own, cache)[:, -1].float()
    return (logits[:, ids] - logits.logsumexp(-1, keepdim=True)).cpu()


def _padded(rows: list[list[int]], device: Any) -> tuple[Any, Any]:
    """Rows padded on the left, and which of their places are not padding: both (rows, width)."""
    import torch

    width = max(map(len, rows))
    ids = torch.tensor([[0] * (width - len(row)) + row for row in rows], dtype=torch.long, device=device)
    mask = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in rows], dtype=torch.long, device=device)
    return ids, mask


def _forward(model: Any, ids: Any, seen: Any, own: Any, cache: Any) -> Any:
    positions = (seen.cumsum(1) - 1).clamp(min=0)[:, -own.shape[1] :]
    out = model(
        input_ids=ids,
        attention_mask=seen,
        position_ids=positions,
        past_key_values=cache,
        use_cache=True,
        logits_to_keep=1,
    )
    return out.logits
