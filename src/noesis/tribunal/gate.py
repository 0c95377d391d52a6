"""The gate: APPROVED, CONDITIONAL or REJECTED only where the whole 95% interval says so; else UNDECIDED, with what would decide it.

The interval of a figure runs from the lower limit of its worst reading (every absent judge at 0) to the upper limit of its best (at 1).
The verdict is formed at both ends, for the mean and for each judge; it stands where both ends agree. A veto rejects before that. To be
approved, keyed items must not be forgotten beyond the bound, and the judge must have been shown to be fit.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from noesis.core.config import TribunalSection
from noesis.tribunal.court import APPROVED, CONDITIONAL, REJECTED, UNDECIDED, Opinion, band
from noesis.tribunal.rubric import JUDGES, TITLES
from noesis.tribunal.statistics import DRAWS, Interval, bootstrap, clustered, prompts_needed


@dataclass(frozen=True)
class Estimate:
    """A mean over prompts. Where judges were absent it is a range itself; interval_95 covers the whole of it."""

    mean_low: float
    mean_high: float
    interval_95: Interval
    clusters: int
    deviation: float

    @property
    def mean(self) -> float:
        return (self.mean_low + self.mean_high) / 2

    def as_json(self) -> dict[str, Any]:
        found = {k: (round(v, 4) if isinstance(v, float) else v) for k, v in asdict(self).items()}
        return found | {
            "mean": round(self.mean, 4),
            "interval_95": [round(max(0.0, min(1.0, x)), 4) for x in self.interval_95],
        }


def estimate(ranges: Sequence[tuple[float, float]], clusters: Sequence[str], *, draws: int = DRAWS) -> Estimate:
    """Mean and interval of scores that may be ranges, drawn by cluster."""
    lows, counts = clustered([r[0] for r in ranges], clusters)
    highs, _ = clustered([r[1] for r in ranges], clusters)
    low, high = bootstrap(lows, counts, draws=draws)[0], bootstrap(highs, counts, draws=draws)[1]
    means = (lows + highs) / 2 / counts
    deviation = float(means.std(ddof=1)) if len(means) > 1 else 0.0
    return Estimate(
        float(lows.sum() / counts.sum()), float(highs.sum() / counts.sum()), (low, high), len(counts), deviation
    )


@dataclass(frozen=True)
class Ruling:
    """What the gate says, why, and how many more prompts would decide it where prompts would."""

    verdict: str
    reason: str
    more_prompts: int | None = None

    def as_json(self) -> dict[str, Any]:
        return asdict(self)


def decide(
    opinions: Sequence[Opinion],
    clusters: Sequence[str],
    section: TribunalSection,
    *,
    forgotten: float | None = None,
    unfit: str | None = None,
) -> tuple[Ruling, dict[str, Estimate]]:
    """The ruling on a model from the court's opinions of its answers.

    Args:
        clusters: the cluster of each answer.
        forgotten: fall of the share of right answers to keyed items, base to tuned; None where it was not measured.
        unfit: why no judge here may decide, None if they may.
    """
    within = [(o, c) for o, c in zip(opinions, clusters, strict=True) if o.mean is not None]
    names = [c for _, c in within]
    figures: dict[str, Estimate] = {}
    if within:
        figures["mean"] = estimate([o.mean for o, _ in within if o.mean is not None], names)
        figures |= {name: estimate([o.judges[name] for o, _ in within], names) for name in JUDGES}
    if unfit:
        return Ruling(UNDECIDED, unfit), figures
    vetoed = [(o.case, o.vetoes[0]) for o in opinions if o.vetoes]
    if vetoed:
        return Ruling(
            REJECTED,
            f"veto: {vetoed[0][1].replace('_', ' ')} in {len(vetoed)} of {len(opinions)} answers, the first to {vetoed[0][0]}",
        ), figures
    lost = len(opinions) - len(within)
    if 2 * lost > len(opinions) or not within:
        return Ruling(UNDECIDED, f"no quorum: {lost} of {len(opinions)} answers have fewer than two judges"), figures
    if lost:  # an answer without an opinion may deserve anything, too
        figures["mean"] = estimate([o.mean or (0.0, 1.0) for o in opinions], clusters)
        figures |= {name: estimate([o.judges[name] for o in opinions], clusters) for name in JUDGES}
    count = figures["mean"].clusters
    if count < section.min_prompts:
        return Ruling(UNDECIDED, f"{count} prompts are too few for an interval", section.min_prompts - count), figures
    worst, best = (
        band([figures[j].interval_95[i] for j in JUDGES], figures["mean"].interval_95[i], section) for i in (0, 1)
    )
    low, high = figures["mean"].interval_95
    said = f"mean {figures['mean'].mean:.3f} [{low:.3f}, {high:.3f}]"
    if worst != best:
        more = _prompts_needed(figures, section)
        return Ruling(UNDECIDED, f"{said} could be {worst} or {best}{_straddling(figures, section)}", more), figures
    if worst == APPROVED and forgotten is not None and forgotten > section.max_forgetting:
        return Ruling(
            CONDITIONAL,
            f"{said}, but right answers to keyed items fell by {forgotten:.3f}, more than {section.max_forgetting:g}",
        ), figures
    floored = [TITLES[j] for j in JUDGES if figures[j].interval_95[1] < section.judge_floor]
    return Ruling(
        worst, said + (f"; {', '.join(floored)} below the floor of {section.judge_floor:g}" if floored else "")
    ), figures


def _straddling(figures: dict[str, Estimate], section: TribunalSection) -> str:
    astride = [
        f"{TITLES[j]} [{figures[j].interval_95[0]:.3f}, {figures[j].interval_95[1]:.3f}]"
        for j in JUDGES
        if _astride(figures[j], section.judge_floor)
    ]
    return f"; on both sides of the floor {section.judge_floor:g}: {', '.join(astride)}" if astride else ""


def _astride(f: Estimate, boundary: float) -> bool:
    return f.interval_95[0] < boundary <= f.interval_95[1]


def _prompts_needed(figures: dict[str, Estimate], section: TribunalSection) -> int | None:
    """How many more prompts; None where counting would not do it (a figure on a boundary, or absent judges)."""
    needs = []
    boundaries = {"mean": [section.approval_threshold, section.conditional_threshold]} | {
        j: [section.judge_floor] for j in JUDGES
    }
    for name, limits in boundaries.items():
        f = figures[name]
        astride = [b for b in limits if _astride(f, b)]
        if not astride:
            continue
        if any(f.mean_low < b <= f.mean_high for b in astride):
            return None
        needs.append(prompts_needed(f.mean, f.deviation, astride))
    if not needs or any(n is None for n in needs):
        return None
    return max(1, max(n for n in needs if n is not None) - figures["mean"].clusters)


def simulate(
    mean: float, deviation: float, prompts: int, trials: int, section: TribunalSection, *, seed: int = 0
) -> dict[str, float]:
    """How often the gate says what of a model whose true mean is `mean`: beta-distributed scores, every judge alike.

    Args:
        deviation: of the prompts' true scores; must fit a distribution on 0..1.
        trials: independent trials, judged in one go.
    """
    size = mean * (1 - mean) / deviation**2 - 1
    scores = np.random.default_rng(seed).beta(mean * size, (1 - mean) * size, (prompts, trials))
    low, high = bootstrap(scores, draws=1000)
    worst = [band([x], x, section) for x in low]
    best = [band([x], x, section) for x in high]
    said = [w if w == b else UNDECIDED for w, b in zip(worst, best, strict=True)]
    return {name: said.count(name) / trials for name in (APPROVED, CONDITIONAL, REJECTED, UNDECIDED)}


def verdict_exit_code(verdict: str) -> int:
    """A verdict's exit code: 0 APPROVED, 3 REJECTED, 4 CONDITIONAL or UNDECIDED."""
    return {APPROVED: 0, REJECTED: 3}.get(verdict, 4)
