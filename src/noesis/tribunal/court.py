"""The place of the three judges: Veritas, Sophia, Dikē.

They need a language model fit to judge, and none is seated yet. An empty bench has no opinion: there is no mean, no verdict, and
nothing else in this package stands in for one.
"""

from __future__ import annotations

from typing import Any

from noesis.config import TribunalSection

UNDECIDED = "UNDECIDED"


def empty_bench(section: TribunalSection) -> dict[str, Any]:
    """What the court says while no judge is seated."""
    weights = section.weights.model_dump()
    return {
        "verdict": UNDECIDED,
        "reason": "no judge is seated: the Tribunal's three judges need a language model that was shown to be fit to judge",
        "judges": {name: {"weight": weight, "status": "not seated"} for name, weight in weights.items()},
        "approval_threshold": section.approval_threshold,
        "judge_floor": section.judge_floor,
    }
