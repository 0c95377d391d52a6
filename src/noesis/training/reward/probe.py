"""A head on the frozen base's hidden states, by logistic regression on the differences of pairs: seconds, not minutes.

The baseline that an adapter has to beat (probing small models as judges: https://arxiv.org/abs/2601.22588).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
PENALTIES = (1e-3, 1e-2, 3e-2, 1e-1, 3e-1, 1.0)  # of L2, on standardised differences; chosen by held-out prompts
STEPS, TOLERANCE = 100, 1e-8  # of Newton's method


@dataclass(frozen=True)
class Probe:
    """A direction in which better answers lie.

    weight: (H,), a reward is its product with a pooled state
    penalty: that it was fitted with
    accuracy, loss: on the held-out pairs
    """

    weight: Floats
    penalty: float
    accuracy: float
    loss: float


def fit_probe(train: Floats, held_out: Floats, p: Floats, p_held_out: Floats) -> Probe:
    """The direction for pairs whose differences (better − worse) of pooled states are `train`: (pairs, H).

    Args:
        held_out: differences of other prompts' pairs, by whose loss the penalty is chosen.
        p, p_held_out: (pairs,) probability that the better answer is the better one.
    """
    scale = np.sqrt((train**2).mean(0)) + 1e-6  # of differences: there is no mean to take away
    _, _, axes = np.linalg.svd(train / scale, full_matrices=False)  # with fewer pairs than dimensions, all is in these
    along = train / scale @ axes.T
    found = []
    for penalty in PENALTIES:
        weight = axes.T @ _newton(along, p, penalty) / scale
        margin = held_out @ weight
        loss = float(np.mean(p_held_out * np.logaddexp(0, -margin) + (1 - p_held_out) * np.logaddexp(0, margin)))
        found.append(Probe(weight, penalty, float((margin > 0).mean()), loss))
    return min(found, key=lambda probe: probe.loss)


def _newton(x: Floats, p: Floats, penalty: float) -> Floats:
    """The minimum of the mean Bradley-Terry loss plus penalty/2 · |w|²."""
    w, n = np.zeros(x.shape[1]), len(x)
    for _ in range(STEPS):
        s = 1 / (1 + np.exp(-np.clip(x @ w, -500, 500)))
        gradient = x.T @ (s - p) / n + penalty * w
        hessian = (x.T * (s * (1 - s))) @ x / n + penalty * np.eye(len(w))
        step = np.linalg.solve(hessian, gradient)
        w -= step
        if np.abs(step).max() < TOLERANCE:
            break
    return w
