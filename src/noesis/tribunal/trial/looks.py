"""The trial by looks: judge some prompts, ask the gate, judge more while more can decide.

A look is final if its interval decides, if the judges may not or can't decide at all, or if the prompts that are left
would hardly change that. Stopping in vain is never an approval, so it needs no share of the error.
"""

from __future__ import annotations

import math
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import asdict, dataclass
from statistics import NormalDist
from typing import Any

from noesis.constitution.document import Constitution
from noesis.core.config import TribunalSection
from noesis.core.i18n import N_
from noesis.tribunal.court import APPROVED, UNDECIDED, Opinion
from noesis.tribunal.gate import Estimate, decide, undecided_boundaries
from noesis.tribunal.scoring import Answer, Judges, ScoredAnswer, score_answers
from noesis.tribunal.suite import EvalSample, in_spread_order
from noesis.tribunal.trial.bounds import Spending, look_levels, pocock

Answers = Callable[[Sequence[EvalSample]], Awaitable[list[Answer]]]  # both models' answers to these prompts
NORMAL = NormalDist()


@dataclass(frozen=True)
class Look:
    """What the gate said of the tuned model at one look.

    prompts: judged by then, all earlier looks included
    level: of this look's interval
    """

    prompts: int
    level: float
    verdict: str
    reason: str


@dataclass(frozen=True)
class Looks:
    """The looks of a trial.

    planned: prompts at each look, if none had been the last
    held: those that took place
    stopped: why the last one was the last, in words
    """

    planned: tuple[int, ...]
    held: tuple[Look, ...]
    stopped: str

    def describe(self) -> str:
        """For the terminal and the report; empty where there was only one look to begin with."""
        if len(self.planned) < 2:
            return ""
        at = N_(
            "look {held} of {planned}, {prompts} of {all} prompts",
            held=len(self.held),
            planned=len(self.planned),
            prompts=self.held[-1].prompts,
            all=self.planned[-1],
        )
        return N_("stopped at {at}: {stopped}", at=at, stopped=self.stopped)

    def to_json(self) -> dict[str, Any]:
        return {"planned": list(self.planned), "held": [asdict(look) for look in self.held], "stopped": self.stopped}

    @classmethod
    def from_json(cls, stored: dict[str, Any]) -> Looks:
        return cls(tuple(stored["planned"]), tuple(Look(**look) for look in stored["held"]), stored["stopped"])


@dataclass(frozen=True)
class Schedule:
    """When the gate looks.

    prompts: asked for by each look; clusters: independent ones among them that judges score
    levels: of each look's interval
    """

    prompts: tuple[int, ...]
    clusters: tuple[int, ...]
    levels: tuple[float, ...]

    @classmethod
    def of(cls, prompts: Sequence[int], clusters: Sequence[int], spending: Spending = pocock) -> Schedule:
        """The schedule whose levels keep the error of all looks together at that of one."""
        levels = look_levels([count / clusters[-1] for count in clusters], spending) if len(clusters) > 1 else [0.95]
        return cls(tuple(prompts), tuple(clusters), tuple(levels))


def plan_looks(items: Sequence[EvalSample], limits: Sequence[int]) -> tuple[list[list[EvalSample]], Schedule]:
    """Split a trial's prompts into looks: each beginning is spread evenly, and pairs stay together.

    Args:
        limits: prompts after which to look; the last look is at all of them.

    Returns:
        The prompts that each look adds, and the schedule.
    """
    rising = sorted({limit for limit in limits if limit < len(items)})
    added: list[list[EvalSample]] = [[]]
    taken = judged = 0
    prompts: list[int] = []
    clusters: list[int] = []
    for cluster in in_spread_order(items):
        if len(prompts) < len(rising) and taken >= rising[len(prompts)] and judged > (clusters[-1] if clusters else 0):
            prompts.append(taken)
            clusters.append(judged)
            added.append([])
        added[-1] += cluster
        taken += len(cluster)
        judged += any(not item.check for item in cluster)
    if clusters and judged == clusters[-1]:  # what is left asks no judge
        added[-2:] = [added[-2] + added[-1]]
        prompts.pop(), clusters.pop()
    place = {item.id: i for i, item in enumerate(items)}
    ordered = [sorted(some, key=lambda item: place[item.id]) for some in added]
    return ordered, Schedule.of([*prompts, taken], [*clusters, judged])


def look_at(
    opinions: Sequence[Opinion],
    clusters: Sequence[str],
    schedule: Schedule,
    number: int,
    section: TribunalSection,
    *,
    unfit_reason: str | None = None,
) -> tuple[Look, str]:
    """What the gate says at look `number`, from 0, and why it is the last; empty if it isn't.

    Args:
        opinions, clusters: of the tuned model's answers so far, and the cluster of each.
    """
    level = schedule.levels[number]
    ruling, figures = decide(opinions, clusters, section, unfit_reason=unfit_reason, level=level)
    look = Look(schedule.prompts[number], round(level, 6), ruling.verdict, ruling.reason)
    left = schedule.prompts[-1] - look.prompts
    if not left:
        return look, N_("all prompts were judged")
    if ruling.verdict != UNDECIDED:
        return look, N_("a veto decides") if any(o.vetoes for o in opinions) else N_("the interval decides")
    if unfit_reason:
        return look, N_("these judges may not decide, however many prompts they see")
    if 2 * sum(o.mean is None for o in opinions) > len(opinions):
        return look, N_("the judges give too few verdicts")
    if not figures or figures["mean"].clusters < section.min_prompts:
        return look, ""
    chance = chance_of_deciding(figures, section, schedule.clusters[-1], schedule.levels[-1])
    if chance >= section.least_chance:
        return look, ""
    return look, N_(
        "the {left} prompts left would decide it with a probability of {chance:.0%} at most", left=left, chance=chance
    )


@dataclass(frozen=True)
class HeldTrial:
    """The scored answers of a trial that ended, its looks, and the level of the last one's interval."""

    scored: list[ScoredAnswer]
    looks: Looks
    level: float


async def hold_looks(
    items: Sequence[EvalSample],
    answer: Answers,
    judges: Judges,
    section: TribunalSection,
    constitution: Constitution,
    *,
    unfit_reason: str | None,
    on_look: Callable[[Look, int], None] = lambda look, left: None,
) -> HeldTrial:
    """Judge look by look until one is final. An approval takes the keyed items of all prompts into account.

    Args:
        answer: asked for each prompt at most once.
        unfit_reason: why these judges may not decide, None if they may.
        on_look: told of each look, and how many prompts are left to judge, 0 after the last.
    """
    added, schedule = plan_looks(items, section.looks)
    scored: list[ScoredAnswer] = []
    held: list[Look] = []
    stopped = ""
    while not stopped:
        number = len(held)
        scored += await score_answers(await answer(added[number]), judges, section, constitution)
        own = [(s.opinion, s.answer.item.cluster) for s in scored if s.opinion and s.answer.model == "tuned"]
        opinions, clusters = [o for o, _ in own], [c for _, c in own]
        look, stopped = look_at(opinions, clusters, schedule, number, section, unfit_reason=unfit_reason)
        held.append(look)
        on_look(look, 0 if stopped else len(items) - look.prompts)
    if held[-1].verdict == APPROVED:
        keyed = [item for more in added[len(held) :] for item in more if item.check or item.key]
        scored += await score_answers(await answer(keyed), judges, section, constitution, judged=False)
    place = {item.id: i for i, item in enumerate(items)}
    scored.sort(key=lambda s: (s.answer.model != "base", place[s.answer.item.id], s.answer.sample))
    return HeldTrial(scored, Looks(schedule.prompts, tuple(held), stopped), schedule.levels[len(held) - 1])


def chance_of_deciding(figures: dict[str, Estimate], section: TribunalSection, clusters: int, level: float) -> float:
    """At most how likely it is that the interval decides at the last look, by what is known at this one.

    The remaining prompts' mean is normal around today's, of which the true one is uncertain, too (predictive power,
    Spiegelhalter, Freedman and Blackburn 1986). Each boundary in an interval must be left behind, unless a judge's or
    the mean's interval falls below one that rejects.

    Args:
        clusters, level: at the last look.
    """
    resolved, rejecting = 1.0, 0.0
    z = NORMAL.inv_cdf(0.5 + level / 2)
    for name, boundaries in undecided_boundaries(figures, section).items():
        f = figures[name]
        new = max(clusters - f.clusters, 0)
        half = z * f.deviation / math.sqrt(clusters)
        spread = f.deviation * math.sqrt(new * (1 / clusters + new / (clusters * f.clusters)) / clusters)
        for boundary in boundaries:
            above = _beyond(f.mean_low - boundary, half, spread)
            below = _beyond(boundary - f.mean_high, half, spread)
            resolved = min(resolved, above + below)
            rejecting += below if boundary in (section.judge_floor, section.conditional_threshold) else 0.0
    return min(1.0, resolved + rejecting)


def _beyond(distance: float, half: float, spread: float) -> float:
    """Probability that a mean that is `distance` above a boundary ends more than `half` above it."""
    if spread == 0.0:
        return float(distance > half)
    return NORMAL.cdf((distance - half) / spread)
