"""The court: three judges' verdicts on an answer become an opinion; many opinions become figures. No judge's silence is filled in.

A judge that gave no verdict could have given anything: the opinion is then the interval [judge at 0, judge at 1], of the weighted mean
as of that judge; with two judges out there is no opinion. Several models in one judge's seat are a mean, an absent one again anything.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from noesis.core.config import TribunalSection
from noesis.tribunal.rubric import JUDGES
from noesis.tribunal.verdict import Unscored, Verdict

UNDECIDED, APPROVED, CONDITIONAL, REJECTED = "UNDECIDED", "APPROVED", "CONDITIONAL", "REJECTED"
Range = tuple[float, float]


@dataclass(frozen=True)
class Opinion:
    """What the court holds of one answer.

    judges: (low, high) of each judge, 0..1; equal where all of its models gave a verdict
    mean: (low, high) of the weighted mean; None below quorum
    vetoes: what decides before the mean
    out: the judges that gave no verdict at all
    """

    case: str
    judges: dict[str, Range]
    mean: Range | None
    vetoes: tuple[str, ...]
    absent_judges: tuple[str, ...]
    reasons: tuple[str, ...] = ()

    def band(self, section: TribunalSection) -> str:
        """The answer's own band; UNDECIDED where an absent judge could change it, or below quorum."""
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
        }


def band(judges: Sequence[float], mean: float, section: TribunalSection) -> str:
    """APPROVED, CONDITIONAL or REJECTED for these figures; a judge below the floor rejects, whatever the mean."""
    tiny = 1e-9  # 0.4 + 0.3 is not 0.7 in binary
    if min(judges) < section.judge_floor - tiny or mean < section.conditional_threshold - tiny:
        return REJECTED
    return APPROVED if mean >= section.approval_threshold - tiny else CONDITIONAL


def opinion(
    case: str, verdicts: Sequence[Verdict | Unscored], section: TribunalSection, code_vetoes: Sequence[str] = ()
) -> Opinion:
    """The court's opinion from all verdicts on one answer, of any number of models a judge."""
    weights = section.weights.model_dump()
    judges: dict[str, Range] = {}
    out, vetoes = [], list(code_vetoes)
    for name in JUDGES:
        mine = [v for v in verdicts if v.judge == name]
        scored = [v for v in mine if isinstance(v, Verdict)]
        if not scored:
            out.append(name)
            judges[name] = (0.0, 1.0)
            continue
        total = sum(v.score for v in scored)
        judges[name] = (total / len(mine), (total + (len(mine) - len(scored))) / len(mine))
        raised = [v.veto for v in scored if v.veto]
        if raised and 2 * len(raised) > len(scored):  # more than half of its models saw it
            vetoes.append(raised[0])
    low, high = (sum(weights[name] * judges[name][i] for name in JUDGES) for i in (0, 1))
    reasons = tuple(f"{v.judge} ({v.model}): {v.reason}" for v in verdicts if isinstance(v, Unscored))
    kept = tuple(dict.fromkeys(v for v in vetoes if v in section.vetoes))
    return Opinion(case, judges, None if len(out) >= 2 else (low, high), kept, tuple(out), reasons)


def no_judge_ruling(section: TribunalSection) -> dict[str, Any]:
    """What the court says while no judge is seated."""
    weights = section.weights.model_dump()
    return {
        "verdict": UNDECIDED,
        "reason": "no judge is seated: name one with --judge; the Tribunal needs a language model that was shown to be fit to judge",
        "judges": {name: {"weight": weight, "status": "not seated"} for name, weight in weights.items()},
        "approval_threshold": section.approval_threshold,
        "judge_floor": section.judge_floor,
    }
