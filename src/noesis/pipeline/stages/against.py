"""`noesis judge RUN --against OTHER`: the tuned models of two runs before the same judges, on the same prompts.

It is a comparison and no trial: nothing is approved or rejected by it, and it stands in the manifest as other work. All
prompts are judged, since no look could end it. What a trial of the run asked before is not asked again.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from noesis.core.console import path_here, say
from noesis.core.errors import UsageError
from noesis.core.event_loop import run_async
from noesis.core.files import sha256_file, sha256_json
from noesis.core.i18n import _, retold
from noesis.core.project import Project
from noesis.llm.clients.spec import parse_spec
from noesis.llm.clients.spending import Spending
from noesis.pipeline.answers import answer_generator, answer_identities
from noesis.pipeline.consent import tribunal_settings
from noesis.pipeline.results import read_result
from noesis.pipeline.session import RunSession
from noesis.pipeline.stages.trial import TrialRequest, log_locked_use, own_judge, trial_items, under_the_runs_cap
from noesis.run.manifest import Json
from noesis.tribunal.panel import open_panel, read_rubrics
from noesis.tribunal.reading.asking import judge_kinds
from noesis.tribunal.scoring import Answer, Generate, ScoredAnswer, answer_prompts, score_answers
from noesis.tribunal.trial.code_figures import Figures
from noesis.tribunal.trial_summary import MEASURES, MOST_REASONS, summarise

WORK = "against"  # its name in the manifest


@dataclass(frozen=True)
class AgainstResult:
    """Two runs' tuned models before the same judges.

    request: hash of all that decides the result
    other, other_adapter_sha256: the run that was compared with
    unfit_reason: why the judges decide nothing; None if they are fit
    means: the other's and this run's mean of each measure; differences: this run's minus the other's
    keyed: right answers that code recognises, the other's under `base`
    missing: why verdicts are missing, with their number
    """

    request: str
    other: str
    other_adapter_sha256: str
    part: str
    prompts: int
    judges: tuple[str, ...]
    unfit_reason: str | None
    means: dict[str, tuple[float, float]]
    differences: Figures
    keyed: Figures
    missing: tuple[str, ...]
    spending: Figures

    def to_json(self) -> dict[str, Any]:
        means = {name: list(pair) for name, pair in self.means.items()}
        return vars(self) | {"judges": list(self.judges), "means": means, "missing": list(self.missing)}

    @classmethod
    def from_json(cls, stored: dict[str, Any]) -> AgainstResult:
        means = {name: (low, high) for name, (low, high) in stored["means"].items()}
        typed = {"judges": tuple(stored["judges"]), "means": means, "missing": tuple(stored["missing"])}
        return cls(**{**stored, **typed})


def run_against(s: RunSession, other: RunSession, project: Project, request: TrialRequest) -> AgainstResult:
    """Both tuned models answer the prompts of `request`, and its judges score all answers.

    Raises:
        UsageError: both runs are one, or a model under judgement is a judge. CapError: the cap is reached; the same
        command with a higher one continues.
    """
    if other.run.path.resolve() == s.run.path.resolve():
        raise UsageError(_("--against names another run than the one that is judged"))
    section = tribunal_settings(s.config, project)
    section = section.model_copy(update={"ask": request.ask or section.ask})
    rubrics, items = read_rubrics(project), trial_items(project, request)
    specs = [parse_spec(text, kinds=judge_kinds(section.ask)) for text in request.judges]
    own = own_judge(s, specs)
    own_judge(other, specs)
    adapters = other.run.adapter(), s.run.adapter()
    hashes = [sha256_file(folder / "adapter_model.safetensors") for folder in adapters]
    prompts = [item.model_dump(mode="json") for item in items]
    digest = sha256_json([request.judges, prompts, rubrics.digest(), section.model_dump(mode="json"), hashes])

    def work() -> Json:
        given = request.max_usd is not None
        spending = Spending(max_usd=request.max_usd) if given else under_the_runs_cap(s, section, specs)
        replies = s.run.tribunal / "replies.sqlite"
        with open_panel(project, specs, section, spending, own=own, replies=replies, rubrics=rubrics) as panel:
            if request.part != "dev":
                log_locked_use(s.run.tribunal, project.tribunal, WORK)
            answers: list[Answer] = []
            for model, session, adapter in (("base", other, adapters[0]), ("tuned", s, adapters[1])):
                answers += answer_prompts(
                    items,
                    session.constitution,
                    _always_tuned(answer_generator(session, section, adapter, {})),
                    panel.cache,
                    identity=answer_identities(session, adapter)["tuned"],
                    model=model,
                    section=section,
                    seed=s.config.training.seed,
                )

            async def score() -> list[ScoredAnswer]:
                async with panel:
                    return await score_answers(answers, panel, section, s.constitution)

            summary = summarise(run_async(score()), section, unfit_reason=panel.unfit_reason)
        scores = {name: [summary.mean_score(model, name) for model in ("base", "tuned")] for name in MEASURES}
        return AgainstResult(
            request=digest,
            other=other.run.path.name,
            other_adapter_sha256=hashes[0],
            part=request.part,
            prompts=len(items),
            judges=tuple(panel.names),
            unfit_reason=panel.unfit_reason,
            means={name: (one.mean, two.mean) for name, (one, two) in scores.items() if one and two},
            differences=summary.difference["all"],
            keyed=summary.keyed,
            missing=tuple(
                f"{n} × {why}" for why, n in zip(summary.unscored, summary.unscored_counts or (), strict=True)
            ),
            spending=spending.to_json(),
        ).to_json()

    before = s.run.result(WORK)
    again = before is not None and before.get("request") != digest
    result = read_result(s.run, WORK, s.run.perform(WORK, work, list, again=again), AgainstResult.from_json)
    show_against(result, s, other)
    return result


def _always_tuned(generate: Generate) -> Generate:
    """The run's tuned model, whichever side of the comparison it is on."""
    return lambda _, conversations, seeds: generate("tuned", conversations, seeds)


def show_against(result: AgainstResult, s: RunSession, other: RunSession) -> None:
    """Print both models' figures and their differences."""
    say(
        _(
            "  {path} → {run_path}, the tuned model of each",
            path=path_here(other.run.path),
            run_path=path_here(s.run.path),
        )
    )
    say(
        _(
            "  {prompts} prompts ({part}); judges: {judges}",
            prompts=result.prompts,
            part=result.part,
            judges=", ".join(result.judges),
        )
    )
    for name, (one, two) in result.means.items():
        say(f"  {name:<8} {one:.3f} → {two:.3f}   {_difference(result.differences[name])}")
    keyed = result.keyed
    if keyed["tuned"]["of"]:
        counts = _(
            "{other} → {tuned} of {of}",
            other=keyed["base"]["count"],
            tuned=keyed["tuned"]["count"],
            of=keyed["tuned"]["of"],
        )
        say(
            _(
                "  keyed items right {counts} (lost {lost}, won {won}, p {p:.3f})",
                counts=counts,
                lost=keyed["lost"],
                won=keyed["won"],
                p=keyed["p"],
            )
        )
    for why in result.missing[:MOST_REASONS]:
        say(_("  no verdict: {why}", why=retold(why)))
    if result.unfit_reason:
        say(_("  so far an impression: {unfit_reason}", unfit_reason=retold(result.unfit_reason)))


def _difference(found: Figures) -> str:
    if not found.get("clusters"):
        return _("no prompt has a score of both")
    low, high = found["interval_95"]
    return _(
        "difference {mean:+.3f} [{low:+.3f}, {high:+.3f}], p {p:.3f}",
        mean=found["mean"],
        low=low,
        high=high,
        p=found["p"],
    )
