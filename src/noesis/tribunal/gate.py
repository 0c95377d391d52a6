"""The gate: APPROVED, CONDITIONAL or REJECTED where the whole 95% interval agrees, else UNDECIDED.

An interval runs from the lower limit of the worst reading (every absent judge at 0) to the upper limit of the best (at
1). The verdict is formed at both ends, for the mean and for each judge, and holds where both agree. A veto rejects
before that. Approval also needs that accuracy on keyed items has not dropped beyond the bound, and a judge that was
shown to be fit.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

import numpy as np

from noesis.core.config import TribunalSection
from noesis.core.i18n import N_
from noesis.tribunal.court import APPROVED, CONDITIONAL, REJECTED, UNDECIDED, Opinion, Ruling, band
from noesis.tribunal.rubric import JUDGES, TITLES
from noesis.tribunal.statistics import DRAWS, Interval, bootstrap, clustered, prompts_needed


@dataclass(frozen=True)
class Estimate:
    """A mean over prompts; a range where judges were absent, all of which interval_95 covers.

    clusters: independent groups of prompts
    deviation: standard deviation of the clusters' means
    """

    mean_low: float
    mean_high: float
    interval_95: Interval
    clusters: int
    deviation: float

    @property
    def mean(self) -> float:
        return (self.mean_low + self.mean_high) / 2

    def to_json(self) -> dict[str, Any]:
        found = {k: (round(v, 4) if isinstance(v, float) else v) for k, v in asdict(self).items()}
        return found | {
            "mean": round(self.mean, 4),
            "interval_95": [round(max(0.0, min(1.0, x)), 4) for x in self.interval_95],
        }


def estimate(
    ranges: Sequence[tuple[float, float]], clusters: Sequence[str], *, draws: int = DRAWS, level: float = 0.95
) -> Estimate:
    """Mean and interval of scores that may be ranges, by a bootstrap over clusters.

    Args:
        level: of the interval; above 0.95 where it is one of several looks, which together hold with 0.95.
    """
    lows, counts = clustered([r[0] for r in ranges], clusters)
    highs, _ = clustered([r[1] for r in ranges], clusters)
    low = bootstrap(lows, counts, level=level, draws=draws)[0]
    high = bootstrap(highs, counts, level=level, draws=draws)[1]
    means = (lows + highs) / 2 / counts
    deviation = float(means.std(ddof=1)) if len(means) > 1 else 0.0
    return Estimate(
        float(lows.sum() / counts.sum()), float(highs.sum() / counts.sum()), (low, high), len(counts), deviation
    )


def decide(
    opinions: Sequence[Opinion],
    clusters: Sequence[str],
    section: TribunalSection,
    *,
    accuracy_drop: float | None = None,
    unfit_reason: str | None = None,
    level: float = 0.95,
) -> tuple[Ruling, dict[str, Estimate]]:
    """The ruling on a model from the court's opinions of its answers, and the estimates of the mean and of each judge.

    Args:
        clusters: the cluster of each answer.
        accuracy_drop: of right answers to keyed items, base to tuned; None where it was not measured.
        unfit_reason: why these judges may not decide, None if they may.
        level: of the intervals, as in `estimate`.
    """
    estimated = partial(estimate, level=level)
    with_mean = [(o, c) for o, c in zip(opinions, clusters, strict=True) if o.mean is not None]
    names = [c for _, c in with_mean]
    figures: dict[str, Estimate] = {}
    if with_mean:
        figures["mean"] = estimated([o.mean for o, _ in with_mean if o.mean is not None], names)
        figures |= {name: estimated([o.judges[name] for o, _ in with_mean], names) for name in JUDGES}
    if unfit_reason:
        return Ruling(UNDECIDED, unfit_reason), figures
    vetoed = [(o.case, o.vetoes[0]) for o in opinions if o.vetoes]
    if vetoed:
        case, veto = vetoed[0][0], vetoed[0][1].replace("_", " ")
        reason = N_(
            "veto: {veto} in {vetoed} of {opinions} answers, the first to {case}",
            veto=veto,
            vetoed=len(vetoed),
            opinions=len(opinions),
            case=case,
        )
        return Ruling(REJECTED, reason), figures
    without = len(opinions) - len(with_mean)
    if 2 * without > len(opinions) or not with_mean:
        return Ruling(
            UNDECIDED,
            N_(
                "no quorum: {without} of {opinions} answers have fewer than two judges",
                without=without,
                opinions=len(opinions),
            ),
        ), figures
    if without:  # an answer without a mean could deserve anything, too
        figures["mean"] = estimated([o.mean or (0.0, 1.0) for o in opinions], clusters)
        figures |= {name: estimated([o.judges[name] for o in opinions], clusters) for name in JUDGES}
    count = figures["mean"].clusters
    if count < section.min_prompts:
        return Ruling(
            UNDECIDED, N_("{count} prompts are too few for an interval", count=count), section.min_prompts - count
        ), figures
    worst, best = (
        band([figures[j].interval_95[i] for j in JUDGES], figures["mean"].interval_95[i], section) for i in (0, 1)
    )
    low, high = figures["mean"].interval_95
    mean = N_("mean {mean:.3f} [{low:.3f}, {high:.3f}]", mean=figures["mean"].mean, low=low, high=high)
    if worst != best:
        more = _prompts_needed(figures, section)
        return Ruling(
            UNDECIDED,
            N_(
                "{mean} could be {worst} or {best}{across_floor}",
                mean=mean,
                worst=worst,
                best=best,
                across_floor=_across_floor(figures, section),
            ),
            more,
        ), figures
    if worst == APPROVED and accuracy_drop is not None and accuracy_drop > section.max_forgetting:
        drop = N_(
            "right answers to keyed items fell by {accuracy_drop:.3f}, more than {max_forgetting:g}",
            accuracy_drop=accuracy_drop,
            max_forgetting=section.max_forgetting,
        )
        return Ruling(CONDITIONAL, N_("{mean}, but {drop}", mean=mean, drop=drop)), figures
    below = [TITLES[j] for j in JUDGES if figures[j].interval_95[1] < section.judge_floor]
    floor = (
        N_("; {below} below the floor of {judge_floor:g}", below=", ".join(below), judge_floor=section.judge_floor)
        if below
        else ""
    )
    return Ruling(worst, mean + floor), figures


def _across_floor(figures: dict[str, Estimate], section: TribunalSection) -> str:
    judges = [
        f"{TITLES[j]} [{figures[j].interval_95[0]:.3f}, {figures[j].interval_95[1]:.3f}]"
        for j in JUDGES
        if _contains(figures[j], section.judge_floor)
    ]
    return (
        N_(
            "; on both sides of the floor {judge_floor:g}: {judges}",
            judge_floor=section.judge_floor,
            judges=", ".join(judges),
        )
        if judges
        else ""
    )


def _contains(f: Estimate, boundary: float) -> bool:
    return f.interval_95[0] < boundary <= f.interval_95[1]


def _prompts_needed(figures: dict[str, Estimate], section: TribunalSection) -> int | None:
    """How many more prompts would decide; None where none would (an estimate on a boundary, or absent judges)."""
    needs = []
    for name, undecided in undecided_boundaries(figures, section).items():
        f = figures[name]
        if any(f.mean_low < b <= f.mean_high for b in undecided):
            return None
        needs.append(prompts_needed(f.mean, f.deviation, undecided))
    if not needs or any(n is None for n in needs):
        return None
    return max(1, max(n for n in needs if n is not None) - figures["mean"].clusters)


def undecided_boundaries(figures: dict[str, Estimate], section: TribunalSection) -> dict[str, list[float]]:
    """The boundaries that lie in the interval of the mean or of a judge: the thresholds, and the floor."""
    limits = {name: [section.judge_floor] for name in JUDGES}
    limits["mean"] = [section.approval_threshold, section.conditional_threshold]
    found = {name: [b for b in own if _contains(figures[name], b)] for name, own in limits.items()}
    return {name: own for name, own in found.items() if own}


def simulate(
    mean: float, deviation: float, prompts: int, trials: int, section: TribunalSection, *, seed: int = 0
) -> dict[str, float]:
    """The share of each verdict on a model whose true mean is `mean`: simulated beta-distributed scores, judges alike.

    Args:
        deviation: standard deviation of the prompts' true scores; must be possible on 0..1.
        trials: independent trials.
    """
    size = mean * (1 - mean) / deviation**2 - 1
    scores = np.random.default_rng(seed).beta(mean * size, (1 - mean) * size, (prompts, trials))
    low, high = bootstrap(scores, draws=1000)
    worst = [band([x], x, section) for x in low]
    best = [band([x], x, section) for x in high]
    verdicts = [w if w == b else UNDECIDED for w, b in zip(worst, best, strict=True)]
    return {name: verdicts.count(name) / trials for name in (APPROVED, CONDITIONAL, REJECTED, UNDECIDED)}
