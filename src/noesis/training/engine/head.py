"""Last norm, output layer and loss in one, for the trained tokens only, a chunk of logits at a time.

The loss is cross-entropy, or the divergence from another model (`Divergence`). The gradient to the hidden states is
computed with it; backward only returns it, or weighs it by token (`TokenLosses`). The idea is that of Liger Kernel's
fused linear cross-entropy (https://arxiv.org/abs/2410.10989).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from noesis.training.divergence import token_divergence
from noesis.training.engine import ops

Tensor = Any
SHARE = 16  # of a chunk's tokens for a divergence: several float32 copies of the logits are in memory at once
FEWEST = 16  # tokens of its chunk


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
        logits, tanh = self.logits(x)
        losses = ops.cross_entropy(logits, targets, factor)
        return losses, self.gradient(logits, tanh)

    def logits(self, x: Tensor) -> tuple[Tensor, Tensor | None]:
        """x: (tokens, H), normed → (logits: (tokens, vocabulary), what `gradient` needs where they are capped)."""
        logits = x @ self.weight.T
        if self.divisor != 1.0:
            logits.div_(self.divisor)
        if self.cap is None:
            return logits, None
        tanh = torch.tanh(logits.div_(self.cap))
        return tanh * self.cap, tanh

    def gradient(self, of_logits: Tensor, tanh: Tensor | None) -> Tensor:
        """The gradient to x: (tokens, H) from that to the logits, which is overwritten."""
        if tanh is not None:
            of_logits.mul_(1 - tanh * tanh)
        if self.divisor != 1.0:
            of_logits.div_(self.divisor)
        return of_logits @ self.weight


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
        losses, dh = chunked(selected, output, lambda x, part: output.losses(x, targets[part], factor))
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
        selected = h.index_select(0, positions)
        losses, ctx.gradient = chunked(selected, output, lambda x, part: output.losses(x, targets[part], one))
        ctx.positions, ctx.length = positions, len(h)
        return losses

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> Any:  # type: ignore[override]
        # a token's loss depends on its own hidden state alone, and the norm before it on no other token
        weighed = ctx.gradient * upstream[:, None].to(ctx.gradient.dtype)
        gradient = weighed.new_zeros((ctx.length, weighed.shape[1])).index_copy_(0, ctx.positions, weighed)
        ctx.gradient = None
        return (gradient, None, None, None)


class Divergence(torch.autograd.Function):
    """h: (T, H), positions: (n,), teacher: (n, H), divisor: float32 scalar → summed divergence of n tokens / divisor.

    teacher: the other model's hidden states at these tokens, before the last norm
    """

    @staticmethod
    def forward(
        ctx: Any, h: Tensor, output: Output, positions: Tensor, teacher: Tensor, divisor: Tensor, beta: float
    ) -> Tensor:
        factor = 1.0 / divisor
        other = ops.norm(teacher, output.norm, output.eps, ops.NO_DROP, fp8=False)[0].plain

        def compute(x: Tensor, part: slice) -> tuple[Tensor, Tensor]:
            logits, tanh = output.logits(x)
            losses, gradient = token_divergence(logits, output.logits(other[part])[0], beta)
            return losses, output.gradient(gradient.mul_(factor).to(logits.dtype), tanh)

        selected = h.index_select(0, positions)
        losses, dh = chunked(selected, output, compute, max(FEWEST, output.chunk // SHARE))
        ctx.gradient = torch.zeros_like(h).index_copy_(0, positions, dh)
        return losses.sum() * factor

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> Any:  # type: ignore[override]
        gradient = ctx.gradient.mul_(upstream)
        ctx.gradient = None
        return (gradient, None, None, None, None, None)


def chunked(
    h: Tensor, output: Output, compute: Callable[[Tensor, slice], tuple[Tensor, Tensor]], chunk: int | None = None
) -> tuple[Tensor, Tensor]:
    """The last norm and what follows it, some tokens at a time.

    Args:
        h: (trained tokens, H).
        compute: (normed hidden states of a chunk, which tokens they are of) → (losses, gradient to those states).
        chunk: tokens at a time; None: as many as `output` says.

    Returns:
        (losses: (trained tokens,), gradient to h)
    """
    x, rstd = ops.norm(h, output.norm, output.eps, ops.NO_DROP, fp8=False)
    losses = torch.empty(len(h), dtype=torch.float32, device=h.device)
    dx = torch.empty_like(x.plain)
    size = output.chunk if chunk is None else chunk
    for start in range(0, len(h), size):
        part = slice(start, start + size)
        losses[part], dx[part] = compute(x.plain[part], part)
    return losses, ops.norm_backward(dx, h, rstd, output.norm, torch.zeros_like(h), fp8=False).plain
