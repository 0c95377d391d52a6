"""Stage trial: base and tuned model before the Tribunal (`noesis judge RUN --judge SPEC`); the scorer of checkpoints.

Answers come from `pipeline/answers.py`, verdicts and figures from `tribunal`; the files are in the run's folder
`tribunal/`: trial.json (the result), verdicts.jsonl (each verdict with its evidence), trial_answers.jsonl,
replies.sqlite (the cache).
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from noesis.core.config import JUDGE_CALLS, TribunalSection
from noesis.core.console import say
from noesis.core.errors import UsageError
from noesis.core.event_loop import run_async
from noesis.core.files import append_line, files_in, sha256_file, sha256_json, utc_now, write_json, write_jsonl
from noesis.core.i18n import _, retold
from noesis.core.project import Project
from noesis.llm.clients.spec import ModelSpec, parse_spec, same_model
from noesis.llm.clients.spending import Spending
from noesis.pipeline.answers import answer_generator, answer_identities
from noesis.pipeline.consent import tribunal_settings
from noesis.pipeline.gguf_files import base_gguf
from noesis.pipeline.results import CheckpointScore, RunResults, TrialJudge, TrialResult, read_result
from noesis.pipeline.session import RunSession
from noesis.pipeline.stages.choose import CheckpointScorer
from noesis.pipeline.stages.merge import write_card
from noesis.pipeline.tracking import track, trial_figures
from noesis.run.manifest import Json
from noesis.tribunal.calibration_store import error_counts
from noesis.tribunal.panel import JudgePanel, open_panel, read_rubrics
from noesis.tribunal.reading.asking import Ask, judge_kinds
from noesis.tribunal.scoring import MODELS, Answer, answer_and_score, answer_prompts, verdict_rows
from noesis.tribunal.suite import EvalSample, Part, read_suite, seal, spread
from noesis.tribunal.trial.looks import HeldTrial, Look, hold_looks
from noesis.tribunal.trial_summary import MEASURES, prompt_means, ruling_for_report, summarise

MOST_REASONS = 5  # for missing verdicts, that the terminal shows


@dataclass(frozen=True)
class TrialRequest:
    """A trial as asked for on the command line.

    judges: SPECs
    prompts: how many of the suite; all where None
    max_usd: cap on what the judges of this run cost, earlier trials included; None: the run's, where prices are known
    ask: how the judges are asked; None: as the run's settings say
    """

    judges: tuple[str, ...]
    part: Part = "dev"
    prompts: int | None = None
    max_usd: float | None = None
    ask: Ask | None = None


def run_trial(
    s: RunSession,
    project: Project,
    request: TrialRequest,
    *,
    again: bool = False,
    judge_server: Callable[[], AbstractContextManager[None]] | None = None,
) -> TrialResult:
    """Base and tuned model answer, the judges score, the gate rules.

    The trial is held again where anything that decides it has changed.

    Args:
        judge_server: serves a judge that does not fit on the GPU together with the answering model; entered when all
            answers are stored and that model is freed.

    Raises:
        UsageError: a SPEC that is not understood, or the model under judgement under another name than `self`.
        CapError: the cap is reached; the same command with a higher one continues.
    """
    section = tribunal_settings(s.config, project)
    section = section.model_copy(update={"ask": request.ask or section.ask})
    rubrics, items = read_rubrics(project), trial_items(project, request)
    specs = [parse_spec(text, kinds=judge_kinds(section.ask)) for text in request.judges]
    own = own_judge(s, specs)
    prompts = sha256_json([item.model_dump(mode="json") for item in items])
    digest = sha256_json(
        [
            request.judges,
            prompts,
            rubrics.digest(),
            section.model_dump(mode="json", exclude=set(JUDGE_CALLS)),
            sha256_file(s.run.adapter() / "adapter_model.safetensors"),
            sorted(sha256_file(p) for p in files_in(project.calibrations, ".json")),
        ]
    )
    folder = s.run.tribunal

    def work() -> Json:
        given = request.max_usd is not None
        spending = Spending(max_usd=request.max_usd) if given else under_the_runs_cap(s, section, specs)
        with open_panel(
            project,
            specs,
            section,
            spending,
            own=own,
            replies=folder / "replies.sqlite",
            rubrics=rubrics,
        ) as panel:
            if request.part != "dev":
                log_locked_use(folder, project.tribunal, "trial")
            trial = _answer_and_judge(s, section, items, panel, judge_server)
        errors, scored = error_counts(panel.calibrations), trial.scored
        summary = summarise(scored, section, unfit_reason=panel.unfit_reason, errors=errors, level=trial.level)
        result = TrialResult(
            request=digest,
            part=request.part,
            prompts=len(items),
            prompts_sha256=prompts,
            samples=section.samples,
            rubrics_sha256=rubrics.digest(),
            judges=tuple(
                TrialJudge.of(name, identity, calibration)
                for name, identity, calibration in zip(panel.names, panel.identities, panel.calibrations, strict=True)
            ),
            self_judged=own is not None,
            spending=spending.to_json(),
            court=ruling_for_report(summary, section),
            summary=summary,
            looks=trial.looks,
        )
        write_jsonl(folder / "trial_answers.jsonl", [one.answer.to_json() for one in scored])
        write_jsonl(folder / "verdicts.jsonl", verdict_rows(scored))
        write_json(folder / "trial.json", result.to_json())
        track(s, trial_figures(result))
        return result.to_json()

    before = RunResults(s.run).trial
    again = again or (before is not None and before.request != digest)
    outputs = [folder / name for name in ("trial_answers.jsonl", "verdicts.jsonl", "trial.json")]
    stored = s.run.perform("trial", work, lambda: outputs, again=again)
    result = read_result(s.run, "trial", stored, TrialResult.from_json)
    write_card(s)
    show_trial(result)
    return result


def trial_items(project: Project, request: TrialRequest) -> list[EvalSample]:
    """A trial's prompts, in order."""
    return spread(read_suite(project.tribunal, request.part), request.prompts)


def checkpoint_scorer(s: RunSession, project: Project, judges: Sequence[str] | None = None) -> CheckpointScorer | None:
    """Scores an epoch's adapter on the dev prompts, to choose the checkpoint; None where no judge is set.

    Judges that may not decide are not asked. Answers and replies stay in the run, where a later trial finds them.

    Args:
        judges: as given with --judge; None: those in training_config.yaml (`tribunal: judges`).
    """
    section = tribunal_settings(s.config, project)
    named = section.judges if judges is None else tuple(judges)
    if not named:
        return None
    rubrics, items = read_rubrics(project), read_suite(project.tribunal, "dev")
    specs = [parse_spec(text, kinds=judge_kinds(section.ask)) for text in named]
    own, replies = own_judge(s, specs), s.run.tribunal / "replies.sqlite"

    def score(adapter: Path) -> CheckpointScore:
        spending = under_the_runs_cap(s, section, specs)
        with open_panel(project, specs, section, spending, own=own, replies=replies, rubrics=rubrics) as panel:
            if reason := panel.unfit_reason:
                run_async(panel.close())
                return CheckpointScore(None, None, False, reason)
            say(_("  the Tribunal scores {name} on {items} dev prompts", name=adapter.name, items=len(items)))
            scored = answer_and_score(
                items,
                s.constitution,
                answer_generator(s, section, adapter, {}),
                panel,
                section,
                identity=answer_identities(s, adapter),
                seed=s.config.training.seed,
            )
        summary = summarise(scored, section, unfit_reason=None)
        found = summary.tuned_mean, summary.accuracy_drop, summary.tuned_vetoed
        return CheckpointScore(*found, prompts=prompt_means(scored, "tuned"))

    return score


def _answer_and_judge(
    s: RunSession,
    section: TribunalSection,
    items: Sequence[EvalSample],
    panel: JudgePanel,
    judge_server: Callable[[], AbstractContextManager[None]] | None = None,
) -> HeldTrial:
    """The trial, look by look; where the judge takes the answering model's place, all answers are written first."""
    loaded: dict[str, Any] = {}  # the answering model
    adapter = s.run.adapter()
    identity = answer_identities(s, adapter)
    answered = partial(
        answer_prompts,
        constitution=s.constitution,
        generate=answer_generator(s, section, adapter, loaded),
        cache=panel.cache,
        section=section,
        seed=s.config.training.seed,
    )

    async def answer(some: Sequence[EvalSample]) -> list[Answer]:
        turn = sorted(MODELS, key=lambda model: model != loaded.get("is", MODELS[0]))  # the loaded one first
        return [one for model in turn for one in answered(some, identity=identity[model], model=model)]

    async def hold() -> HeldTrial:
        async with panel:
            unfit = panel.unfit_reason
            return await hold_looks(
                items, answer, panel, section, s.constitution, unfit_reason=unfit, on_look=_show_look
            )

    if judge_server is None:
        return run_async(hold())
    run_async(answer(items))
    loaded.clear()
    with judge_server():
        return run_async(hold())


def _show_look(look: Look, left: int) -> None:
    if left:
        say(
            _(
                "  after {prompts} prompts: {verdict}: {reason}; {left} more may decide it",
                prompts=look.prompts,
                verdict=look.verdict,
                reason=retold(look.reason),
                left=left,
            )
        )


def show_trial(result: TrialResult) -> None:
    """Print the ruling and the figures behind it."""
    names = ", ".join(judge.name for judge in result.judges)
    say(
        _(
            "  {prompts} prompts ({part}), {samples} answers of each model; judges: {names}",
            prompts=result.prompts,
            part=result.part,
            samples=result.samples,
            names=names,
        )
    )
    if result.self_judged:
        say(_("  the model under judgement is one of its judges, as asked for with --judge self"))
    summary = result.summary
    for name in MEASURES:
        base, tuned = (summary.mean_score(model, name) for model in MODELS)
        difference = summary.mean_difference(name)
        if base and tuned and difference:
            low, high = tuned.interval_95
            say(
                _(
                    "  {name:<8} {mean:.3f} → {tuned_mean:.3f} [{low:.3f}, {high:.3f}]   "
                    "difference {difference_mean:+.3f} {interval_95}, p {p:.3f}",
                    name=name,
                    mean=base.mean,
                    tuned_mean=tuned.mean,
                    low=low,
                    high=high,
                    difference_mean=difference.mean,
                    interval_95=list(difference.interval_95),
                    p=difference.p,
                )
            )
    counts = [f"{count} × " for count in summary.unscored_counts or ()] or [""] * len(summary.unscored)
    for reason, times in list(zip(summary.unscored, counts, strict=False))[:MOST_REASONS]:
        say(_("  no verdict: {times}{reason}", times=times, reason=retold(reason)))
    if len(summary.unscored) > MOST_REASONS:
        say(_("  and {unscored} more reasons, in verdicts.jsonl", unscored=len(summary.unscored) - MOST_REASONS))
    if result.looks and (looks := result.looks.describe()):
        say(f"  {looks}")
    ruling = result.ruling
    more = (
        _("; about {more_prompts} more prompts would decide it", more_prompts=ruling.more_prompts)
        if ruling.more_prompts
        else ""
    )
    say(_("  Tribunal: {verdict}: {reason}{more}", verdict=ruling.verdict, reason=retold(ruling.reason), more=more))


def under_the_runs_cap(s: RunSession, section: TribunalSection, specs: Sequence[ModelSpec]) -> Spending:
    """Judges may spend what the machine has left of the run's cap; without prices there is nothing to hold to it."""
    budget = s.budget()
    if budget.max_usd is None or any(spec.kind == "openai" and spec.model not in section.prices for spec in specs):
        return Spending()
    return Spending(max_usd=max(0.0, budget.max_usd - budget.usd()))


def own_judge(s: RunSession, specs: Sequence[ModelSpec]) -> Path | None:
    """The GGUF file of the run's own base, if `self` is a judge.

    Raises:
        UsageError: the model under judgement is a judge under another name.
    """
    judged = (s.config.training.model, s.config.training.output_name, s.run.merged.name)
    for spec in specs:
        if spec.kind != "self" and any(same_model(spec.name, name) for name in judged):
            raise UsageError(
                _(
                    "{name} is the model under judgement: name another judge, "
                    "or --judge self, which the report will show",
                    name=spec.name,
                )
            )
    return base_gguf(s) if any(spec.kind == "self" for spec in specs) else None


def log_locked_use(run_folder: Path, tribunal: Path, what: str) -> None:
    """Log a use of a locked part in the run."""
    line = {"date": utc_now(), "what": what, "seal_sha256": sha256_json(seal(tribunal))}
    append_line(run_folder / "locked_uses.jsonl", json.dumps(line))
