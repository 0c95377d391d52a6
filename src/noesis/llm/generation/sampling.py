"""How a token is chosen, for all rows of a batch at once, on whatever device the logits are."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from noesis.llm.llama_cpp import REPEAT_PENALTY

PENALISED = 64  # last tokens that the repetition penalty considers
TOP_K = 40  # as llama.cpp's default


def sampling_noise(seeds: Sequence[int], max_tokens: int) -> Any:
    """The random numbers of each row's draws, from its seed alone: exponential, float32 (rows, max_tokens, TOP_K)."""
    import torch

    smallest = torch.finfo(torch.float32).tiny
    rows = [
        torch.empty(max_tokens, TOP_K).exponential_(generator=torch.Generator().manual_seed(seed)) for seed in seeds
    ]
    return torch.stack(rows).clamp_(min=smallest)


def next_token(logits: Any, recent: Any, temperature: float, noise: Any) -> Any:
    """The next token of each row: (rows,).

    Args:
        logits: float32 (rows, vocabulary), changed in place.
        recent: the last tokens of each row, (rows, PENALISED); a row that is shorter repeats one of its own.
        noise: this draw's random numbers, (rows, TOP_K); unused at temperature 0.
    """
    import torch

    values = logits.gather(1, recent)
    logits.scatter_(1, recent, torch.where(values > 0, values / REPEAT_PENALTY, values * REPEAT_PENALTY))
    if temperature == 0:
        return logits.argmax(1)
    top, places = logits.topk(min(TOP_K, logits.shape[1]))
    # the smallest of exponential numbers with these rates: a draw from their distribution
    chosen = (torch.softmax(top / temperature, 1) / noise[:, : top.shape[1]]).argmax(1, keepdim=True)
    return places.gather(1, chosen)[:, 0]
