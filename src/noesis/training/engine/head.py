"""Last norm, output layer and cross-entropy in one, for the trained tokens only, a chunk of logits at a time.

The gradient to the hidden states is computed with the loss; backward only returns it, or weighs it by token
(`TokenLosses`). The idea is that of Liger Kernel's fused linear cross-entropy (https://arxiv.org/abs/2410.10989).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from noesis.training.engine import ops

Tensor = Any


@dataclass(frozen=True)
class Output:
    """What stands between the last layer and the loss.

    norm: (H,); weight: (vocabulary, H)
    chunk: tokens at a time
    divisor, cap: logits are divided by it, then x becomes cap · tanh(x / cap); None: they are not capped
    """

    norm: Tensor
    eps: float
    weight: Tensor
    chunk: int
    divisor: float = 1.0
    cap: float | None = None

    def losses(self, x: Tensor, targets: Tensor, factor: Tensor) -> tuple[Tensor, Tensor]:
        """x: (tokens, H), normed → (losses: (tokens,), gradient of `factor` times their sum to x)."""
        logits = x @ self.weight.T  # (tokens, vocabulary)
        if self.divisor != 1.0:
            logits.div_(self.divisor)
        tanh = None
        if self.cap is not None:
            tanh = torch.tanh(logits.div_(self.cap))
            logits = tanh * self.cap
        losses = ops.cross_entropy(logits, targets, factor)
        if tanh is not None:
            logits.mul_(1 - tanh * tanh)
        if self.divisor != 1.0:
            logits.div_(self.divisor)
        return losses, logits @ self.weight


class Loss(torch.autograd.Function):
    """h: (T, H), positions and targets: (trained tokens,), divisor: float32 scalar → summed loss / divisor."""

    @staticmethod
    def forward(ctx: Any, h: Tensor, output: Output, positions: Tensor, targets: Tensor, divisor: Tensor) -> Tensor:
        all_trained = len(positions) == len(h)
        selected = h if all_trained else h.index_select(0, positions)
        if len(selected) == 0:
            ctx.gradient = torch.zeros_like(h)
            return torch.zeros((), dtype=torch.float32, device=h.device)
        factor = (1.0 / divisor).reshape(1)
        losses, dh = _losses(selected, output, targets, factor)
        ctx.gradient = dh if all_trained else torch.zeros_like(h).index_copy_(0, positions, dh)
        return losses.sum() * factor[0]

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> Any:  # type: ignore[override]
        gradient = ctx.gradient.mul_(upstream)
        ctx.gradient = None
        return (gradient, None, None, None, None)


class TokenLosses(torch.autograd.Function):
    """h: (T, H), positions and targets: (trained tokens,) → negative log-likelihoods: (trained tokens,) float32."""

    @staticmethod
    def forward(ctx: Any, h: Tensor, output: Output, positions: Tensor, targets: Tensor) -> Tensor:
        one = torch.ones(1, dtype=torch.float32, device=h.device)
        losses, ctx.gradient = _losses(h.index_select(0, positions), output, targets, one)
        ctx.positions, ctx.length = positions, len(h)
        return losses

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> Any:  # type: ignore[override]
        # a token's loss depends on its own hidden state alone, and the norm before it on no other token
        weighed = ctx.gradient * upstream[:, None].to(ctx.gradient.dtype)
        gradient = weighed.new_zeros((ctx.length, weighed.shape[1])).index_copy_(0, ctx.positions, weighed)
        ctx.gradient = None
        return (gradient, None, None, None)


def _losses(h: Tensor, output: Output, targets: Tensor, factor: Tensor) -> tuple[Tensor, Tensor]:
    """h: (trained tokens, H) → (losses: (trained tokens,), gradient of `factor` times their sum to h)."""
    x, rstd = ops.norm(h, output.norm, output.eps, ops.NO_DROP, fp8=False)
    losses = torch.empty(len(h), dtype=torch.float32, device=h.device)
    dx = torch.empty_like(x.plain)
    for start in range(0, len(h), output.chunk):
        part = slice(start, start + output.chunk)
        losses[part], dx[part] = output.losses(x.plain[part], targets[part], factor)
    return losses, ops.norm_backward(dx, h, rstd, output.norm, torch.zeros_like(h), fp8=False).plain
