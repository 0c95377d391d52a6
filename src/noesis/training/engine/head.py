"""Last norm, output layer and cross-entropy in one, for the trained tokens only, a chunk of logits at a time.

The gradient to the hidden states is computed with the loss; backward only returns it, or weighs it by token
(`TokenLosses`). The idea is that of Liger Kernel's fused linear cross-entropy (https://arxiv.org/abs/2410.10989).
"""

from __future__ import annotations

from typing import Any

import torch

from noesis.training.engine import ops

Tensor = Any


class Loss(torch.autograd.Function):
    """h: (T, H), positions and targets: (trained tokens,), divisor: float32 scalar → summed loss / divisor."""

    @staticmethod
    def forward(
        ctx: Any,
        h: Tensor,
        norm: Tensor,
        eps: float,
        head: Tensor,
        positions: Tensor,
        targets: Tensor,
        divisor: Tensor,
        chunk: int,
    ) -> Tensor:
        all_trained = len(positions) == len(h)
        selected = h if all_trained else h.index_select(0, positions)
        if len(selected) == 0:
            ctx.gradient = torch.zeros_like(h)
            return torch.zeros((), dtype=torch.float32, device=h.device)
        factor = (1.0 / divisor).reshape(1)
        losses, dh = _losses(selected, norm, eps, head, targets, factor, chunk)
        ctx.gradient = dh if all_trained else torch.zeros_like(h).index_copy_(0, positions, dh)
        return losses.sum() * factor[0]

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> Any:  # type: ignore[override]
        gradient = ctx.gradient.mul_(upstream)
        ctx.gradient = None
        return (gradient, None, None, None, None, None, None, None)


class TokenLosses(torch.autograd.Function):
    """h: (T, H), positions and targets: (trained tokens,) → negative log-likelihoods: (trained tokens,) float32."""

    @staticmethod
    def forward(
        ctx: Any, h: Tensor, norm: Tensor, eps: float, head: Tensor, positions: Tensor, targets: Tensor, chunk: int
    ) -> Tensor:
        one = torch.ones(1, dtype=torch.float32, device=h.device)
        losses, ctx.gradient = _losses(h.index_select(0, positions), norm, eps, head, targets, one, chunk)
        ctx.positions, ctx.length = positions, len(h)
        return losses

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> Any:  # type: ignore[override]
        # a token's loss depends on its own hidden state alone, and the norm before it on no other token
        weighed = ctx.gradient * upstream[:, None].to(ctx.gradient.dtype)
        gradient = weighed.new_zeros((ctx.length, weighed.shape[1])).index_copy_(0, ctx.positions, weighed)
        ctx.gradient = None
        return (gradient, None, None, None, None, None, None)


def _losses(
    h: Tensor, norm: Tensor, eps: float, head: Tensor, targets: Tensor, factor: Tensor, chunk: int
) -> tuple[Tensor, Tensor]:
    """h: (trained tokens, H) → (losses: (trained tokens,), gradient of `factor` times their sum to h).

    Args:
        chunk: tokens at a time.
    """
    x, rstd = ops.norm(h, norm, eps, ops.Dropout(0), fp8=False)
    losses = torch.empty(len(h), dtype=torch.float32, device=h.device)
    dx = torch.empty_like(x.plain)
    for start in range(0, len(h), chunk):
        part = slice(start, start + chunk)
        logits = x.plain[part] @ head.T  # (chunk, vocabulary)
        losses[part] = ops.cross_entropy(logits, targets[part], factor)
        dx[part] = logits @ head
    return losses, ops.norm_backward(dx, h, rstd, norm, torch.zeros_like(h), fp8=False).plain
