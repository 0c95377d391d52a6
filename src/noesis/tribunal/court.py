"""The court: the judges' verdicts on one answer become an opinion. A missing verdict is never filled in.

A judge that gave no verdict could have given anything: the weighted mean is then the interval from that judge at 0 to
that judge at 1. With two judges absent there is no mean. Several models in one role are averaged, and an absent one
could again be anything, as could an item on which a judge that is read abstains.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from noesis.core.config import TribunalSection
from noesis.core.i18n import N_
from noesis.tribunal.rubric import JUDGES
from noesis.tribunal.verdict import Unscored, Verdict

UNDECIDED, APPROVED, CONDITIONAL, REJECTED = "UNDECIDED", "APPROVED", "CONDITIONAL", "REJECTED"
Range = tuple[float, float]
REWARD = "reward"  # the judge's name in a verdict of a reward model that sits beside the judges
EPSILON = 1e-9  # 0.4 + 0.3 is not 0.7 in binary


@dataclass(frozen=True)
class Opinion:
    """The court's opinion of one answer.

    judges: (low, high) of each judge, 0..1; equal where all of its models gave a verdict
    mean: (low, high) of the weighted mean; None below quorum
    vetoes: reasons to reject whatever the mean
    absent_judges: those that gave no verdict at all
    reasons: why verdicts are missing
    reward: (low, high) of a reward model beside the judges; None where none sits there
    """

    case: str
    judges: dict[str, Range]
    mean: Range | None
    vetoes: tuple[str, ...]
    absent_judges: tuple[str, ...]
    reasons: tuple[str, ...] = ()
    reward: Range | None = None

    def band(self, section: TribunalSection) -> str:
        """The verdict on this answer alone; UNDECIDED where an absent judge could change it, or below quorum."""
        if self.vetoes:
            return REJECTED
        if self.mean is None:
            return UNDECIDED
        low = band([r[0] for r in self.judges.values()], self.mean[0], section)
        return low if low == band([r[1] for r in self.judges.values()], self.mean[1], section) else UNDECIDED

    def to_json(self) -> dict[str, Any]:
        return {
            "case": self.case,
            "mean": None if self.mean is None else [round(x, 4) for x in self.mean],
            "judges": {name: [round(x, 4) for x in r] for name, r in self.judges.items()},
            "vetoes": list(self.vetoes),
            "out": list(self.absent_judges),
            "reasons": list(self.reasons),
            **({} if self.reward is None else {"reward": [round(x, 4) for x in self.reward]}),
        }


def band(judges: Sequence[float], mean: float, section: TribunalSection) -> str:
    """APPROVED, CONDITIONAL or REJECTED for these scores; a judge below the floor rejects, whatever the mean."""
    if min(judges) < section.judge_floor - EPSILON or mean < section.conditional_threshold - EPSILON:
        return REJECTED
    return APPROVED if mean >= section.approval_threshold - EPSILON else CONDITIONAL


def opinion(
    case: str, verdicts: Sequence[Verdict | Unscored], section: TribunalSection, code_vetoes: Sequence[str] = ()
) -> Opinion:
    """The opinion that follows from all verdicts on one answer, of any number of models per judge.

    Args:
        code_vetoes: those that code found, without a judge.
    """
    weights = section.weights.model_dump()
    judges: dict[str, Range] = {}
    absent: list[str] = []
    vetoes = list(code_vetoes)
    for name in JUDGES:
        all_of_judge = [v for v in verdicts if v.judge == name]
        scored = [v for v in all_of_judge if isinstance(v, Verdict)]
        if not scored:
            absent.append(name)
            judges[name] = (0.0, 1.0)
            continue
        missing, count = len(all_of_judge) - len(scored), len(all_of_judge)
        low, high = (sum(v.range[end] for v in scored) for end in (0, 1))
        judges[name] = (low / count, (high + missing) / count)
        raised = [v.veto for v in scored if v.veto]
        if raised and 2 * len(raised) > len(scored):  # by more than half of its models
            vetoes.append(raised[0])
    reward = _reward(verdicts)
    if reward is not None and section.reward.role == "tie_breaker" and reward[0] == reward[1]:
        judges = {name: _between(judges[name], reward[0]) for name in JUDGES}
    low, high = (sum(weights[name] * judges[name][i] for name in JUDGES) for i in (0, 1))
    if reward is not None and section.reward.role == "seat":
        low, high = (
            (1 - section.reward.weight) * x + section.reward.weight * y
            for x, y in zip((low, high), reward, strict=True)
        )
    reasons = tuple(f"{v.judge} ({v.model}): {v.reason}" for v in verdicts if isinstance(v, Unscored))
    valid = tuple(dict.fromkeys(v for v in vetoes if v in section.vetoes))
    return Opinion(case, judges, None if len(absent) >= 2 else (low, high), valid, tuple(absent), reasons, reward)


def _reward(verdicts: Sequence[Verdict | Unscored]) -> Range | None:
    """The score of the reward model beside the judges; anything where it gave none; None where none sits there."""
    found = [v for v in verdicts if v.judge == REWARD]
    if not found:
        return None
    return (found[0].score, found[0].score) if isinstance(found[0], Verdict) else (0.0, 1.0)


def _between(judge: Range, reward: float) -> Range:
    """A judge's range with the reward in place of what is missing; as it is where nothing is."""
    if judge[0] == judge[1]:
        return judge
    settled = judge[0] + reward * (judge[1] - judge[0])
    return settled, settled


@dataclass(frozen=True)
class Ruling:
    """The verdict on a model, why, and how many more prompts would decide it, where more prompts would."""

    verdict: str
    reason: str
    more_prompts: int | None = None

    @property
    def exit_code(self) -> int:
        """The exit code of a command that gates on the verdict: 0 APPROVED, 3 REJECTED, 4 CONDITIONAL or UNDECIDED."""
        return {APPROVED: 0, REJECTED: 3}.get(self.verdict, 4)

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, stored: dict[str, Any]) -> Ruling:
        """The ruling in a trial's or a report's record. Raises KeyError where there is none."""
        return cls(stored["verdict"], stored["reason"], stored.get("more_prompts"))


@dataclass(frozen=True)
class JudgeStatus:
    """One judge in a report: its weight, and its estimate or why there is none, in words."""

    weight: float
    status: str


@dataclass(frozen=True)
class ReportedRuling(Ruling):
    """A ruling as reports show it, with each judge's status and the thresholds that it was formed by."""

    judges: dict[str, JudgeStatus] = field(default_factory=dict)
    approval_threshold: float = 0.0
    judge_floor: float = 0.0

    @classmethod
    def of(cls, ruling: Ruling, statuses: dict[str, str], section: TribunalSection) -> ReportedRuling:
        """`ruling` by these settings, with what is known of each judge, in words."""
        weights = section.weights.model_dump()
        return cls(
            ruling.verdict,
            ruling.reason,
            ruling.more_prompts,
            {name: JudgeStatus(weights[name], status) for name, status in statuses.items()},
            section.approval_threshold,
            section.judge_floor,
        )

    @classmethod
    def from_json(cls, stored: dict[str, Any]) -> ReportedRuling:
        """The ruling in a run's record. Raises KeyError where a field is missing."""
        judges = {name: JudgeStatus(**judge) for name, judge in stored["judges"].items()}
        more_prompts = stored.get("more_prompts")
        thresholds = stored["approval_threshold"], stored["judge_floor"]
        return cls(stored["verdict"], stored["reason"], more_prompts, judges, *thresholds)


def no_judge_ruling(section: TribunalSection, why: str | None = None) -> ReportedRuling:
    """The ruling while no judge is named, or while the one that is named can't judge.

    Args:
        why: which judge, and why it can't.
    """
    reason = why or (
        N_(
            "no judge is set: name one with --judge; the Tribunal needs a language model that was "
            "shown to be fit to judge"
        )
    )
    return ReportedRuling.of(
        Ruling(UNDECIDED, reason), dict.fromkeys(section.weights.model_dump(), N_("not seated")), section
    )
