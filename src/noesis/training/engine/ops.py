"""The steps between matrix products: a Triton kernel on a GPU, `host` on a CPU; the same within rounding."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from noesis.core.families.architecture import Activation
from noesis.training.engine import host, reference
from noesis.training.engine.rotary import Angles, HeadNorms

Tensor = Any
# rows, columns and warps of a tile of the kernels that contain a small matrix product: the fastest of twelve on Hopper
TILES = {
    "add_low_rank": (128, 128, 8),
    "glu": (64, 64, 8),
    "glu_backward": (64, 128, 4),
    "rotate": (64, 0, 4),
}
QUANTISE = (8192, 16)  # columns at a time, warps


@dataclass(frozen=True)
class Dropout:
    """One dropout mask: elements whose hashed byte is below `threshold` are dropped. Only the seed is stored."""

    threshold: int  # of 256; 0: nothing is dropped
    seed: int = 0

    @property
    def scale(self) -> float:
        return 256 / (256 - self.threshold)

    def apply(self, x: Tensor) -> Tensor:
        """x with dropout, on a CPU."""
        return host.drop(x, self.threshold, self.seed)


NO_DROP = Dropout(0)


@dataclass
class Inputs:
    """A tensor (T, N) as the next product needs it: plain, in FP8 with row scales, and with dropout for the adapter."""

    plain: Tensor  # None where FP8 and dropout take its place
    dropped: Tensor  # `plain` itself where nothing is dropped
    q: Tensor = None
    scale: Tensor = None


def _power_of_two(n: int) -> int:
    return max(16, 1 << (n - 1).bit_length())


def _kernels() -> Any:
    from noesis.training.engine import kernels

    return kernels


def _grid(tokens: int, width: int, rows: int, columns: int) -> tuple[int, int]:
    return (-(-width // columns), -(-tokens // rows))


def norm(h: Tensor, weight: Tensor, eps: float, drop: Dropout, *, fp8: bool) -> tuple[Inputs, Tensor]:
    """RMSNorm of h: (T, H). Returns its results and 1/root-mean-square: (T,)."""
    if not h.is_cuda:
        y, rstd = host.rms_norm(h, weight, eps)
        q, scale = reference.quantise_rows(y) if fp8 else (None, None)
        return Inputs(y, drop.apply(y), q, scale), rstd
    tokens, width = h.shape
    plain = not fp8 or drop.threshold == 0
    x = torch.empty_like(h) if plain else None
    dropped = torch.empty_like(h) if drop.threshold else x
    q = torch.empty(h.shape, dtype=torch.float8_e4m3fn, device=h.device) if fp8 else None
    scale = torch.empty((tokens, 1), dtype=torch.float32, device=h.device) if fp8 else None
    rstd = torch.empty(tokens, dtype=torch.float32, device=h.device)
    _kernels().norm_forward[(tokens,)](
        h, weight, x if plain else h, dropped, q if fp8 else h, scale if fp8 else rstd, rstd,
        drop.seed, drop.threshold, drop.scale, width, eps,
        BLOCK=_power_of_two(width), PLAIN=plain, DROP=drop.threshold > 0, FP8=fp8, num_warps=8,
    )  # fmt: skip
    return Inputs(x, dropped, q, scale), rstd


def norm_backward(dx: Tensor, h: Tensor, rstd: Tensor, weight: Tensor, residual: Tensor | None, *, fp8: bool) -> Inputs:
    """Gradient to h through the norm, plus `residual`; in FP8 too if requested."""
    if not h.is_cuda:
        dh = host.rms_norm_backward(dx, h, rstd, weight, 0.0 if residual is None else residual)
        q, scale = reference.quantise_rows(dh) if fp8 else (None, None)
        return Inputs(dh, dh, q, scale)
    residual = torch.zeros_like(h) if residual is None else residual
    tokens, width = h.shape
    dh = torch.empty_like(h)
    q = torch.empty(h.shape, dtype=torch.float8_e4m3fn, device=h.device) if fp8 else None
    scale = torch.empty((tokens, 1), dtype=torch.float32, device=h.device) if fp8 else None
    _kernels().norm_backward[(tokens,)](
        dx, h, rstd, weight, residual, dh, q if fp8 else dh, scale if fp8 else rstd, width,
        BLOCK=_power_of_two(width), FP8=fp8, num_warps=8,
    )  # fmt: skip
    return Inputs(dh, dh, q, scale)


def prepare(x: Tensor, drop: Dropout, *, fp8: bool) -> Inputs:
    """x: (T, N) in FP8 with row scales if requested, and with dropout."""
    if not fp8 and drop.threshold == 0:
        return Inputs(x, x)
    if not x.is_cuda:
        q, scale = reference.quantise_rows(x) if fp8 else (None, None)
        return Inputs(x, drop.apply(x), q, scale)
    tokens, width = x.shape
    dropped = torch.empty_like(x) if drop.threshold else x
    q = torch.empty(x.shape, dtype=torch.float8_e4m3fn, device=x.device) if fp8 else None
    scale = torch.empty((tokens, 1), dtype=torch.float32, device=x.device) if fp8 else None
    _kernels().quantise[(tokens,)](
        x, dropped, q if fp8 else x, scale if fp8 else x, drop.seed, drop.threshold, drop.scale, width,
        BLOCK=min(QUANTISE[0], _power_of_two(width)), DROP=drop.threshold > 0, FP8=fp8, num_warps=QUANTISE[1],
    )  # fmt: skip
    return Inputs(x, dropped, q, scale)


def add_low_rank(y: Tensor, u: Tensor, b: Tensor, *, drop: Dropout, residual: Tensor | None = None) -> Tensor:
    """y + dropout(Σ_g u_g · b_gᵀ) + residual, written over y. u: (T, G·R), b: (G, N, R), y: (T, N)."""
    groups, width, r = b.shape
    if not y.is_cuda:
        return host.add_low_rank(y, u, b, threshold=drop.threshold, seed=drop.seed, residual=residual)
    tokens = y.shape[0]
    bm, bn, warps = TILES["add_low_rank"]
    _kernels().add_low_rank[_grid(tokens, width, bm, bn)](
        y, u, b, y if residual is None else residual, y,
        drop.seed, drop.threshold, drop.scale, tokens, width, u.stride(0),
        G=groups, R=r, RP=_power_of_two(r), BM=bm, BN=bn,
        DROP=drop.threshold > 0, RESIDUAL=residual is not None, num_warps=warps,
    )  # fmt: skip
    return y


def rotate(
    qkv: Tensor, u: Tensor, b: Tensor, angles: Angles, heads: tuple[int, int], norms: HeadNorms | None
) -> tuple[Tensor, Tensor | None]:
    """Adapters' part of q, k, v added, heads of q and k normed if `norms`, q and k rotated, in place.

    qkv: (T, (Q + 2K)·D), u: (T, 3R), b: ((Q + 2K)·D, R)

    Returns:
        (qkv, q and k before the norms: (T, (Q + K)·D), None without norms).
    """
    (tokens, width), (qh, kh), r, half = qkv.shape, heads, b.shape[1], angles.cos.shape[1]
    if not qkv.is_cuda:
        host.add_adapters(qkv, u, b, heads, half)
        turning, raw = qkv[:, : (qh + kh) * 2 * half].view(tokens, qh + kh, 2 * half), None
        if norms is not None:
            raw = turning.clone()
            turning.copy_(host.rms_norm(raw, _by_head(norms, heads), norms.eps)[0])
            raw = raw.view(tokens, -1)
        host.rotate(turning, turning, angles.cos, angles.sin, angles.turned)
        return qkv, raw
    bm, _, warps = TILES["rotate"]
    raw = None if norms is None else qkv.new_empty((tokens, (qh + kh) * 2 * half))
    _kernels().rotate_forward[(qh + 2 * kh, -(-tokens // bm))](
        qkv, u, b, angles.cos, angles.sin, *_norm_arguments(qkv, raw, norms), tokens, width, u.stride(0), qh, kh,
        0.0 if norms is None else norms.eps, D2=half, HALF=_power_of_two(half), TURNED=angles.turned,
        R=r, RP=_power_of_two(r), BM=bm, NORM=norms is not None, num_warps=warps,
    )  # fmt: skip
    return qkv, raw


def rotate_backward(
    dq: Tensor, dk: Tensor, dv: Tensor, angles: Angles, raw: Tensor | None, norms: HeadNorms | None
) -> Tensor:
    """(T, heads, D) gradients of rotated q, of rotated k and of v → (T, (Q + 2K)·D). raw, norms: as in `rotate`."""
    (tokens, qh, d), kh = dq.shape, dk.shape[1]
    width = (qh + 2 * kh) * d
    if not dq.is_cuda:
        out = host.rotate_backward(dq, dk, dv, angles.cos, angles.sin, angles.turned)
        if raw is not None and norms is not None:
            normed, weight = out[:, : qh + kh], _by_head(norms, (qh, kh))
            before = raw.view(normed.shape)
            rstd = host.rms_norm(before, weight, norms.eps)[1]
            normed.copy_(host.rms_norm_backward(normed, before, rstd, weight, 0.0))
        return out.view(tokens, width)
    out = torch.empty((tokens, width), dtype=dq.dtype, device=dq.device)
    _kernels().rotate_backward[(qh + 2 * kh, -(-tokens // 128))](
        dq.contiguous(), dk.contiguous(), dv.contiguous(), out, angles.cos, angles.sin,
        *_norm_arguments(out, raw, norms), tokens, width, qh, kh, 0.0 if norms is None else norms.eps,
        D2=d // 2, HALF=_power_of_two(d // 2), TURNED=angles.turned, BM=128, NORM=norms is not None, num_warps=8,
    )  # fmt: skip
    return out


def _by_head(norms: HeadNorms, heads: tuple[int, int]) -> Tensor:
    """The weight of each head of q and k: (Q + K, D)."""
    return torch.cat([norms.weight[i : i + 1].expand(count, -1) for i, count in enumerate(heads)])


def _norm_arguments(unused: Tensor, raw: Tensor | None, norms: HeadNorms | None) -> tuple[Tensor, Tensor]:
    """Pointers for a kernel, which does not follow them without norms."""
    return (unused, unused) if norms is None else (raw, norms.weight)


def glu(gu: Tensor, u: Tensor, b: Tensor, activation: Activation) -> Tensor:
    """activation(gate) · up with the adapters' parts. gu: (T, 2I), u: (T, 2R), b: (2I, R) → (T, I)."""
    if not gu.is_cuda:
        return host.glu(gu, u, b, activation)
    tokens, width = gu.shape[0], gu.shape[1] // 2
    act = torch.empty((tokens, width), dtype=gu.dtype, device=gu.device)
    r = b.shape[1]
    bm, bn, warps = TILES["glu"]
    _kernels().glu_forward[_grid(tokens, width, bm, bn)](
        gu, u, b, act, tokens, width, u.stride(0),
        R=r, RP=_power_of_two(r), BM=bm, BN=bn, GELU=activation == "gelu_tanh", num_warps=warps,
    )  # fmt: skip
    return act


def glu_backward(
    gu: Tensor, u: Tensor, b: Tensor, dact: Tensor, du: Tensor, a: Tensor, drop: Dropout, activation: Activation
) -> Tensor:
    """Gradients of gate and up: (T, 2I), written over gu on a GPU. du: (T, R), a: (I, R)."""
    if not gu.is_cuda:
        return host.glu_backward(gu, dact, du, a, activation, threshold=drop.threshold, seed=drop.seed)
    tokens, width, r = gu.shape[0], gu.shape[1] // 2, b.shape[1]
    bm, bn, warps = TILES["glu_backward"]
    _kernels().glu_backward[_grid(tokens, width, bm, bn)](
        gu, u, b, dact, du, a, gu, drop.seed, drop.threshold, drop.scale, tokens, width, u.stride(0),
        R=r, RP=_power_of_two(r), BM=bm, BN=bn, DROP=drop.threshold > 0, GELU=activation == "gelu_tanh",
        num_warps=warps,
    )  # fmt: skip
    return gu


def cross_entropy(logits: Tensor, labels: Tensor, factor: Tensor) -> Tensor:
    """Losses (rows,) of logits (rows, V), which become their gradient times `factor` (float32, on the device)."""
    if not logits.is_cuda:
        probabilities = torch.log_softmax(logits.float(), dim=-1)
        loss = -probabilities.gather(1, labels[:, None])[:, 0]
        gradient = probabilities.exp()
        gradient[torch.arange(len(labels)), labels] -= 1
        logits.copy_(gradient * factor)
        return loss
    loss = torch.empty(len(labels), dtype=torch.float32, device=logits.device)
    _kernels().cross_entropy[(len(labels),)](logits, labels, loss, factor, logits.shape[1], BLOCK=4096, num_warps=8)
    return loss
