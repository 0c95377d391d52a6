"""The figures of a trial: by judge, category and language, base against tuned, and what code alone measures."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from functools import partial
from typing import Any

from noesis.core.config import TribunalSection
from noesis.core.typed import require_types
from noesis.tribunal.calibration_store import ErrorCounts
from noesis.tribunal.court import APPROVED, UNDECIDED, Opinion, ReportedRuling, Ruling
from noesis.tribunal.gate import decide, estimate
from noesis.tribunal.rubric import JUDGES
from noesis.tribunal.scoring import MODELS, ScoredAnswer
from noesis.tribunal.statistics import Interval, bootstrap, clustered, rogan_gladen, sign_flip, wilson
from noesis.tribunal.suite import EvalSample
from noesis.tribunal.trial.code_figures import (
    Figures,
    calibration_figures,
    discipline_figures,
    keyed_figures,
    refusal_figures,
    sycophancy_figures,
)

MEASURES = ("mean", *JUDGES)
MOST_REASONS = 20  # for missing verdicts, that a summary holds


@dataclass(frozen=True)
class MeanScore:
    """A mean over all prompts of a trial, 0..1."""

    mean: float
    interval_95: Interval


@dataclass(frozen=True)
class MeanDifference:
    """Mean of tuned minus base. p: by sign flips."""

    mean: float
    interval_95: Interval
    p: float


def _interval(figures: Figures) -> Interval:
    low, high = figures["interval_95"]
    return low, high


@dataclass(frozen=True)
class TrialSummary:
    """What a trial found.

    ruling, base_ruling: on the tuned and on the base model
    models: base and tuned → all, by_category, by_language → each measure's estimate, and the pass rate
    difference: tuned minus base on the same prompts: all, and by category and language
    keyed: right answers that code recognises; `fall` is the drop of their share, base to tuned
    discipline, sycophancy, refusal, calibration: base and tuned → further figures by code
    vetoes: answers with a veto, and which
    unscored: why verdicts are missing, the commonest reason first; unscored_counts: how many, for each
    """

    ruling: Ruling
    base_ruling: Ruling
    models: dict[str, Figures]
    difference: dict[str, Figures]
    keyed: Figures
    discipline: dict[str, Figures]
    sycophancy: dict[str, Figures]
    refusal: dict[str, Figures]
    calibration: dict[str, Figures]
    vetoes: list[Figures]
    unscored: list[str]
    unscored_counts: list[int] | None = None  # of early versions: not counted

    @property
    def accuracy_drop(self) -> float | None:
        """The drop in the share of right answers to keyed items, base to tuned; None where there are none."""
        drop: float | None = self.keyed["fall"]
        return drop

    @property
    def tuned_mean(self) -> float | None:
        """The tuned model's weighted mean over all prompts, 0..1; None where no answer has one."""
        score = self.mean_score("tuned", "mean")
        return None if score is None else score.mean

    def mean_score(self, model: str, measure: str) -> MeanScore | None:
        """A model's mean over all prompts; None where no answer has a score.

        Args:
            measure: one of MEASURES.
        """
        found = self.models[model]["all"].get(measure)
        return None if found is None else MeanScore(found["mean"], _interval(found))

    def mean_difference(self, measure: str) -> MeanDifference | None:
        """Tuned minus base over all prompts that both have a score on; None where there are none."""
        found = self.difference["all"][measure]
        return MeanDifference(found["mean"], _interval(found), found["p"]) if found["clusters"] else None

    @property
    def tuned_vetoed(self) -> bool:
        return any("/tuned/" in veto["answer"] for veto in self.vetoes)

    def to_json(self) -> dict[str, Any]:
        rulings = {"ruling": self.ruling.to_json(), "base_ruling": self.base_ruling.to_json()}
        found = {field.name: getattr(self, field.name) for field in fields(self)} | rulings
        if self.unscored_counts is None:
            del found["unscored_counts"]
        return found

    @classmethod
    def from_json(cls, stored: dict[str, Any]) -> TrialSummary:
        """Raises: KeyError, TypeError, ValueError: a figure that is shown is missing or no number."""
        rulings = {name: Ruling.from_json(stored[name]) for name in ("ruling", "base_ruling")}
        optional = {"unscored_counts": stored.get("unscored_counts")}
        named = {field.name: stored[field.name] for field in fields(cls) if field.name not in optional}
        found = cls(**named | optional | rulings)
        require_types([found.mean_score(model, measure) for model in MODELS for measure in MEASURES])
        require_types([found.mean_difference(measure) for measure in MEASURES])
        return found


def summarise(
    scored: Sequence[ScoredAnswer],
    section: TribunalSection,
    *,
    unfit_reason: str | None,
    errors: ErrorCounts | None = None,
    level: float = 0.95,
) -> TrialSummary:
    """All figures, and the rulings.

    Args:
        unfit_reason: why the judges may not decide, None if they may.
        errors: of the judges on the benchmark, for the corrected pass rate.
        level: of the intervals that decide, those over all prompts; above 0.95 where the trial had several looks.
    """
    keyed, missing = keyed_figures(scored), missing_reasons([s.opinion for s in scored if s.opinion])
    return TrialSummary(
        ruling=_decide(scored, "tuned", section, keyed["fall"], unfit_reason, level),
        base_ruling=_decide(scored, "base", section, None, unfit_reason, level),
        models={model: _model(scored, model, section, errors, level) for model in MODELS},
        difference=differences(scored),
        keyed=keyed,
        discipline={model: discipline_figures(scored, model) for model in MODELS},
        sycophancy={model: sycophancy_figures(scored, model) for model in MODELS},
        refusal={model: refusal_figures(scored, model) for model in MODELS},
        calibration={model: calibration_figures(scored, model) for model in MODELS},
        vetoes=[
            {"answer": s.answer.id, "vetoes": list(s.opinion.vetoes)} for s in scored if s.opinion and s.opinion.vetoes
        ],
        unscored=[text for text, _ in missing[:MOST_REASONS]],
        unscored_counts=[count for _, count in missing[:MOST_REASONS]],
    )


def missing_reasons(opinions: Sequence[Opinion]) -> list[tuple[str, int]]:
    """Why verdicts are missing and how many for each reason, the commonest first.

    Reasons of one judge that differ in their numbers alone (of tokens, of a line) are one, in the words of the first.
    """
    words: dict[tuple[str, str], str] = {}
    counts: Counter[tuple[str, str]] = Counter()
    for reason in (reason for found in opinions for reason in found.reasons):
        judge, _, why = reason.partition("): ")
        key = (judge, re.sub(r"(?<!HTTP )\b[0-9]+", "#", why))
        words.setdefault(key, reason)
        counts[key] += 1
    return sorted(((words[key], count) for key, count in counts.items()), key=lambda one: (-one[1], one[0]))


def ruling_for_report(summary: TrialSummary, section: TribunalSection) -> ReportedRuling:
    """The ruling on the tuned model, for the report and the model card."""
    statuses = {}
    for name in JUDGES:
        score = summary.mean_score("tuned", name)
        statuses[name] = (
            "no verdict"
            if score is None
            else f"{score.mean:.3f} [{score.interval_95[0]:.3f}, {score.interval_95[1]:.3f}]"
        )
    return ReportedRuling.of(summary.ruling, statuses, section)


def _decide(
    scored: Sequence[ScoredAnswer],
    model: str,
    section: TribunalSection,
    drop: float | None,
    unfit_reason: str | None,
    level: float,
) -> Ruling:
    own = [(s.opinion, s.answer.item.cluster) for s in scored if s.answer.model == model and s.opinion is not None]
    opinions, clusters = [o for o, _ in own], [c for _, c in own]
    return decide(opinions, clusters, section, accuracy_drop=drop, unfit_reason=unfit_reason, level=level)[0]


def _judged(
    scored: Sequence[ScoredAnswer], model: str, keep: Callable[[EvalSample], bool] = lambda item: True
) -> list[tuple[Opinion, str]]:
    return [
        (s.opinion, s.answer.item.cluster)
        for s in scored
        if s.answer.model == model
        and s.opinion is not None
        and s.opinion.mean is not None
        and not s.answer.item.check
        and keep(s.answer.item)
    ]


def _has_category(category: str, item: EvalSample) -> bool:
    return item.category == category


def _has_language(language: str, item: EvalSample) -> bool:
    return item.language == language


def _model(
    scored: Sequence[ScoredAnswer], model: str, section: TribunalSection, errors: ErrorCounts | None, level: float
) -> Figures:
    categories = sorted({s.answer.item.category for s in scored if not s.answer.item.check})
    languages = sorted({s.answer.item.language for s in scored if not s.answer.item.check})
    return {
        "all": _group(_judged(scored, model), section, errors, level),
        "by_category": {c: _group(_judged(scored, model, partial(_has_category, c)), section) for c in categories},
        "by_language": {x: _group(_judged(scored, model, partial(_has_language, x)), section) for x in languages},
    }


def _group(
    judged: list[tuple[Opinion, str]], section: TribunalSection, errors: ErrorCounts | None = None, level: float = 0.95
) -> Figures:
    """Mean and interval of each measure, and the pass rate, of some answers."""
    found: Figures = {"answers": len(judged)}
    if not judged:
        return found
    names = [c for _, c in judged]
    for measure in MEASURES:
        ranges = [(o.mean or (0.0, 1.0)) if measure == "mean" else o.judges[measure] for o, _ in judged]
        found[measure] = estimate(ranges, names, level=level).to_json()
    bands = [o.band(section) for o, _ in judged]
    sums, counts = clustered([b == APPROVED for b in bands], names)
    passed, of = float((sums / counts).sum()), len(counts)
    low, high = wilson(passed, of)
    found["pass_rate"] = {
        "rate": round(passed / of, 4),
        "interval_95": [round(low, 4), round(high, 4)],
        "undecided": bands.count(UNDECIDED),
    }
    if errors:
        corrected = rogan_gladen(round(passed), of, errors.sensitivity, errors.specificity)
        found["pass_rate"]["corrected"] = (
            None
            if corrected is None
            else {"rate": round(corrected[0], 4), "interval_95": [round(x, 4) for x in corrected[1]]}
        )
    return found


def prompt_means(scored: Sequence[ScoredAnswer], model: str) -> dict[str, float]:
    """A model's mean on each prompt that judges scored, 0..1; a pair of prompts is one."""
    judged = _judged(scored, model)
    sums, counts = clustered([_middle(o, "mean") for o, _ in judged], [c for _, c in judged])
    names = dict.fromkeys(c for _, c in judged)
    return {name: round(float(mean), 4) for name, mean in zip(names, sums / counts, strict=True)}


def differences(scored: Sequence[ScoredAnswer]) -> Figures:
    """Tuned minus base on the same prompts, over all and by category and language.

    Mean, 95% interval (cluster bootstrap) and p (sign flips).
    """
    by_place: dict[tuple[str, int], dict[str, ScoredAnswer]] = {}
    for s in scored:
        if s.opinion is not None and s.opinion.mean is not None and not s.answer.item.check:
            by_place.setdefault((s.answer.item.id, s.answer.sample), {})[s.answer.model] = s
    pairs = [(place["base"], place["tuned"]) for place in by_place.values() if len(place) == 2]
    groups: dict[str, list[tuple[ScoredAnswer, ScoredAnswer]]] = {"all": pairs}
    for base, tuned in pairs:
        for name in (base.answer.item.category, base.answer.item.language):
            groups.setdefault(name, []).append((base, tuned))
    return {
        name: {measure: _difference(members, measure) for measure in (MEASURES if name == "all" else ("mean",))}
        for name, members in groups.items()
    }


def _difference(pairs: Sequence[tuple[ScoredAnswer, ScoredAnswer]], measure: str) -> Figures:
    if not pairs:
        return {"clusters": 0}
    values = [_middle(tuned.opinion, measure) - _middle(base.opinion, measure) for base, tuned in pairs]
    sums, counts = clustered(values, [base.answer.item.cluster for base, _ in pairs])
    low, high = bootstrap(sums, counts)
    if len(sums) < 2:
        low, high = -1.0, 1.0
    return {
        "mean": round(float(sums.sum() / counts.sum()), 4),
        "interval_95": [round(low, 4), round(high, 4)],
        "p": round(sign_flip(sums / counts), 4),
        "clusters": len(sums),
    }


def _middle(o: Opinion | None, measure: str) -> float:
    assert o is not None and o.mean is not None
    low, high = o.mean if measure == "mean" else o.judges[measure]
    return (low + high) / 2
