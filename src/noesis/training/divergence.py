"""How far one model's distributions are from another's at the same tokens, with the gradient.

P is the other model's distribution (the teacher's), Q the trained one's, M = β P + (1 − β) Q. The loss of a token:

    β = 0: KL(P ‖ Q)      0 < β < 1: β KL(P ‖ M) + (1 − β) KL(Q ‖ M)      β = 1: KL(Q ‖ P)

as in generalised knowledge distillation (https://arxiv.org/abs/2306.13649).
"""

from __future__ import annotations

import math
from typing import Any

import torch

Tensor = Any


class LogitsDivergence(torch.autograd.Function):  # type: ignore[misc]
    """logits and teacher: (n, V) → divergence of each token: (n,) float32. For models that leave their logits whole."""

    @staticmethod
    def forward(ctx: Any, logits: Tensor, teacher: Tensor, beta: float) -> Tensor:
        losses, gradient = token_divergence(logits, teacher, beta)
        ctx.gradient = gradient.to(logits.dtype)
        return losses

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> Any:  # type: ignore[override]
        gradient = ctx.gradient.mul_(upstream[:, None])
        ctx.gradient = None
        return gradient, None, None


def token_divergence(logits: Tensor, teacher: Tensor, beta: float) -> tuple[Tensor, Tensor]:
    """logits and teacher: (n, V) → (divergence: (n,), its gradient to the logits: (n, V)), both float32."""
    q = torch.log_softmax(logits.float(), dim=-1)
    p = torch.log_softmax(teacher.float(), dim=-1)
    if beta == 0:
        of_p, of_q = p.exp(), q.exp()
        return (of_p * (p - q)).sum(-1), of_q.sub_(of_p)
    if beta == 1:
        of_q, ratio = q.exp(), q - p
        losses = (of_q * ratio).sum(-1)
        return losses, ratio.sub_(losses[:, None]).mul_(of_q)
    m = torch.logaddexp(p + math.log(beta), q + math.log(1 - beta))
    of_q, ratio = q.exp(), q - m
    from_q = (of_q * ratio).sum(-1)
    losses = beta * (p.exp() * (p - m)).sum(-1) + (1 - beta) * from_q
    return losses, ratio.sub_(from_q[:, None]).mul_(of_q).mul_(1 - beta)
