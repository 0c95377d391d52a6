"""From a reward, any number, to 0..1: the chance that an answer is a good one of the benchmark's dev half.

A logistic of two parameters, fitted to the rewards of the dev half's good and bad answers; it keeps their order, so it
changes no accuracy on pairs. It stands in the calibration of the dev half.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

STEPS = 50  # of Newton's method, which takes about six
SHRINK = 1e-3  # L2 on the slope, in units of standardised rewards: finite where the answers are told apart perfectly


@dataclass(frozen=True)
class Scale:
    """score = 1 / (1 + exp(−(slope · reward + offset))); as it stands, the odds that Bradley and Terry mean."""

    slope: float = 1.0
    offset: float = 0.0

    def score(self, reward: float) -> float:
        """0..1; an infinite or very large reward has the limit."""
        z = max(-700.0, min(700.0, self.slope * reward + self.offset))
        return float(1 / (1 + np.exp(-z)))

    def to_json(self) -> dict[str, float]:
        return asdict(self)

    @classmethod
    def from_json(cls, stored: dict[str, Any]) -> Scale:
        """Raises KeyError, TypeError, ValueError: it is none."""
        return cls(float(stored["slope"]), float(stored["offset"]))


def fit_scale(good: Sequence[float], bad: Sequence[float]) -> Scale:
    """The logistic of the rewards of good and bad answers; the natural one where there is nothing to fit."""
    x = np.array([*good, *bad], float)
    if not len(good) or not len(bad) or not np.isfinite(x).all() or x.std() < 1e-12:
        return Scale()
    mean, deviation = float(x.mean()), float(x.std())
    inputs = np.stack([(x - mean) / deviation, np.ones(len(x))], 1)
    truth, w = np.array([1.0] * len(good) + [0.0] * len(bad)), np.zeros(2)
    penalty = np.array([SHRINK * len(x), 0.0])
    for _ in range(STEPS):
        p = 1 / (1 + np.exp(-inputs @ w))
        gradient = inputs.T @ (p - truth) + penalty * w
        hessian = inputs.T * (p * (1 - p)) @ inputs + np.diag(penalty + 1e-9)
        step = np.linalg.solve(hessian, gradient)
        w = w - step
        if np.abs(step).max() < 1e-10:
            break
    return Scale(round(float(w[0] / deviation), 6), round(float(w[1] - w[0] * mean / deviation), 6))
