"""Levels of the intervals at several looks at growing data, so that all looks together err as seldom as one at 95%.

Each look spends a part of the error, in proportion to what a spending function gives for the share of the data that
was seen (Lan and DeMets 1983, Biometrika 70:659). `pocock` spends early and lets a clear case end at once;
`obrien_fleming` saves nearly all for the end. The intervals at these levels are repeated confidence intervals
(Jennison and Turnbull 1989, JRSS B 51:305): all of them hold together with 95%.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from statistics import NormalDist

import numpy as np

ERROR = 0.025  # of each side, over all looks
GRID = 601  # points at which the density of the undecided is known
REACH = 8.0  # standard deviations
NORMAL = NormalDist()
Spending = Callable[[float], float]  # share of the data → error of one side that may be spent by then


def pocock(share: float) -> float:
    """Nearly the same level at every look."""
    return ERROR * math.log(1 + (math.e - 1) * share)


def obrien_fleming(share: float) -> float:
    """Very strict at first; at the end nearly the level of a single look."""
    return 2 * (1 - NORMAL.cdf(NORMAL.inv_cdf(1 - ERROR / 2) / math.sqrt(share)))


def look_levels(shares: Sequence[float], spending: Spending = pocock) -> list[float]:
    """The confidence level of the two-sided interval at each look.

    The sum of what was seen is a Brownian motion; its density among the trials that no look has decided is carried
    from look to look (Armitage, McPherson and Rowe 1969).

    Args:
        shares: of the data at each look, rising, the last 1.
    """
    levels: list[float] = []
    points, density = np.zeros(1), np.ones(1)  # weights of the undecided; at share 0 all are at 0
    before, spent = 0.0, 0.0
    for share in shares:
        step = math.sqrt(share - before)
        target = spending(share) - spent
        low, high = -REACH * math.sqrt(share), REACH * math.sqrt(share)
        for _ in range(60):
            middle = (low + high) / 2
            beyond = sum(w * _tail((middle - p) / step) for p, w in zip(points, density, strict=True))
            low, high = (middle, high) if beyond > target else (low, middle)
        levels.append(1 - 2 * _tail(high / math.sqrt(share)))
        grid = np.linspace(-REACH * math.sqrt(share), high, GRID)
        width = (grid[1] - grid[0]) * np.where((np.arange(GRID) == 0) | (np.arange(GRID) == GRID - 1), 0.5, 1.0)
        kernel = np.exp(-(((grid[:, None] - points[None, :]) / step) ** 2) / 2) / (step * math.sqrt(2 * math.pi))
        points, density = grid, (kernel @ density) * width
        before, spent = share, spending(share)
    return levels


def _tail(z: float) -> float:
    return 0.5 * math.erfc(z / math.sqrt(2))
