"""How often a trial by looks ends with which verdict, and after how many prompts: `benchmarks/judges/looks.py`.

Every trial goes through the gate itself (`look_at`): intervals, floors, stopping in vain. Only opinions are made up.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from noesis.core.config import TribunalSection
from noesis.tribunal.court import Opinion
from noesis.tribunal.rubric import JUDGES
from noesis.tribunal.statistics import Floats
from noesis.tribunal.trial.looks import Schedule, look_at

TABLE = 100_000  # draws that a quantile is read from


@dataclass(frozen=True)
class Simulated:
    """Of many simulated trials: the share of each verdict, of each number of looks, and the mean number of prompts."""

    verdicts: dict[str, float]
    looks: dict[int, float]
    prompts: float


def simulate_trials(
    means: Mapping[str, float],
    schedule: Schedule,
    section: TribunalSection,
    *,
    trials: int,
    deviation: float = 0.2,
    agreement: float = 0.5,
    seed: int = 0,
) -> Simulated:
    """Trials of a model whose true means are `means`; every prompt is a cluster of its own, with one answer.

    Args:
        means: by judge, of beta-distributed scores.
        deviation: of each judge's scores over prompts.
        agreement: share of the prompts on which all judges have the same quantile; on the others each has its own.
    """
    rng = np.random.default_rng(seed)
    tables = {name: _quantiles(means[name], deviation, rng) for name in JUDGES}
    weights = section.weights.model_dump()
    count = schedule.clusters[-1]
    names = [f"p{i}" for i in range(count)]
    verdicts: Counter[str] = Counter()
    looks: Counter[int] = Counter()
    prompts = 0
    for _ in range(trials):
        shared, same = rng.integers(TABLE, size=count), rng.random(count) < agreement
        scores = {name: tables[name][np.where(same, shared, rng.integers(TABLE, size=count))] for name in JUDGES}
        mean = sum(weights[name] * scores[name] for name in JUDGES)
        opinions = [
            Opinion(names[i], {n: (scores[n][i],) * 2 for n in JUDGES}, (mean[i],) * 2, (), ()) for i in range(count)
        ]
        stopped, number = "", 0
        while not stopped:
            seen = schedule.clusters[number]
            look, stopped = look_at(opinions[:seen], names[:seen], schedule, number, section)
            number += 1
        verdicts[look.verdict] += 1
        looks[number] += 1
        prompts += look.prompts
    return Simulated(
        {name: n / trials for name, n in sorted(verdicts.items())},
        {number: n / trials for number, n in sorted(looks.items())},
        prompts / trials,
    )


def _quantiles(mean: float, deviation: float, rng: np.random.Generator) -> Floats:
    size = mean * (1 - mean) / deviation**2 - 1
    return np.sort(rng.beta(mean * size, (1 - mean) * size, TABLE))
