"""The steps between matrix products on a CPU: few passes over memory, in place, in the activations' own dtype.

`reference` defines what they compute; here sums are rounded to bfloat16 once more than there. No compiler is needed.
"""

from __future__ import annotations

from typing import Any

import torch
from torch.nn.functional import gelu, silu

from noesis.core.families.architecture import Activation

Tensor = Any


def drop(x: Tensor, threshold: int, seed: int) -> Tensor:
    """x with dropout of the elements whose random byte is below `threshold`; eight elements share a 64-bit draw."""
    if threshold == 0:
        return x
    count = x.numel()
    words = torch.empty((count + 7) // 8, dtype=torch.int64).random_(
        -(2**63), None, generator=torch.Generator().manual_seed(seed)
    )
    keep = words.view(torch.uint8)[:count].view(x.shape) >= threshold
    return x * keep.to(x.dtype).mul_(256 / (256 - threshold))


def rms_norm(h: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """(normed: (…, H), 1/root-mean-square: (…)), in the dtype of h; multiplied in that of the weight."""
    v = h.float()
    rstd = torch.linalg.vector_norm(v, dim=-1).square_().div_(h.shape[-1]).add_(eps).rsqrt_()
    return (h * rstd[..., None]).to(weight.dtype).mul_(weight).to(h.dtype), rstd


def rms_norm_backward(dx: Tensor, h: Tensor, rstd: Tensor, weight: Tensor, residual: Tensor | float) -> Tensor:
    """Gradient to h: through the norm, plus `residual`."""
    g = (dx * weight).float()
    inner = (g * h).sum(-1).mul_(rstd**3).div_(h.shape[-1])
    return g.mul_(rstd[..., None]).addcmul_(h, inner[..., None].expand_as(g), value=-1).add_(residual).to(h.dtype)


def add_low_rank(y: Tensor, u: Tensor, b: Tensor, *, threshold: int, seed: int, residual: Tensor | None) -> Tensor:
    """y + dropout(Σ_g u_g · b_gᵀ) + residual, written over y."""
    r = b.shape[2]
    if threshold == 0:
        for g, matrix in enumerate(b):
            y.addmm_(u[:, g * r : (g + 1) * r], matrix.T)
    else:
        low = u[:, :r] @ b[0].T
        for g, matrix in enumerate(b[1:], start=1):
            low.addmm_(u[:, g * r : (g + 1) * r], matrix.T)
        y.add_(drop(low, threshold, seed))
    return y if residual is None else y.add_(residual)


def add_adapters(qkv: Tensor, u: Tensor, b: Tensor, heads: tuple[int, int], half: int) -> None:
    """Adapters' part of q, k and v added, in place."""
    (qh, kh), r = heads, b.shape[1]
    at = 0
    for i, size in enumerate((qh * 2 * half, kh * 2 * half, kh * 2 * half)):
        qkv[:, at : at + size].addmm_(u[:, i * r : (i + 1) * r], b[at : at + size].T)
        at += size


def rotate_backward(dq: Tensor, dk: Tensor, dv: Tensor, cos: Tensor, sin: Tensor, turned: int) -> Tensor:
    """(T, heads, D) gradients of rotated q, of rotated k and of v → (T, Q + 2K, D)."""
    (tokens, qh, d), kh = dq.shape, dk.shape[1]
    out = torch.empty((tokens, qh + 2 * kh, d), dtype=dq.dtype)
    for part, at in ((dq, 0), (dk, qh)):
        rotate(part.reshape(tokens, -1, d), out[:, at : at + part.shape[1]], cos, -sin, turned)
    out[:, qh + kh :] = dv.reshape(tokens, kh, d)
    return out


def rotate(x: Tensor, out: Tensor, cos: Tensor, sin: Tensor, turned: int) -> None:
    """Turn `turned` pairs of each head by an angle. x, out: (T, heads, D), may be the same; cos, sin: (T, D/2)."""
    if 2 * turned < x.shape[2] and out is not x:
        out[..., 2 * turned :] = x[..., 2 * turned :]
    c, s = (angle[:, :turned].to(x.dtype)[:, None] for angle in (cos, sin))
    x, out = (each[..., : 2 * turned].unflatten(-1, (2, turned)) for each in (x, out))
    first, second = x[:, :, 0], x[:, :, 1]
    product = (first * c).addcmul_(second, s, value=-1)
    torch.addcmul(first * s, second, c, out=out[:, :, 1])
    out[:, :, 0] = product


def glu(gu: Tensor, u: Tensor, b: Tensor, activation: Activation) -> Tensor:
    """activation(gate) · up. The adapters' part is added to `gu` in place, and stays there for `glu_backward`."""
    r, width = b.shape[1], b.shape[0] // 2
    gu[:, :width].addmm_(u[:, :r], b[:width].T)
    gu[:, width:].addmm_(u[:, r:], b[width:].T)
    return _activate(gu[:, :width], activation).mul_(gu[:, width:])


def glu_backward(
    gu: Tensor, dact: Tensor, du: Tensor, a: Tensor, activation: Activation, *, threshold: int, seed: int
) -> Tensor:
    """Gradients of gate and up: (T, 2I)."""
    width = gu.shape[1] // 2
    gate, up = gu[:, :width], gu[:, width:]
    d = dact.addmm_(du, a.T) if threshold == 0 else dact.add_(drop(du @ a.T, threshold, seed))
    out = torch.empty_like(gu)
    torch.mul(d, _activate(gate, activation), out=out[:, width:])
    if activation == "silu":
        out[:, :width] = torch.ops.aten.silu_backward(d.mul_(up), gate)
    else:
        out[:, :width] = torch.ops.aten.gelu_backward(d.mul_(up), gate, approximate="tanh")
    return out


def _activate(gate: Tensor, activation: Activation) -> Tensor:
    return silu(gate) if activation == "silu" else gelu(gate, approximate="tanh")
