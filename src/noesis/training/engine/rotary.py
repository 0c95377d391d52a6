"""Angles of the rotary embeddings of a packed row's tokens, from transformers' own module.

A layer's angles are by name: those of `Architecture.rotary`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from noesis.core.families.architecture import NO_ROTARY, Architecture

Tensor = Any


@dataclass(frozen=True)
class Angles:
    """Cosine and sine of each token's angles.

    cos, sin: (T, D/2), float32
    turned: how many pairs of a head's D numbers are turned; the others have the angle 0. Pair i is the numbers i and
        turned + i; of those that stay, i + turned and i + D/2
    """

    cos: Tensor
    sin: Tensor
    turned: int


@dataclass(frozen=True)
class HeadNorms:
    """RMSNorm of each head of the queries and keys, before it is turned. weight: (2, D), of q and of k."""

    weight: Tensor
    eps: float


class Rotary:
    """All angles that a model's layers need."""

    def __init__(self, module: Any, architecture: Architecture, device: Any) -> None:
        self.by_length, self.device = architecture.rotary_by_length, device
        self.module = module.to("cpu") if self.by_length else module
        self.kinds = sorted(set(architecture.rotary))
        self.half = architecture.shape.head_dim // 2

    def angles(self, position_ids: Tensor, lengths: list[int]) -> dict[str, Angles]:
        """position_ids: (T,) on the device; lengths: of the row's sequences."""
        return {kind: self._of_kind(kind, position_ids, lengths) for kind in self.kinds}

    @torch.no_grad()
    def _of_kind(self, kind: str, position_ids: Tensor, lengths: list[int]) -> Angles:
        if kind == NO_ROTARY:
            zeros = torch.zeros((len(position_ids), self.half), dtype=torch.float32, device=self.device)
            return Angles(zeros.cos(), zeros, self.half)
        if self.by_length:  # the module chooses by the largest position, and waits for it: on the processor
            parts = [self._compute(kind, ids) for ids in position_ids.cpu().split(lengths)]
            cos, sin = (torch.cat(part).to(self.device) for part in zip(*parts, strict=True))
        else:
            cos, sin = self._compute(kind, position_ids)
        turned = cos.shape[1]
        if turned < self.half:
            rest = (0, self.half - turned)
            cos = torch.nn.functional.pad(cos, rest, value=1.0)
            sin = torch.nn.functional.pad(sin, rest)
        return Angles(cos.contiguous(), sin.contiguous(), turned)

    def _compute(self, kind: str, position_ids: Tensor) -> tuple[Tensor, Tensor]:
        """Cosine and sine: (T, turned pairs). transformers repeats each for both halves of a head."""
        like = torch.empty((), dtype=torch.float32, device=position_ids.device)
        cos, sin = self.module(like, position_ids[None], *([kind] if kind else []))
        turned = cos.shape[2] // 2
        return cos[0, :, :turned], sin[0, :, :turned]
