"""Capped attention of one sequence, a block of queries at a time: what FlashAttention's operators in torch don't do.

Scores are cap · tanh(scale · q·kᵀ / cap), as in Gemma-2 (https://arxiv.org/abs/2408.00118). n tokens of the sequence,
Q heads of queries, K of keys, D their width.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch

Tensor = Any
BLOCK = {"cpu": 256, "cuda": 1024}  # queries at a time: what stays in a CPU's cache, and few launches on a GPU


@dataclass(frozen=True)
class Scores:
    """How queries and keys are scored.

    scale: of their product
    window: how many tokens a token sees, itself included; None: all before it
    cap: x becomes cap · tanh(x / cap); None: it stays x
    """

    scale: float
    window: int | None = None
    cap: float | None = None

    @property
    def flash(self) -> dict[str, Any]:
        """Arguments of FlashAttention's operators; the window counts the tokens to the left."""
        window = {} if self.window is None else {"window_size_left": self.window - 1, "window_size_right": 0}
        return {"scale": self.scale, **window}


def forward(q: Tensor, k: Tensor, v: Tensor, scores: Scores) -> tuple[Tensor, Any]:
    """(output (n, Q, D), log-sum-exp of each block). q: (n, Q, D), k and v: (n, K, D)."""
    out, sums = torch.empty_like(q), []
    keys, values = k.transpose(0, 1), v.transpose(0, 1)  # (K, n, D)
    for rows, columns in _blocks(len(q), scores.window, BLOCK[q.device.type]):
        capped, _ = _scores(_grouped(q[rows], len(keys)), keys[:, columns], rows, columns, scores)
        lse = capped.logsumexp(-1, keepdim=True)
        weights = (capped - lse).exp_().to(v.dtype)
        out[rows] = _ungrouped(weights @ values[:, columns], q[rows].shape)
        sums.append(lse)
    return out, sums


def backward(
    d: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, sums: Any, scores: Scores
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of q, k and v from d: (n, Q, D)."""
    dq, heads = torch.empty_like(q), k.shape[1]
    keys, values = k.transpose(0, 1), v.transpose(0, 1)
    dk, dv = (torch.zeros(x.shape, dtype=torch.float32, device=x.device) for x in (keys, values))
    for (rows, columns), lse in zip(_blocks(len(q), scores.window, BLOCK[q.device.type]), sums, strict=True):
        queries, gradient = _grouped(q[rows], heads), _grouped(d[rows], heads)
        capped, tanh = _scores(queries, keys[:, columns], rows, columns, scores)
        weights = (capped - lse).exp_()
        dv[:, columns] += weights.to(d.dtype).transpose(1, 2) @ gradient
        inner = (gradient.float() * _grouped(out[rows], heads).float()).sum(-1, keepdim=True)
        ds = (gradient @ values[:, columns].transpose(1, 2)).float().sub_(inner).mul_(weights)
        ds = ds.mul_(1 - tanh * tanh).mul_(scores.scale).to(q.dtype)
        dq[rows] = _ungrouped(ds @ keys[:, columns], q[rows].shape)
        dk[:, columns] += ds.transpose(1, 2) @ queries
    return dq, dk.transpose(0, 1).to(k.dtype), dv.transpose(0, 1).to(v.dtype)


def _blocks(n: int, window: int | None, block: int) -> Iterator[tuple[slice, slice]]:
    """(queries, the keys that any of them sees)."""
    for start in range(0, n, block):
        end = min(start + block, n)
        yield slice(start, end), slice(0 if window is None else max(0, start - window + 1), end)


def _grouped(x: Tensor, heads: int) -> Tensor:
    """(b, Q, D) → (K, Q/K · b, D): the heads that share a key, one below the other."""
    b, all_heads, d = x.shape
    return x.view(b, heads, all_heads // heads, d).permute(1, 2, 0, 3).reshape(heads, -1, d)


def _ungrouped(x: Tensor, shape: tuple[int, int, int]) -> Tensor:
    """Back to (b, Q, D)."""
    b, _, d = shape
    return x.view(len(x), -1, b, d).permute(2, 0, 1, 3).reshape(shape)


def _scores(q: Tensor, k: Tensor, rows: slice, columns: slice, scores: Scores) -> tuple[Tensor, Tensor]:
    """(capped and masked, tanh), both float32 (K, Q/K · b, keys)."""
    assert scores.cap is not None
    tanh = (q @ k.transpose(1, 2)).float().mul_(scores.scale / scores.cap).tanh_()
    at = torch.arange(rows.start, rows.stop, device=q.device)[:, None]
    keys = torch.arange(columns.start, columns.stop, device=q.device)
    hidden = keys > at
    if scores.window is not None:
        hidden |= keys <= at - scores.window
    capped = tanh * scores.cap
    capped.view(len(tanh), -1, *hidden.shape).masked_fill_(hidden, float("-inf"))
    return capped, tanh
