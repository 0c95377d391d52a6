"""Base plus update, rounded to the type of a file.

A base in bfloat16 lies on bfloat16's grid. An update of less than half a step is rounded away wherever it is added, and
a short training's whole update can be that small. Where rounding to the nearest would lose much of it, each sum goes to
one of its two neighbours at random, the nearer one more often, so that on average nothing is lost
(https://arxiv.org/abs/1502.02551). The draw depends on the weight's name alone: the same files every time.
"""

from __future__ import annotations

from hashlib import sha256
from typing import Any

TORCH_TYPES = {"F32": "float32", "F16": "float16", "BF16": "bfloat16"}  # safetensors' name → torch's
KEPT = 0.9  # share of an update that rounding to the nearest may leave; `release/parity/audit.py` looks for as much


def cast_to(weight: Any, dtype: str) -> Any:
    """`weight` as a contiguous tensor of a stored type (safetensors' name)."""
    import torch

    return weight.to(getattr(torch, TORCH_TYPES[dtype])).contiguous()


def rounded_sum(base: Any, update: Any, dtype: str, name: str) -> Any:
    """base + update, summed in float32 and rounded once, as a contiguous tensor of a stored type (safetensors' name).

    Args:
        base: the weight that the update was trained on.
        update: float32, of the same shape.
        name: of the weight.
    """
    start = base.float()
    total = start + update
    nearest = cast_to(total, dtype)
    if dtype == "F32" or _share(nearest.float().sub_(start), update) >= KEPT:
        return nearest
    return _at_random(total, nearest, name)


def _share(moved: Any, update: Any) -> float:
    """How many times the update is in what the weight moved by: its projection on it."""
    norm = float(update.square().sum())
    return float((moved * update).sum()) / norm if norm else 1.0


def _at_random(total: Any, nearest: Any, name: str) -> Any:
    """Each of `total` to its nearest value of 16 bits or to the one on its other side, which keeps the mean."""
    import torch

    bits, value = nearest.view(torch.int16), nearest.float()
    error = total - value
    outwards = (error > 0) == (total > 0)  # sign and magnitude: the next greater magnitude is the next integer
    other = torch.where(outwards, bits + 1, bits - 1).view(nearest.dtype).float()
    draw = torch.Generator().manual_seed(int.from_bytes(sha256(name.encode()).digest()[:7]))
    chance = torch.rand(total.shape, generator=draw)
    return torch.where(chance < error / (other - value), other, value).to(nearest.dtype).contiguous()
