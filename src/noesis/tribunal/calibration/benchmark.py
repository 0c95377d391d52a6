"""Judging the judges, `noesis tribunal calibrate --judge SPEC`: measured on minimal pairs before they may decide.

A calibration belongs to one model, one version of the rubrics and one benchmark (`calibration_store.py`). A judge is
fit if the lower limit of its pairwise accuracy on the locked half is above the accuracy of keywords, of length and of a
coin.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import Any

import numpy as np

from noesis.core.config import TribunalSection
from noesis.llm.clients.protocol import ModelClient
from noesis.tribunal.calibration.baselines import baselines, pairwise
from noesis.tribunal.calibration_store import Calibration
from noesis.tribunal.court import EPSILON
from noesis.tribunal.judge import JudgeCase
from noesis.tribunal.panel import JudgePanel
from noesis.tribunal.reward.client import RewardClient
from noesis.tribunal.reward.scale import Scale, fit_scale
from noesis.tribunal.reward.seat import note_on, rewards_of
from noesis.tribunal.reward.words import word_scorer
from noesis.tribunal.rubric import JUDGES
from noesis.tribunal.statistics import auroc, brier, effective_votes, krippendorff_alpha, slope, wilson
from noesis.tribunal.suite import JudgePair, Part, TwinAnswers, benchmark_digest
from noesis.tribunal.verdict import Unscored, Verdict

Place = tuple[str, str, str]  # (row, side, judge)
Scores = dict[Place, list[float | None]]  # the score by each model, None where Unscored
JudgeScores = dict[Place, float | None]  # the score by one model


@dataclass(frozen=True)
class Benchmark:
    """Rows to be judged, and the part of the benchmark that they are from."""

    pairs: list[JudgePair]
    twins: list[TwinAnswers]
    part: Part

    def digest(self) -> str:
        return benchmark_digest(self.pairs, self.twins)

    def cases(self) -> tuple[list[tuple[str, str]], list[JudgeCase], list[tuple[str, ...]]]:
        """(row, side), case and judges of each answer; all three judges score twins."""
        places: list[tuple[str, str]] = []
        cases: list[JudgeCase] = []
        judges: list[tuple[str, ...]] = []
        for pair in self.pairs:
            for side, text in (("good", pair.good), ("bad", pair.bad)):
                places.append((pair.id, side))
                cases.append(_case(pair.id, side, pair.language, pair.prompt, text, pair.reference))
                judges.append(tuple(pair.judges))
        for row in self.twins:
            second = (row.b, row.b_language or row.language, row.b_prompt or row.prompt)
            for side, (text, language, prompt) in (("a", (row.a, row.language, row.prompt)), ("b", second)):
                places.append((row.id, side))
                cases.append(_case(row.id, side, language, prompt, text, row.reference))
                judges.append(JUDGES)
        return places, cases, judges


def _case(name: str, side: str, language: str, prompt: str, text: str, reference: str) -> JudgeCase:
    return JudgeCase(f"{name}/{side}", language, (("user", prompt),), text, {"reference": reference})


async def measure_judges(panel: JudgePanel, benchmark: Benchmark, section: TribunalSection) -> list[Calibration]:
    """A calibration of each of the panel's models; their agreement is in each where there are several.

    Raises:
        CapError: the cap is reached; what was judged is in the cache.
    """
    places, cases, judges = benchmark.cases()
    verdicts = await panel.judge(cases, judges, what="calibrate")
    scores: Scores = {}
    spans = dict.fromkeys(panel.names, (0, 0))  # model → (found in the answer, given)
    ways = {name: Counter[str]() for name in panel.names}  # model → how many items were quoted, read, abstained
    reasons: dict[str, list[str]] = {name: [] for name in panel.names}
    for (row, side), of_answer in zip(places, verdicts, strict=True):
        for v in of_answer:
            scores.setdefault((row, side, v.judge), []).append(v.score if isinstance(v, Verdict) else None)
            if isinstance(v, Unscored):
                reasons[v.model].append(v.reason)
            else:
                ways[v.model].update(i.how for i in v.items)
                given = [i for i in v.items if i.span]
                found, of = spans[v.model]
                spans[v.model] = (found + sum(i.span_found for i in given), of + len(given))
    agreement = _agreement(scores, benchmark.pairs, len(panel.clients))
    return [
        _calibration(
            {key: values[number] for key, values in scores.items()},
            benchmark,
            section,
            judge=client.name,
            identity=identity,
            rubrics_sha256=panel.rubrics.digest(),
            learnt_baselines=_learnt_baselines(client, benchmark.pairs),
            more={
                "spans_found": {"found": spans[client.name][0], "given": spans[client.name][1]},
                "items": dict(ways[client.name]),
                "reasons": sorted(set(reasons[client.name]))[:5],
                "agreement": agreement,
                **_reward_details(client, panel),
            },
        )
        for number, (client, identity) in enumerate(zip(panel.clients, panel.identities, strict=True))
    ]


async def fit_scales(panel: JudgePanel, benchmark: Benchmark) -> dict[str, Scale]:
    """The scale of each reward model on the panel, by identity, from its rewards of the benchmark's pairs."""
    good, bad = (
        [
            _case(pair.id, side, pair.language, pair.prompt, pair.good if side == "good" else pair.bad, pair.reference)
            for pair in benchmark.pairs
        ]
        for side in ("good", "bad")
    )
    scales = {}
    for client in panel.clients:
        if isinstance(client, RewardClient):
            found = await rewards_of(client, [*good, *bad], panel.cache)
            known = [(reward, i < len(good)) for i, reward in enumerate(found) if reward is not None]
            scales[client.identity] = fit_scale(
                *([r for r, is_good in known if is_good is want] for want in (True, False))
            )
    return scales


def _calibration(
    scores: JudgeScores,
    benchmark: Benchmark,
    section: TribunalSection,
    *,
    judge: str,
    identity: str,
    rubrics_sha256: str,
    learnt_baselines: dict[str, dict[str, Any]],
    more: dict[str, Any],
) -> Calibration:
    """What one judge's scores on the benchmark say about it."""
    pairs = benchmark.pairs
    outcomes = {pair.id: _compare(scores, pair) for pair in pairs}
    right = {name: outcome == "right" for name, outcome in outcomes.items()}
    count = sum(right.values())
    low, high = wilson(count, len(right))
    of_baselines = baselines(pairs) | learnt_baselines
    good, bad = ([_mean(scores, pair, side) for pair in pairs] for side in ("good", "bad"))
    threshold = section.approval_threshold
    approved = [x >= threshold - EPSILON for x in good if x is not None]
    rejected = [x < threshold - EPSILON for x in bad if x is not None]
    return Calibration(
        judge=judge,
        identity=identity,
        rubrics_sha256=rubrics_sha256,
        benchmark_sha256=benchmark.digest(),
        part=benchmark.part,
        pairs=len(right),
        accuracy=round(count / len(right), 4) if right else None,
        interval_95=(round(low, 4), round(high, 4)),
        outcomes=outcomes,
        ties=sum(o == "tie" for o in outcomes.values()),
        baselines=of_baselines,
        fit=is_fit(low, of_baselines),
        sensitivity=(sum(approved), len(approved)),
        specificity=(sum(rejected), len(rejected)),
        details=_details(scores, benchmark, right) | more,
    )


def _learnt_baselines(client: ModelClient, pairs: list[JudgePair]) -> dict[str, dict[str, Any]]:
    """What a judge that was trained on pairs has to beat besides: a bag of words that was trained on them, too."""
    if not isinstance(client, RewardClient) or client.words is None:
        return {}
    return {"words": pairwise(pairs, word_scorer(client.words))}


def _reward_details(client: ModelClient, panel: JudgePanel) -> dict[str, Any]:
    """What a reward model's calibration says besides: its scale, and what it is kin to."""
    if not isinstance(client, RewardClient):
        return {}
    return {"scale": panel.scales.get(client.identity, Scale()).to_json(), "note": note_on(client)}


def _details(scores: JudgeScores, benchmark: Benchmark, right: dict[str, bool]) -> dict[str, Any]:
    """The figures that only reports show, as JSON."""
    pairs, twins = benchmark.pairs, benchmark.twins
    known = [
        (mean, side == "good")
        for side in ("good", "bad")
        for pair in pairs
        if (mean := _mean(scores, pair, side)) is not None
    ]
    attacks, languages = sorted({p.attack for p in pairs}), sorted({p.language for p in pairs})
    return {
        "by_attack": {a: _rate([right[p.id] for p in pairs if p.attack == a]) for a in attacks},
        "by_language": {x: _rate([right[p.id] for p in pairs if p.language == x]) for x in languages},
        "by_date": _by_date(right, pairs),
        "pt_minus_en": _gap(right, pairs),
        "auroc": {judge: _round(_auroc(scores, pairs, judge)) for judge in JUDGES},
        "brier": _round(brier([x for x, _ in known], [y for _, y in known]) if known else None),
        "length": _length_effect(scores, pairs),
        "position": _invariance(scores, [t for t in twins if t.kind == "order"]),
        "invariance": {
            kind: _invariance(scores, [t for t in twins if t.kind == kind]) for kind in sorted({t.kind for t in twins})
        },
        "injection": _rate([not right[p.id] for p in pairs if p.attack == "prompt_injection"]),
        "abstention": _rate([v is None for v in scores.values()]),
    }


def is_fit(lower: float, of_baselines: dict[str, dict[str, Any]]) -> bool:
    """Whether a judge whose accuracy is at least `lower` beats every baseline and a coin."""
    return bool(lower > max(0.5, *(found["accuracy"] or 0 for found in of_baselines.values())))


def _mean(scores: JudgeScores, pair: JudgePair, side: str) -> float | None:
    """The mean score of one side by the judges that should see the difference; None if any of them gave none."""
    values = [scores.get((pair.id, side, judge)) for judge in pair.judges]
    return None if any(v is None for v in values) else sum(v for v in values if v is not None) / len(values)


def _compare(scores: JudgeScores, pair: JudgePair) -> str:
    good, bad = _mean(scores, pair, "good"), _mean(scores, pair, "bad")
    if good is None or bad is None:
        return "abstained"
    return "tie" if abs(good - bad) < EPSILON else "right" if good > bad else "wrong"


def _rate(values: list[bool]) -> dict[str, Any]:
    low, high = wilson(sum(values), len(values))
    return {"count": sum(values), "of": len(values), "interval_95": [round(low, 4), round(high, 4)]}


def _round(x: float | None) -> float | None:
    return None if x is None else round(x, 4)


def _by_date(right: dict[str, bool], pairs: list[JudgePair]) -> dict[str, Any]:
    """Of a benchmark that grew: the figures, and the baselines', on the rows of each date; "first" had none."""
    dates = sorted({p.since for p in pairs})
    parts = {date or "first": [p for p in pairs if p.since == date] for date in dates}
    return {name: _rate([right[p.id] for p in part]) | {"baselines": baselines(part)} for name, part in parts.items()}


def _gap(right: dict[str, bool], pairs: list[JudgePair]) -> dict[str, Any] | None:
    """Accuracy in Portuguese minus in English, with a 95% interval (Newcombe's, from two Wilson intervals)."""
    pt, en = ([right[p.id] for p in pairs if p.language == x] for x in ("pt", "en"))
    if not pt or not en:
        return None
    p, q = sum(pt) / len(pt), sum(en) / len(en)
    (pl, ph), (ql, qh) = wilson(sum(pt), len(pt)), wilson(sum(en), len(en))
    low, high = p - q - ((p - pl) ** 2 + (qh - q) ** 2) ** 0.5, p - q + ((ph - p) ** 2 + (q - ql) ** 2) ** 0.5
    return {"gap": round(p - q, 4), "interval_95": [round(low, 4), round(high, 4)]}


def _auroc(scores: JudgeScores, pairs: list[JudgePair], judge: str) -> float | None:
    good, bad = (
        [v for p in pairs if judge in p.judges and (v := scores.get((p.id, side, judge))) is not None]
        for side in ("good", "bad")
    )
    return auroc(good, bad)


def _length_effect(scores: JudgeScores, pairs: list[JudgePair]) -> dict[str, Any] | None:
    """The effect of 100 more words on the score, from differences within pairs; the intercept absorbs quality."""
    rows = []
    for p in pairs:
        good, bad = _mean(scores, p, "good"), _mean(scores, p, "bad")
        if good is not None and bad is not None:
            rows.append((len(p.bad.split()) - len(p.good.split()), bad - good))
    found = slope([x / 100 for x, _ in rows], [y for _, y in rows])
    return None if found is None else {"score_per_100_words": round(found[0], 4), "standard_error": round(found[1], 4)}


def _invariance(scores: JudgeScores, twins: list[TwinAnswers]) -> dict[str, Any]:
    """Mean |b - a| and mean b - a of answers that deserve the same score, over the three judges."""
    gaps = []
    for row in twins:
        for judge in JUDGES:
            a, b = scores.get((row.id, "a", judge)), scores.get((row.id, "b", judge))
            if a is not None and b is not None:
                gaps.append(b - a)
    if not gaps:
        return {"comparisons": 0}
    return {
        "comparisons": len(gaps),
        "mean_change": round(float(np.mean(gaps)), 4),
        "mean_absolute_change": round(float(np.mean(np.abs(gaps))), 4),
    }


def _agreement(scores: Scores, pairs: list[JudgePair], models: int) -> dict[str, Any] | None:
    """Krippendorff's ordinal alpha, and how many independent votes the models are worth; None with one model."""
    if models < 2:
        return None
    table = np.array([[np.nan if v is None else v for v in values] for values in scores.values()], float).T
    truth = {(p.id, side): float(side == "good") for p in pairs for side in ("good", "bad")}
    whole = [
        [v - truth[key[:2]] for v in values if v is not None]
        for key, values in scores.items()
        if key[:2] in truth and None not in values
    ]
    errors = np.array(whole).T if whole else np.empty((models, 0))
    return {
        "models": models,
        "alpha": _round(krippendorff_alpha(table)),
        "effective_votes": _round(effective_votes(errors)),
    }
