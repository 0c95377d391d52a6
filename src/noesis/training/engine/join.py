"""How what attention and MLP give is added to the hidden states: as it is, scaled (Granite), or normed (Gemma).

y: (T, H), the projection's output without the adapter's part, which is u · Bᵀ; u: (T, R), B: (1, H, R).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from noesis.training.engine import ops
from noesis.training.engine.ops import NO_DROP, Inputs

Tensor = Any


class Join:
    """residual + y + u · Bᵀ."""

    def forward(self, y: Tensor, u: Tensor, b: Tensor, residual: Tensor) -> tuple[Tensor, list[Tensor]]:
        """(the sum, what backward needs besides the gradient)."""
        return ops.add_low_rank(y, u, b, drop=NO_DROP, residual=residual), []

    def backward(self, d: Inputs, kept: list[Tensor], *, fp8: bool) -> Inputs:
        """Gradient to y from that to the sum."""
        return d


@dataclass(frozen=True)
class ScaledJoin(Join):
    """residual + scale · (y + u · Bᵀ)."""

    scale: float

    def forward(self, y: Tensor, u: Tensor, b: Tensor, residual: Tensor) -> tuple[Tensor, list[Tensor]]:
        return torch.add(residual, ops.add_low_rank(y, u, b, drop=NO_DROP), alpha=self.scale), []

    def backward(self, d: Inputs, kept: list[Tensor], *, fp8: bool) -> Inputs:
        return ops.prepare(d.plain * self.scale, NO_DROP, fp8=fp8)


@dataclass(frozen=True)
class NormedJoin(Join):
    """residual + norm(y + u · Bᵀ)."""

    norm: Tensor
    eps: float

    def forward(self, y: Tensor, u: Tensor, b: Tensor, residual: Tensor) -> tuple[Tensor, list[Tensor]]:
        y = ops.add_low_rank(y, u, b, drop=NO_DROP)
        normed, rstd = ops.norm(y, self.norm, self.eps, NO_DROP, fp8=False)
        return residual + normed.plain, [y, rstd]

    def backward(self, d: Inputs, kept: list[Tensor], *, fp8: bool) -> Inputs:
        y, rstd = kept
        return ops.norm_backward(d.plain, y, rstd, self.norm, None, fp8=fp8)
