"""Causal attention within the sequences of one packed row: the boundaries are cumulative lengths, no token sees another sequence.

On a card FlashAttention through torch's own operator; on a processor torch's fused attention, a sequence at a time.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import torch

Tensor = Any
Backend = Literal["flash", "torch"]


@dataclass(frozen=True)
class Segments:
    """Where the sequences of a row begin and end."""

    lengths: tuple[int, ...]
    bounds: Tensor  # int32 (sequences + 1,), on the device
    longest: int

    @classmethod
    def of(cls, lengths: list[int], device: Any) -> Segments:
        bounds = torch.tensor([0, *lengths], dtype=torch.int32).cumsum(0, dtype=torch.int32)
        return cls(tuple(lengths), bounds.to(device, non_blocking=True), -(-max(lengths) // 128) * 128)


@dataclass
class Attended:
    """Output (T, Q, D) and what backward needs besides the inputs."""

    out: Tensor
    lse: Tensor | None
    rng: tuple[Any, Any] | None


def forward(q: Tensor, k: Tensor, v: Tensor, segments: Segments, scale: float, backend: Backend) -> Attended:
    """q: (T, Q, D), k and v: (T, K, D)."""
    b, n = segments.bounds, segments.longest
    if backend == "flash":
        out, lse, state, unused, _ = torch.ops.aten._flash_attention_forward(q, k, v, b, b, n, n, 0.0, True, False, scale=scale)
        return Attended(out, lse, (state, unused))
    return Attended(torch.cat([_one(*part, scale=scale) for part in _split(segments, q, k, v)]), None, None)


def backward(dout: Tensor, q: Tensor, k: Tensor, v: Tensor, kept: Attended, segments: Segments, scale: float, backend: Backend) -> tuple[Tensor, ...]:
    """Gradients of q, k, v in their shapes."""
    b, n = segments.bounds, segments.longest
    if backend == "flash":
        return tuple(
            torch.ops.aten._flash_attention_backward(dout, q, k, v, kept.out, kept.lse, b, b, n, n, 0.0, True, kept.rng[0], kept.rng[1], scale=scale)  # type: ignore[index]
        )
    gradients = []
    for *part, d in _split(segments, q, k, v, dout):
        inputs = [x.detach().requires_grad_() for x in part]
        with torch.enable_grad():
            gradients.append(torch.autograd.grad(_one(*inputs, scale=scale), inputs, d))
    return tuple(torch.cat(g) for g in zip(*gradients, strict=True))


def _split(segments: Segments, *tensors: Tensor) -> Any:
    return zip(*(t.split(list(segments.lengths)) for t in tensors), strict=True)


def _one(q: Tensor, k: Tensor, v: Tensor, *, scale: float) -> Tensor:
    parts = (x.transpose(0, 1)[None] for x in (q, k, v))
    return torch.nn.functional.scaled_dot_product_attention(*parts, is_causal=True, scale=scale, enable_gqa=True)[0].transpose(0, 1)


def choose(device: Any, dtype: Any) -> Backend:
    """The backend for a device and a type of activations."""
    return "flash" if torch.device(device).type == "cuda" and dtype != torch.float32 else "torch"
