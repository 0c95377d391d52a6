"""Intervals and tests, in numpy; checked against scipy, statsmodels and krippendorff, and by simulated coverage.

Answers to one prompt, and prompts of one pair, are one cluster: clusters are resampled, never single answers.
References: Wilson 1927; McNemar 1947; Hesterberg 2015 (the expanded percentile interval, for small samples); Rogan &
Gladen 1978 with the interval of Lang & Reiczigel 2014; Krippendorff 2011; Mann & Whitney 1947.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache
from statistics import NormalDist
from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
DRAWS = 4000
Interval = tuple[float, float]


def clustered(values: Sequence[float], clusters: Sequence[str]) -> tuple[Floats, Floats]:
    """Sum and count of the values of each cluster, in the order of first appearance: each (clusters,)."""
    places = {name: i for i, name in enumerate(dict.fromkeys(clusters))}
    index = np.array([places[c] for c in clusters], np.int64)
    sums = np.bincount(index, np.asarray(values, np.float64), len(places)).astype(np.float64)
    return sums, np.bincount(index, minlength=len(places)).astype(np.float64)


def bootstrap(
    sums: Floats, counts: Floats | None = None, *, level: float = 0.95, draws: int = DRAWS, seed: int = 0
) -> Any:
    """Bootstrap interval of the mean over clusters; percentile limits, widened for small samples (Hesterberg 2015).

    Args:
        sums: (clusters,) or (clusters, trials): the sum of the values in each cluster.
        counts: (clusters,) how many values each has; 1 each where None.

    Returns:
        (low, high), floats or (trials,) arrays; (-inf, inf) with one cluster, which says nothing about the others.
    """
    n = len(sums)
    if n < 2:
        return -math.inf, math.inf
    weights = _weights(n, draws, seed)
    totals = weights @ (np.ones(n) if counts is None else counts)
    means = (weights @ sums) / (totals if sums.ndim == 1 else totals[:, None])
    tail = NormalDist().cdf(-math.sqrt(n / (n - 1)) * t_quantile(0.5 + level / 2, n - 1))
    low, high = np.quantile(means, [tail, 1 - tail], axis=0)
    return (float(low), float(high)) if sums.ndim == 1 else (low, high)


@lru_cache(maxsize=16)
def _weights(n: int, draws: int, seed: int) -> Floats:
    """(draws, n): how often each cluster is in each resample."""
    return np.random.default_rng(seed).multinomial(n, np.full(n, 1 / n), size=draws).astype(float)


def t_quantile(p: float, df: int) -> float:
    """Quantile of Student's t: exact for 1 and 2 degrees of freedom, else Hill's asymptotic expansion.

    Its error is 1e-3 at 3 degrees of freedom, and less above.
    """
    if df == 1:
        return math.tan(math.pi * (p - 0.5))
    if df == 2:
        return (2 * p - 1) / math.sqrt(2 * p * (1 - p))
    z = NormalDist().inv_cdf(p)
    terms = (
        (z**3 + z) / 4,
        (5 * z**5 + 16 * z**3 + 3 * z) / 96,
        (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384,
        (79 * z**9 + 776 * z**7 + 1482 * z**5 - 1920 * z**3 - 945 * z) / 92160,
    )
    return float(z + sum(term / df ** (i + 1) for i, term in enumerate(terms)))


def sign_flip(differences: Floats, *, flips: int = 10_000, seed: int = 0) -> float:
    """Two-sided p of the sign-flip test that the mean difference is 0; exact up to 16 clusters."""
    d = np.asarray(differences, float)
    d = d[d != 0]
    if d.size == 0:
        return 1.0
    seen = abs(d.sum()) - 1e-9 * np.abs(d).sum()
    if d.size <= 16:
        signs = 1.0 - 2.0 * ((np.arange(2**d.size)[:, None] >> np.arange(d.size)) & 1)
        return float(np.mean(np.abs(signs @ d) >= seen))
    rng = np.random.default_rng(seed)
    signs = rng.integers(0, 2, (flips, d.size)) * 2.0 - 1.0
    return float((1 + np.count_nonzero(np.abs(signs @ d) >= seen)) / (flips + 1))


def mcnemar(lost: int, won: int) -> float:
    """Exact two-sided p of McNemar's test: of the items on which two models differ, `lost` and `won`."""
    n, k = lost + won, min(lost, won)
    return min(1.0, 2 * sum(math.comb(n, i) for i in range(k + 1)) / 2**n) if n else 1.0


def brier(probabilities: Sequence[float], outcomes: Sequence[bool]) -> float:
    """Brier score: mean squared difference of probability and outcome; 0 is best, 0.25 is a coin's."""
    return float(np.mean((np.asarray(probabilities, float) - np.asarray(outcomes, float)) ** 2))


def rogan_gladen(
    passed: int, n: int, sensitivity: tuple[int, int], specificity: tuple[int, int], *, level: float = 0.95
) -> tuple[float, Interval] | None:
    """The true pass rate behind an observed one, given the judge's errors; None where it is no better than a coin.

    Args:
        passed, n: answers that passed, of how many.
        sensitivity: (good answers that the judge passed, good answers of the benchmark).
        specificity: (bad answers that it failed, bad answers).

    Returns:
        (estimate, interval), within 0..1.
    """
    if (
        not n
        or not sensitivity[1]
        or not specificity[1]
        or sensitivity[0] / sensitivity[1] + specificity[0] / specificity[1] <= 1
    ):
        return None
    z = NormalDist().inv_cdf(0.5 + level / 2)
    observed = (passed + z * z / 2) / (n + z * z)
    se, sp = (sensitivity[0] + 1) / (sensitivity[1] + 2), (specificity[0] + 1) / (specificity[1] + 2)
    if se + sp <= 1:
        return None
    rate = (observed + sp - 1) / (se + sp - 1)
    v_se, v_sp = se * (1 - se) / (sensitivity[1] + 2), sp * (1 - sp) / (specificity[1] + 2)
    shift = 2 * z * z * (rate * v_se - (1 - rate) * v_sp)
    error = math.sqrt(observed * (1 - observed) / (n + z * z) + rate**2 * v_se + (1 - rate) ** 2 * v_sp) / (se + sp - 1)
    plain_se, plain_sp = sensitivity[0] / sensitivity[1], specificity[0] / specificity[1]
    estimate = (passed / n + plain_sp - 1) / (plain_se + plain_sp - 1)
    low, high = rate + shift - z * error, rate + shift + z * error
    return _unit(estimate), (_unit(low), _unit(high))


def _unit(x: float) -> float:
    return min(1.0, max(0.0, x))


def krippendorff_alpha(ratings: Floats) -> float | None:
    """Krippendorff's ordinal alpha; None where it is not defined (fewer than two pairs, or a single value).

    Args:
        ratings: (raters, units); NaN is a missing rating.
    """
    values, codes = np.unique(ratings[~np.isnan(ratings)], return_inverse=True)
    if len(values) < 2:
        return None
    table = np.zeros((ratings.shape[1], len(values)))  # (units, values): how many raters gave it
    np.add.at(
        table,
        (np.nonzero(~np.isnan(ratings).T)[0], codes[np.argsort(np.nonzero(~np.isnan(ratings))[1], kind="stable")]),
        1,
    )
    table = table[table.sum(axis=1) >= 2]
    if not len(table):
        return None
    per_unit = table.sum(axis=1, keepdims=True)
    coincidence = (table / (per_unit - 1)).T @ table - np.diag((table / (per_unit - 1)).sum(axis=0))
    marginal = coincidence.sum(axis=1)
    cumulative = np.cumsum(marginal)
    low, high = (
        np.minimum.outer(range(len(values)), range(len(values))),
        np.maximum.outer(range(len(values)), range(len(values))),
    )
    before = cumulative - marginal
    distance = (cumulative[high] - before[low] - (marginal[low] + marginal[high]) / 2) ** 2
    np.fill_diagonal(distance, 0.0)
    expected = (np.outer(marginal, marginal) * distance).sum() / (marginal.sum() - 1)
    return float(1 - (coincidence * distance).sum() / expected) if expected else None


def effective_votes(scores: Floats) -> float | None:
    """How many independent votes n raters are worth: n / (1 + (n - 1) r), r the mean correlation of their errors.

    Args:
        scores: (raters, units), without missing ones; errors against the known truth, not the ratings themselves.
    """
    n = len(scores)
    if n == 1:
        return 1.0
    if scores.shape[1] < 3 or np.any(scores.std(axis=1) == 0):
        return None
    correlations = np.corrcoef(scores)
    mean = float((correlations.sum() - n) / (n * (n - 1)))
    return n / (1 + (n - 1) * max(0.0, mean))


def auroc(good: Sequence[float], bad: Sequence[float]) -> float | None:
    """Chance that a good answer scores above a bad one, ties counted half; None without one of them."""
    if not len(good) or not len(bad):
        return None
    g, b = np.asarray(good, float)[:, None], np.asarray(bad, float)[None, :]
    return float(np.mean((g > b) + 0.5 * (g == b)))


def slope(x: Sequence[float], y: Sequence[float]) -> Interval | None:
    """Least-squares slope of y on x and its standard error; None with fewer than 3 points or a constant x."""
    a, b = np.asarray(x, float), np.asarray(y, float)
    if len(a) < 3 or np.ptp(a) == 0:
        return None
    a0 = a - a.mean()
    k = float(a0 @ (b - b.mean()) / (a0 @ a0))
    left = b - b.mean() - k * a0
    return k, float(math.sqrt(max(0.0, float(left @ left)) / (len(a) - 2) / float(a0 @ a0)))


def prompts_needed(mean: float, deviation: float, boundaries: Sequence[float], *, power: float = 0.80) -> int | None:
    """Clusters needed for a 95% interval that excludes every boundary, with this power, if mean and deviation stay.

    None where the mean is on a boundary: no number would do.
    """
    distance = min(abs(mean - b) for b in boundaries)
    if distance < 1e-3:
        return None
    factor = NormalDist().inv_cdf(0.975) + NormalDist().inv_cdf(power)
    return max(2, math.ceil((factor * deviation / distance) ** 2))


def wilson(successes: float, trials: int, z: float = 1.96) -> tuple[float, float]:
    """95% Wilson interval of a rate (Wilson 1927); (0, 1) without trials."""
    if trials == 0:
        return 0.0, 1.0
    p = successes / trials
    centre = (p + z * z / (2 * trials)) / (1 + z * z / trials)
    half = z / (1 + z * z / trials) * math.sqrt(p * (1 - p) / trials + z * z / (4 * trials * trials))
    return max(0.0, centre - half), min(1.0, centre + half)
