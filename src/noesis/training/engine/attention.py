"""Causal attention within the sequences of one packed row: no token sees another sequence.

On a GPU FlashAttention 2 (Dao, https://arxiv.org/abs/2307.08691) through torch's own operator, or FlashAttention 4
where the plan chose it; on a CPU torch's fused attention, a sequence at a time; capped scores by `blockwise`, on both.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import torch

from noesis.planning.setup import Attention
from noesis.training.engine import blockwise
from noesis.training.engine.blockwise import Scores

Tensor = Any
Backend = Literal["flash", "flash4", "torch", "blockwise"]


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
    if backend == "flash4":
        return Attended(*_flash4_forward(q, k, v, b, n, scores), None)
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
    if backend == "flash4":
        return _flash4_backward(dout, q, k, v, saved.out, saved.lse, b, scores)
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


# FlashAttention 4 on Hopper and Blackwell: the optional package flash-attn-4 (constraints-flash.txt), whose kernels are
# compiled when a process first calls them. The functions are private to it, so one release is known
# (`planning.setup.FLASH4_RELEASE`); for capped scores they have no backward pass of packed rows yet.


def _flash4_forward(
    q: Tensor, k: Tensor, v: Tensor, bounds: Tensor, longest: int, scores: Scores
) -> tuple[Tensor, Tensor]:
    """(output (T, Q, D), log-sum-exp (Q, T) in float32). q: (T, Q, D), k and v: (T, K, D), 16 bits."""
    from flash_attn.cute.interface import _flash_attn_fwd

    out, lse = _flash_attn_fwd(
        q, k, v, max_seqlen_q=longest, max_seqlen_k=longest, return_lse=True,
        **_flash4_arguments(bounds, scores),
    )  # fmt: skip
    return out, lse


def _flash4_backward(
    dout: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor, bounds: Tensor, scores: Scores
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of q, k and v in their shapes."""
    from flash_attn.cute.interface import _flash_attn_bwd

    dq, dk, dv = _flash_attn_bwd(q, k, v, out, dout, lse, **_flash4_arguments(bounds, scores))
    return dq, dk, dv


def _flash4_arguments(bounds: Tensor, scores: Scores) -> dict[str, Any]:
    left = None if scores.window is None else scores.window - 1
    return {
        "softmax_scale": scores.scale,
        "causal": scores.window is None,
        "window_size_left": left,
        "window_size_right": None if left is None else 0,
        "cu_seqlens_q": bounds,
        "cu_seqlens_k": bounds,
    }


def choose_attention(device: Any, dtype: Any, scores: Scores, attention: Attention) -> Backend:
    """The backend for a device, a dtype of activations, what is to be computed, and what the plan chose."""
    if scores.cap is not None:
        return "blockwise"
    if torch.device(device).type == "cpu" or dtype == torch.float32:
        return "torch"
    return "flash4" if attention == "flash4" else "flash"
