"""What each kernel computes, in plain torch: used on a CPU, and by the tests as what the kernels must reproduce.

Shapes: T tokens, H hidden width, I intermediate width, R rank. Same functions and arguments as `ops` passes to the
    kernels.
"""

from __future__ import annotations

from typing import Any

import torch

from noesis.core.families.architecture import Activation

FP8_MAX = 448.0
Tensor = Any


def keep_mask(shape: tuple[int, int], seed: int, threshold: int, device: Any) -> Tensor:
    """True where an element is kept; the bytes of a hash of its index, the same on every device."""
    index = torch.arange(shape[0] * shape[1], device=device, dtype=torch.int64)
    low = 0xFFFFFFFF
    word = ((index >> 2) * 0x9E3779B1 + seed) & low
    word = ((word ^ (word >> 16)) * 0x85EBCA6B) & low
    word = ((word ^ (word >> 13)) * 0xC2B2AE35) & low
    word = word ^ (word >> 16)
    return (((word >> ((index & 3) * 8)) & 255) >= threshold).view(shape)


def quantise_rows(x: Tensor) -> tuple[Tensor, Tensor]:
    """(float8 e4m3 of x: (T, N), float32 scale: (T, 1))."""
    scale = x.float().abs().amax(dim=1, keepdim=True).clamp_min(1e-12) / FP8_MAX
    return (x.float() / scale).to(torch.float8_e4m3fn), scale


def rms_norm(h: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """(normed: (…, H), 1/root-mean-square: (…))."""
    v = h.float()
    rstd = torch.rsqrt(v.pow(2).mean(-1) + eps)
    return (weight * (v * rstd[..., None]).to(weight.dtype)).to(h.dtype), rstd


def rms_norm_backward(dx: Tensor, h: Tensor, rstd: Tensor, weight: Tensor, residual: Tensor) -> Tensor:
    """Gradient to h: through the norm, plus `residual`."""
    g = dx.float() * weight.float()
    normed = h.float() * rstd[..., None]
    out = (g - normed * (g * normed).mean(-1, keepdim=True)) * rstd[..., None]
    return (residual.float() + out).to(h.dtype)


def rotate(x: Tensor, cos: Tensor, sin: Tensor, *, back: bool = False) -> Tensor:
    """Rotary embedding. x: (T, heads, D), cos and sin: (T, turned pairs); the rest of a head stays as it is."""
    turned = cos.shape[1]
    first, second = x[..., : 2 * turned].float().chunk(2, dim=-1)
    c, n = cos[:, None], -sin[:, None] if back else sin[:, None]
    return torch.cat([first * c - second * n, second * c + first * n, x[..., 2 * turned :].float()], dim=-1).to(x.dtype)


def gate_and_up(gu: Tensor, u: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """Both with their adapters' part, float32 (T, I)."""
    r, width = b.shape[1], b.shape[0] // 2
    gate = gu[:, :width].float() + (u[:, :r] @ b[:width].T).float()
    up = gu[:, width:].float() + (u[:, r:] @ b[width:].T).float()
    return gate, up


def glu_forward(gu: Tensor, u: Tensor, b: Tensor, activation: Activation = "silu") -> Tensor:
    gate, up = gate_and_up(gu, u, b)
    return (gate * torch.sigmoid(_slope(gate, activation)[0]) * up).to(gu.dtype)


def glu_backward(gu: Tensor, u: Tensor, b: Tensor, d: Tensor, activation: Activation = "silu") -> Tensor:
    """d: float32 gradient of the activation, complete."""
    gate, up = gate_and_up(gu, u, b)
    inner, slope = _slope(gate, activation)
    sigmoid = torch.sigmoid(inner)
    return torch.cat([d * up * sigmoid * (1 + gate * (1 - sigmoid) * slope), d * gate * sigmoid], dim=1).to(gu.dtype)


def _slope(gate: Tensor, activation: Activation) -> tuple[Tensor, Tensor]:
    """(t, its derivative): both activations are gate · sigmoid(t), with t = gate for SiLU."""
    if activation == "silu":
        return gate, torch.ones_like(gate)
    root = 2 * (2 / torch.pi) ** 0.5
    return root * (gate + 0.044715 * gate**3), root * (1 + 3 * 0.044715 * gate**2)
