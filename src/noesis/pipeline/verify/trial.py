"""A trial, derived from its answers and verdicts: evidence, opinions, means and the ruling."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from noesis.core.errors import NoesisError, UsageError
from noesis.core.event_loop import run_async
from noesis.core.files import sha256_json
from noesis.core.i18n import _
from noesis.core.project import Project, find_project
from noesis.pipeline.results import TrialJudge, TrialResult
from noesis.pipeline.verify.evidence import Evidence, UncheckedError, alike, as_json
from noesis.tribunal.calibration_store import error_counts, load_calibration, unfit_reason
from noesis.tribunal.court import APPROVED, UNDECIDED, opinion
from noesis.tribunal.judge import JudgeCase, quotes_answer
from noesis.tribunal.panel import read_rubrics
from noesis.tribunal.reading.asking import way_of
from noesis.tribunal.reading.item_scores import expected
from noesis.tribunal.rubric import JUDGES
from noesis.tribunal.scoring import MODELS, Answer, verdict_rows
from noesis.tribunal.suite import EvalSample, read_suite, spread
from noesis.tribunal.trial.looks import hold_looks
from noesis.tribunal.trial_summary import MOST_REASONS, ruling_for_report, summarise
from noesis.tribunal.verdict import ItemScore, Unscored, Verdict, verdict_from_json

VERDICTS, ANSWERS = ("tribunal", "verdicts.jsonl"), ("tribunal", "trial_answers.jsonl")


def _result(e: Evidence) -> TrialResult:
    found = e.results.trial
    assert found is not None
    return found


def evidence(e: Evidence) -> str | None:
    """Each verdict's scores by its own evidence: a quotation that it claims to have found is in the answer."""
    texts = {f"{row['id']}/{row['who']}/{row['sample']}": row["answer"] for row in e.rows(*ANSWERS)}
    for row in e.rows(*VERDICTS):
        for stored in row["verdicts"]:
            verdict = verdict_from_json(stored)
            if isinstance(verdict, Unscored):
                continue
            who = _("{judge} on {row}", judge=verdict.judge, row=row["answer"])
            if stored["score"] != round(verdict.score, 4):
                return _("the score of {who} does not follow from its items", who=who)
            for item in verdict.items:
                if item.span_found != quotes_answer(item.span, texts[row["answer"]]):
                    return _("whether the answer holds what {who} quotes is told wrongly", who=who)
                if not _follows(item):
                    return _("the item {id} of {who} does not follow from what the judge gave", id=item.id, who=who)
                if item.given not in (0, 1, 2):
                    return _("the item {id} of {who} has a score that there is not", id=item.id, who=who)
    return None


def _follows(item: ItemScore) -> bool:
    """Whether an item's score follows from what the judge gave, in words or in probabilities."""
    if item.how == "quoted":
        return item.score == item.given or (item.score == 0 and not item.span_found)
    if item.read is None or item.span or not all(0 <= p <= 1 for p in item.read):
        return False
    return item.score == (0 if item.how == "abstained" else expected(item.read))


def opinions(e: Evidence) -> str | None:
    """Opinions and means, which follow from the verdicts alone."""
    result, section = _result(e), e.config.training.tribunal
    if e.json_of("tribunal", "trial.json") != e.run.result("trial"):
        return _("tribunal/trial.json and the manifest differ")
    means: dict[str, list[float]] = {"base": [], "tuned": []}
    for row in e.rows(*VERDICTS):
        stored = row["opinion"]
        if row["verdicts"]:
            leaked = ("leaked_system_prompt",) if "recites the system prompt" in row["flags"] else ()
            formed = opinion(row["answer"], [verdict_from_json(v) for v in row["verdicts"]], section, leaked).to_json()
            if any(formed[key] != stored[key] for key in ("judges", "mean", "out", "vetoes")):
                return _("the Tribunal's opinion of {row} does not follow from its verdicts", row=row["answer"])
        if stored["mean"] is not None:
            means[row["answer"].split("/")[1]].append(sum(stored["mean"]) / 2)
    for model, values in means.items():
        score = result.summary.mean_score(model, "mean")
        told = None if score is None else score.mean
        mean = sum(values) / len(values) if values else None
        if mean is not None and (told is None or abs(mean - told) > 2e-4):  # both are rounded to four digits
            return _(
                "the {model} model's mean of {told} does not follow from tribunal/verdicts.jsonl ({mean:.4f})",
                model=model,
                told=told,
                mean=mean,
            )
    return None


def approval(e: Evidence) -> str | None:
    """What an approval needs, whatever the suite was: fit judges, no veto, no mean below the thresholds."""
    result, section = _result(e), e.config.training.tribunal
    summary = result.summary
    if (result.court.verdict, result.court.reason) != (summary.ruling.verdict, summary.ruling.reason):
        return _("it has two rulings that differ")
    if not all(judge.fit for judge in result.judges) and summary.ruling.verdict != UNDECIDED:
        return _("{verdict} by a judge that was not fit to decide", verdict=summary.ruling.verdict)
    if summary.ruling.verdict != APPROVED:
        return None
    low = [
        measure
        for measure in ("mean", *JUDGES)
        if (score := summary.mean_score("tuned", measure)) is None
        or score.mean < (section.approval_threshold if measure == "mean" else section.judge_floor)
    ]
    if low:
        return _("approved, though {low} is below the threshold of config.json", low=", ".join(low))
    vetoes = [row["answer"] for row in e.rows(*VERDICTS) if "/tuned/" in row["answer"] and row["opinion"]["vetoes"]]
    return _("approved, though there is a veto on {vetoes}", vetoes=vetoes[0]) if vetoes else None


@dataclass(frozen=True)
class _StoredVerdicts:
    """The verdicts of verdicts.jsonl in place of a panel that gives them."""

    by_answer: dict[str, list[Verdict | Unscored]]

    async def judge(self, cases: Sequence[JudgeCase]) -> list[list[Verdict | Unscored]]:
        return [self.by_answer[case.id] for case in cases]


def ruling(e: Evidence) -> str | None:
    """Everything that the trial reports, from its answers and verdicts, by the suite that it was held with.

    The trial is held again, look by look, by the stored answers and verdicts.
    """
    result, section = _result(e), e.config.training.tribunal
    if result.looks is None:  # an early version's: all prompts at once
        section = section.model_copy(update={"looks": ()})
    items = _suite(e, result)
    rows = e.rows(*VERDICTS)
    stored = {row["answer"]: [verdict_from_json(v) for v in row["verdicts"]] for row in rows}
    by_id = {item.id: item for item in items}
    answers = {answer.id: answer for answer in (_answer(row, by_id) for row in e.rows(*ANSWERS))}
    if result.samples != section.samples:
        return _(
            "it has {samples} answers of each model to a prompt, config.json says {section_samples}",
            samples=result.samples,
            section_samples=section.samples,
        )
    asked = {(judge, model.name) for judge in JUDGES for model in result.judges}
    if any(v and {(x.judge, x.model) for x in v} != asked for v in stored.values()):
        return _("an answer was not judged by all of the trial's judges")

    async def answered(some: Sequence[EvalSample]) -> list[Answer]:
        return [answers[f"{item.id}/{m}/{k}"] for m in MODELS for item in some for k in range(result.samples)]

    reason, errors, missing = _fitness(e, result)
    try:
        held = run_async(
            hold_looks(items, answered, _StoredVerdicts(stored), section, e.constitution, unfit_reason=reason)
        )
    except KeyError as lacking:
        return _(
            "tribunal/trial_answers.jsonl and verdicts.jsonl do not hold {args}, which the trial needed",
            args=lacking.args[0],
        )
    if len(held.scored) != len(e.rows(*ANSWERS)):
        return _(
            "tribunal/trial_answers.jsonl does not hold {samples} answers of each model to each prompt",
            samples=result.samples,
        )
    if as_json(verdict_rows(held.scored)) != rows:
        return e.differs(_("tribunal/verdicts.jsonl does not follow from the answers and their verdicts"))
    summary = summarise(held.scored, section, unfit_reason=reason, errors=errors, level=held.level)
    if result.summary.unscored_counts is None:
        texts = sorted({why for s in held.scored if s.opinion for why in s.opinion.reasons})[:MOST_REASONS]
        summary = replace(summary, unscored=texts, unscored_counts=None)
    looks = {} if result.looks is None else {"looks": held.looks.to_json()}
    derived = as_json({**summary.to_json(), **looks, "court": ruling_for_report(summary, section).to_json()})
    told = as_json(result.to_json())
    different = [key for key in derived if not alike(derived[key], told[key])]
    if missing and not set(different) - {"models"}:  # the corrected pass rate rests on the calibrations, too
        raise UncheckedError(missing)
    return (
        _("{different} do not follow from answers and verdicts", different=", ".join(different)) if different else None
    )


def _suite(e: Evidence, result: TrialResult) -> list[EvalSample]:
    if e.project is None:
        raise UncheckedError(_("there is no project here whose suite could be that of the trial: use --project"))
    try:
        items = spread(read_suite(e.project.tribunal, result.part), result.prompts)
    except NoesisError as error:
        raise UncheckedError(_("the project's suite can't be read: {error}", error=error)) from None
    if sha256_json([item.model_dump(mode="json") for item in items]) != result.prompts_sha256:
        raise UncheckedError(
            _("the suite in {tribunal} is not the one that this trial was held with", tribunal=e.project.tribunal)
        )
    return items


def _answer(row: dict[str, Any], items: dict[str, EvalSample]) -> Answer:
    dialogue = tuple((turn["role"], turn["content"]) for turn in row["said"])
    return Answer(items[row["id"]], row["who"], row["sample"], dialogue, row["answer"])


def _fitness(e: Evidence, result: TrialResult) -> tuple[str | None, Any, str]:
    """(why the judges may not decide, their error counts, which calibration is not here as the trial had it)."""
    assert e.project is not None
    rubrics = read_rubrics(e.project)
    found = [load_calibration(e.project.calibrations, judge.identity, rubrics) for judge in result.judges]
    names = [judge.name for judge in result.judges]
    as_then = [TrialJudge.of(j.name, j.identity, c) for j, c in zip(result.judges, found, strict=True)]
    other = [
        then.name for then, now in zip(result.judges, as_then, strict=True) if as_json(vars(then)) != as_json(vars(now))
    ]
    if not other and rubrics.digest() == result.rubrics_sha256:
        ways = [way_of(judge.identity) for judge in result.judges]
        return unfit_reason(found, names, ways), error_counts(found), ""
    missing = _(
        "the calibration of {other} that the trial names is not in this project", other=", ".join(other or names)
    )
    reason = None if all(judge.fit for judge in result.judges) else result.summary.ruling.reason
    return reason, None, missing


def project_here() -> Project | None:
    """The project at or above the working directory; None where there is none."""
    try:
        return find_project()
    except UsageError:
        return None
