"""Gradient similarity of training examples and what is measured, at a saved adapter.

As TracIn (https://arxiv.org/abs/2002.08484), on the adapter's weights alone, and by cosine as LESS does
(https://arxiv.org/abs/2402.04333): a step on an example moves the weights against its loss's gradient, and so a figure
up or down as the two gradients lie to each other. What is measured is a weighted sum of answers' log probabilities, so
that its gradient is added up once, and each example is compared with it without being stored.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from noesis.llm.token_rows import TokenRow
from noesis.training.backends.build_model import build_model
from noesis.training.job import TrainJob
from noesis.training.packing import pack
from noesis.training.state.adapter import load_adapter_into

Tensor = Any


@dataclass(frozen=True)
class Weighted:
    """An answer whose summed log probability counts `weight` times in a figure."""

    row: TokenRow
    weight: float


class GradientModel:
    """The model of a job, whose adapter is exchanged; nothing is dropped out, nothing is trained."""

    def __init__(self, job: TrainJob) -> None:
        self.model = build_model(job)
        self.model.engine.training = False
        self.parameters = [p for p in self.model.parameters() if p.requires_grad]

    def similarities(
        self,
        adapter: Path,
        rows: Sequence[TokenRow],
        figures: Sequence[Sequence[Weighted]],
        on_row: Callable[[TokenRow], None],
    ) -> list[list[float]]:
        """For each figure, the cosine of each row's step with the figure's gradient: (figures, rows), -1 to 1.

        Args:
            adapter: folder of the weights at which gradients are taken.
            figures: what each is a weighted sum of.
            on_row: called with each row that was run.
        """
        load_adapter_into(self.model, adapter)
        self.model.engine.begin_step()
        directions = [self._direction(figure, on_row) for figure in figures]
        found: list[list[float]] = [[] for _ in figures]
        for row in rows:
            step = self._gradient([Weighted(row, 1.0)], on_row)
            for similarities, direction in zip(found, directions, strict=True):
                dots = [torch.dot(a.flatten(), b.flatten()) for a, b in zip(step, direction, strict=True)]
                similarities.append(float(torch.stack(dots).double().sum()) / max(_norm(step), 1e-30))
        return found

    def _direction(self, figure: Sequence[Weighted], on_row: Callable[[TokenRow], None]) -> list[Tensor]:
        """The figure's gradient, of length 1."""
        gradient = self._gradient(figure, on_row)
        length = max(_norm(gradient), 1e-30)
        return [part / length for part in gradient]

    def _gradient(self, figure: Sequence[Weighted], on_row: Callable[[TokenRow], None]) -> list[Tensor]:
        """Gradient of the weighted sum of log probabilities; that of a loss is the same, the other way."""
        for parameter in self.parameters:
            parameter.grad = None
        device = self.model.engine.device
        for each in figure:
            ids, labels = each.row.input_ids, each.row.labels
            # the loss is divided by a number, which may be negative
            loss = self.model(pack([(ids, labels)], []), torch.tensor(-1.0 / each.weight, device=device), None)
            loss.backward()
            on_row(each.row)
        return [torch.zeros_like(p) if p.grad is None else p.grad.clone() for p in self.parameters]


def _norm(gradient: Sequence[Tensor]) -> float:
    return float(torch.stack([part.double().square().sum() for part in gradient]).sum().sqrt())
