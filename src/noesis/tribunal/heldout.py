"""Preference accuracy and held-out loss, base against tuned, from the models' own probabilities, without a judge.

Preference accuracy: how often a model finds the revised answer likelier, per token, than the initial one. Held-out
loss: mean negative log-likelihood per token of the revised answers, in nats. They say whether training worked, not
whether answers are good.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from noesis.core.i18n import _
from noesis.core.rooted import is_name
from noesis.tribunal.court import ReportedRuling
from noesis.tribunal.kept.figures import KeptFigures
from noesis.tribunal.offline_screen import ScreenTally
from noesis.tribunal.statistics import Interval, wilson

Score = tuple[float, int]  # sum of the natural-log probabilities of an answer's tokens, and their number


@dataclass(frozen=True)
class ModelScores:
    """One model's figures on the held-out examples.

    held_out_loss: nats per token
    preferred: examples in which it prefers the revision; interval_95 is that of their share
    mean_margin: nats per token
    """

    held_out_loss: float
    preference_accuracy: float
    preferred: int
    interval_95: Interval
    mean_margin: float

    def to_json(self) -> dict[str, Any]:
        return asdict(self) | {"interval_95": list(self.interval_95)}

    @classmethod
    def from_json(cls, stored: dict[str, Any]) -> ModelScores:
        low, high = stored["interval_95"]
        return cls(**{**stored, "interval_95": (low, high)})


@dataclass(frozen=True)
class ExampleMargins:
    """One example's margins by both models, nats per token."""

    id: str
    base_margin: float
    tuned_margin: float


@dataclass(frozen=True)
class Preference:
    """Both models on the held-out examples.

    adapter: the tuned model's, by the name of its folder; empty where it is not known
    """

    examples: int
    base: ModelScores
    tuned: ModelScores
    by_example: tuple[ExampleMargins, ...]
    adapter: str = ""

    def to_json(self) -> dict[str, Any]:
        return {
            "examples": self.examples,
            "base": self.base.to_json(),
            "tuned": self.tuned.to_json(),
            "by_example": [asdict(margins) for margins in self.by_example],
        } | ({"adapter": self.adapter} if self.adapter else {})

    @classmethod
    def from_json(cls, stored: dict[str, Any]) -> Preference:
        base, tuned = (ModelScores.from_json(stored[model]) for model in ("base", "tuned"))
        rows = tuple(ExampleMargins(**row) for row in stored["by_example"])
        if not is_name(stored.get("adapter", "none")):
            raise ValueError(_("{stored!r} is no name of an adapter", stored=stored["adapter"]))
        return cls(stored["examples"], base, tuned, rows, stored.get("adapter", ""))


@dataclass(frozen=True)
class ScreenComparison:
    """The offline screen's counts over both models' answers. name: of the screen."""

    name: str
    base: ScreenTally
    tuned: ScreenTally

    @classmethod
    def from_json(cls, stored: dict[str, Any]) -> ScreenComparison:
        return cls(stored["name"], ScreenTally(**stored["base"]), ScreenTally(**stored["tuned"]))


@dataclass(frozen=True)
class JudgeResult:
    """The result of the stage judge. court: the ruling as reports show it, which in this stage is that of no judge.

    kept: what training broke; None where it was not measured, as in early versions.
    """

    preference: Preference
    screen: ScreenComparison
    court: ReportedRuling
    kept: KeptFigures | None = None

    def to_json(self) -> dict[str, Any]:
        court = self.court.to_json()
        del court["more_prompts"]  # without a judge, no number of prompts decides
        found = {"preference": self.preference.to_json(), "screen": asdict(self.screen), "court": court}
        return found | ({"kept": self.kept.to_json()} if self.kept else {})

    @classmethod
    def from_json(cls, stored: dict[str, Any]) -> JudgeResult:
        return cls(
            Preference.from_json(stored["preference"]),
            ScreenComparison.from_json(stored["screen"]),
            ReportedRuling.from_json(stored["court"]),
            KeptFigures.from_json(stored["kept"]) if "kept" in stored else None,
        )


def compare(
    ids: list[str], base: dict[str, list[Score]], tuned: dict[str, list[Score]], *, adapter: str = ""
) -> Preference:
    """The figures of both models.

    Args:
        ids: of the examples.
        base, tuned: scores of the answers `initial` and `revised`, in the order of `ids`.
    """
    rows = zip(ids, margins(base), margins(tuned), strict=True)
    return Preference(
        len(ids),
        _figures(base),
        _figures(tuned),
        tuple(ExampleMargins(name, round(b, 4), round(t, 4)) for name, b, t in rows),
        adapter,
    )


def margins(scores: dict[str, list[Score]]) -> list[float]:
    """Mean log-probability per token of the revised answer minus that of the initial one, for each example."""
    return [r / n - i / m for (r, n), (i, m) in zip(scores["revised"], scores["initial"], strict=True)]


def _figures(scores: dict[str, list[Score]]) -> ModelScores:
    values = margins(scores)
    preferred = sum(value > 0 for value in values)
    low, high = wilson(preferred, len(values))
    total, tokens = sum(s for s, _ in scores["revised"]), sum(n for _, n in scores["revised"])
    return ModelScores(
        held_out_loss=round(-total / tokens, 5),
        preference_accuracy=round(preferred / len(values), 4),
        preferred=preferred,
        interval_95=(round(low, 4), round(high, 4)),
        mean_margin=round(sum(values) / len(values), 5),
    )
