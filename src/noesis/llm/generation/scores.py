"""Which of a few words a model would say next, after each of many endings of one beginning: no token is generated.

The beginning is computed once and its keys and values are shared by its endings, which are one batch. On a GPU several
beginnings with all of their endings share a pass.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

from noesis.core.errors import ModelError
from noesis.core.messages import Message
from noesis.core.text import common_prefix
from noesis.llm.chat_template import break_controls, render
from noesis.llm.clients.protocol import ScoreRequest
from noesis.llm.generation.static_decoder import rows_that_fit
from noesis.llm.tokenizer import ChatTokenizer

ROWS = 32  # endings that share a pass on a CPU
IMPOSSIBLE = -100.0  # natural-log probability below which a token is not told


class ScoredEnding(NamedTuple):
    """tokens: of the whole prompt; likely: (spelling of a choice, natural-log probability)."""

    tokens: int
    likely: tuple[tuple[str, float], ...]


class ChoiceTokens:
    """The tokens of one model that spell one of some words, alone or with space around it."""

    def __init__(self, tokenizer: ChatTokenizer, choices: tuple[str, ...]) -> None:
        spellings = [before + choice + after for choice in choices for before in ("", " ", "\n") for after in ("", " ")]
        encoded = [tokenizer(text)["input_ids"] for text in spellings]
        self.spelling = {ids[0]: text for ids, text in zip(encoded, spellings, strict=True) if len(ids) == 1}
        self.ids = list(self.spelling)


def score_endings(model: Any, tokenizer: ChatTokenizer, requests: list[ScoreRequest]) -> list[list[ScoredEnding]]:
    """How likely each spelling of the choices comes next, of each ending of each request.

    Args:
        model: a causal language model of transformers.

    Raises:
        ModelError: a prompt is longer than the model's context, or no choice is a token of this model.
    """
    import torch

    rows = [_token_rows(tokenizer, request) for request in requests]  # (request, ending) → token ids
    longest = max(len(row) for of_request in rows for row in of_request)
    window = int(getattr(model.config, "max_position_embeddings", 0) or 1 << 30)
    if longest > window:
        raise ModelError(f"a prompt of {longest} tokens exceeds the model's context of {window}")
    tokens = ChoiceTokens(tokenizer, requests[0].choices)
    if not tokens.ids:
        raise ModelError(f"none of {', '.join(requests[0].choices)} is a token of this model: use --ask quote")
    most = rows_that_fit(model, longest) if model.device.type == "cuda" else ROWS
    found: list[list[ScoredEnding]] = [[] for _ in requests]
    with torch.inference_mode():
        for part in _parts([len(of_request) for of_request in rows], most):
            chosen = [(i, rows[i][first:last]) for i, first, last in part]
            table = _next_logprobs(model, [endings for _, endings in chosen], tokens.ids)
            lines = iter(table.tolist())
            for i, endings in chosen:
                for row in endings:
                    pairs = zip(tokens.spelling.values(), next(lines), strict=True)
                    found[i].append(ScoredEnding(len(row), tuple(pair for pair in pairs if pair[1] > IMPOSSIBLE)))
    return found


def _token_rows(tokenizer: ChatTokenizer, request: ScoreRequest) -> list[list[int]]:
    rows = []
    for ending in request.endings:
        messages: list[Message] = [{"role": r, "content": t} for r, t in request.conversation(ending)]
        text = render(tokenizer, break_controls(tokenizer, messages), add_generation_prompt=True) + request.opening
        rows.append(list(tokenizer(text)["input_ids"]))
    return rows


def _parts(counts: list[int], most: int) -> Iterator[list[tuple[int, int, int]]]:
    """(request, first ending, the one after the last) of each pass: at most `most` endings together, in order."""
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
    shared = [min(min(common_prefix(rows[0], row) for row in rows), min(map(len, rows)) - 1) for rows in groups]
    starts, mask = _padded([rows[0][:length] for rows, length in zip(groups, shared, strict=True)], device)
    cache = DynamicCache(config=model.config)
    counts = torch.tensor([len(rows) for rows in groups], device=device)
    if starts.shape[1]:
        _forward(model, starts, mask, mask, cache)
        cache.batch_select_indices(torch.arange(len(groups), device=device).repeat_interleave(counts))
    ends, own = _padded(
        [row[length:] for rows, length in zip(groups, shared, strict=True) for row in rows], device
    )
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
