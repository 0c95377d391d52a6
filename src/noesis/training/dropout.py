"""Dropout whose mask costs a byte of randomness an element.

torch draws a mask on a CPU with a 64-bit draw an element, in one thread: with LoRA dropout on seven projections that is
a third of a training step. Eight elements share a draw here; the probability is rounded to 1/256, and the scale is
exact for the rounded one.
"""

from __future__ import annotations

from typing import Any

import torch


class ByteDropout(torch.nn.Module):
    """Drop-in for `torch.nn.Dropout` on a CPU; draws from torch's own generator, so seeds and saved states apply."""

    def __init__(self, p: float) -> None:
        super().__init__()
        self.threshold = round(p * 256)  # an element is dropped when its byte is below
        self.scale = 256 / (256 - self.threshold)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if not self.training or self.threshold == 0:
            return x
        count = x.numel()
        words = torch.empty((count + 7) // 8, dtype=torch.int64).random_(-(2**63), None)
        mask = words.view(torch.uint8)[:count].view(x.shape) >= self.threshold
        return x * mask.to(x.dtype).mul_(self.scale)

    def extra_repr(self) -> str:
        return f"p={self.threshold}/256"


def use_byte_dropout(model: Any) -> int:
    """Replace the LoRA dropouts in `model`; returns how many."""
    replaced = 0
    for module in model.modules():
        dropouts = getattr(module, "lora_dropout", None)
        if isinstance(dropouts, torch.nn.ModuleDict):
            for name, dropout in dropouts.items():
                if isinstance(dropout, torch.nn.Dropout):
                    dropouts[name] = ByteDropout(dropout.p)
                    replaced += 1
    return replaced
