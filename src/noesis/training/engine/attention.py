"""Causal attention within the sequences of one packed row: no token sees another sequence.

On a GPU FlashAttention (Dao, https://arxiv.org/abs/2307.08691) through torch's own operator; on a CPU torch's fused
attention, a sequence at a time; capped scores by `blockwise`, on both.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import torch

from noesis.training.engine import blockwise
from noesis.training.engine.blockwise import Scores

Tensor = Any
Backend = Literal["flash", "torch", "blockwise"]


@dataclass(frozen=True)
class Segments:
    """Where the sequences of a row begin and end.

    bounds: cumulative lengths, int32 (sequences + 1,), on the device
    longest: the longest length, rounded up to a multiple of 128
    """

    lengths: tuple[int, ...]
    bounds: Tensor
    longest: int

    @classmethod
    def of(cls, lengths: list[int], device: Any) -> Segments:
        bounds = torch.tensor([0, *lengths], dtype=torch.int32).cumsum(0, dtype=torch.int32)
        return cls(tuple(lengths), bounds.to(device, non_blocking=True), -(-max(lengths) // 128) * 128)


@dataclass
class Attended:
    """Output (T, Q, D) and what backward needs in addition to the inputs."""

    out: Tensor
    lse: Tensor | None
    state: Any  # FlashAttention's random state; otherwise (output, log-sum-exp) of each sequence


def forward(q: Tensor, k: Tensor, v: Tensor, segments: Segments, scores: Scores, backend: Backend) -> Attended:
    """q: (T, Q, D), k and v: (T, K, D)."""
    b, n = segments.bounds, segments.longest
    if backend == "flash":
        out, lse, state, unused, _ = torch.ops.aten._flash_attention_forward(
            q, k, v, b, b, n, n, 0.0, True, False, **scores.flash
        )
        return Attended(out, lse, (state, unused))
    one = blockwise.forward if backend == "blockwise" else _host_forward
    parts = [one(x, y, z, scores) for x, y, z in _split(segments, q, k, v)]
    return Attended(torch.cat([out for out, _ in parts]), None, parts)


def backward(
    dout: Tensor, q: Tensor, k: Tensor, v: Tensor, saved: Attended, segments: Segments, scores: Scores, backend: Backend
) -> tuple[Tensor, ...]:
    """Gradients of q, k, v in their shapes."""
    b, n = segments.bounds, segments.longest
    if backend == "flash":
        return tuple(
            torch.ops.aten._flash_attention_backward(
                dout, q, k, v, saved.out, saved.lse, b, b, n, n, 0.0, True, *saved.state, **scores.flash
            )  # type: ignore[index]
        )
    one = blockwise.backward if backend == "blockwise" else _host_backward
    gradients = [
        one(d, x, y, z, out, lse, scores)
        for (d, x, y, z), (out, lse) in zip(_split(segments, dout, q, k, v), saved.state, strict=True)
    ]
    return tuple(torch.cat(g) for g in zip(*gradients, strict=True))


def _split(segments: Segments, *tensors: Tensor) -> Any:
    return zip(*(t.split(list(segments.lengths)) for t in tensors), strict=True)


def _heads_first(x: Tensor, repeat: int = 1) -> Tensor:
    """(T, heads, D) → (1, heads · repeat, T, D), as torch's CPU kernels take it."""
    return (x if repeat == 1 else x.repeat_interleave(repeat, dim=1)).transpose(0, 1)[None]


def _host_mask(n: int, scores: Scores, like: Tensor) -> Tensor | None:
    """What is added to the scores of a sequence longer than the window: (n, n), 0 or -inf; None: causal will do."""
    if scores.window is None or n <= scores.window:
        return None
    hidden = torch.ones((n, n), dtype=torch.bool).tril_(-scores.window) | torch.ones((n, n), dtype=torch.bool).triu_(1)
    return torch.zeros((n, n), dtype=like.dtype).masked_fill_(hidden, float("-inf"))


def _host_forward(q: Tensor, k: Tensor, v: Tensor, scores: Scores) -> tuple[Tensor, Any]:
    """(output (T, Q, D), log-sum-exp) of one sequence."""
    each, mask = q.shape[1] // k.shape[1], _host_mask(len(q), scores, q)
    out, lse = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
        _heads_first(q), _heads_first(k, each), _heads_first(v, each), 0.0, mask is None,
        attn_mask=mask, scale=scores.scale,
    )  # fmt: skip
    return out[0].transpose(0, 1), lse


def _host_backward(
    d: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Any, scores: Scores
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of one sequence's q, k, v; those of heads that share a key are summed."""
    (n, heads, width), each = k.shape, q.shape[1] // k.shape[1]
    inputs, mask = (_heads_first(q), _heads_first(k, each), _heads_first(v, each)), _host_mask(n, scores, q)
    dq, dk, dv = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward(
        _heads_first(d), *inputs, _heads_first(out), lse, 0.0, mask is None, attn_mask=mask, scale=scores.scale
    )
    dq, dk, dv = (g[0].transpose(0, 1) for g in (dq, dk, dv))
    return dq, *(g.reshape(n, heads, each, width).sum(2) for g in (dk, dv))


def choose_attention(device: Any, dtype: Any, scores: Scores) -> Backend:
    """The backend for a device, a dtype of activations, and what is to be computed."""
    if scores.cap is not None:
        return "blockwise"
    return "flash" if torch.device(device).type == "cuda" and dtype != torch.float32 else "torch"
