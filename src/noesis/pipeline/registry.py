"""The whole pipeline: export → plan → train → choose → dial → judge → merge → gguf → trial → report. Start here.

`noesis demo`, the single commands and Modal's functions all run these stages. A stage finds what it needs in the run
directory and leaves its outcome there; `run/stages.py` says what each one reads and leaves.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from noesis.core.console import command, heading
from noesis.core.errors import RunError, UsageError
from noesis.core.i18n import N_, _
from noesis.core.project import Project
from noesis.dataset.statistics import ExportStatistics
from noesis.pipeline.results import Choice, Dial, ReportResult, TrialResult
from noesis.pipeline.session import RunSession
from noesis.pipeline.stages.choose import run_choose
from noesis.pipeline.stages.dial import run_dial
from noesis.pipeline.stages.export import ExportSource, run_export
from noesis.pipeline.stages.gguf import run_gguf
from noesis.pipeline.stages.judge import run_judge
from noesis.pipeline.stages.merge import run_merge
from noesis.pipeline.stages.plan import run_plan
from noesis.pipeline.stages.report import run_report
from noesis.pipeline.stages.train import run_train
from noesis.pipeline.stages.trial import TrialRequest, checkpoint_scorer, run_trial
from noesis.planning.plan import Plan
from noesis.release.merge_weights import MergeResult
from noesis.release.parity.certificate import Certificate
from noesis.run.manifest import Json
from noesis.run.stages import SPECS, StageSpec, downstream_of
from noesis.training.job import TrainResult
from noesis.tribunal.heldout import JudgeResult


@dataclass(frozen=True)
class PipelineOptions:
    """What stages take from outside the run.

    Attributes:
        project: where the Tribunal's suite and rubrics are; needed if there are judges.
        judges: who chooses the checkpoint and judges the trial; none: no trial, and the held-out examples choose.
        source: what a new run is made from; None: the run has its data.
    """

    project: Project | None = None
    judges: tuple[str, ...] = ()
    source: ExportSource | None = None

    def judging_project(self) -> Project:
        if self.project is None:
            raise UsageError(_("judges need a project with a Tribunal: name its folder with --project"))
        return self.project


@dataclass(frozen=True)
class Stage:
    """A stage bound to the function that does its work.

    Attributes:
        title: what it does, for its heading.
        run: does it, unless it is done.
        result: reads its result from the manifest's JSON; the type that its `run_…` function returns.
    """

    spec: StageSpec
    title: str
    run: Callable[[RunSession, PipelineOptions], Any]
    result: Callable[[Json], Any]

    @property
    def name(self) -> str:
        return self.spec.name

    @property
    def needs(self) -> tuple[str, ...]:
        return self.spec.needs

    @property
    def outputs(self) -> tuple[str, ...]:
        return self.spec.outputs


def _export(s: RunSession, options: PipelineOptions) -> ExportStatistics:
    if options.source is None:
        again = command("train", "--run", s.run.path)
        raise RunError(_("{path} has no data to copy from: start it again with  {again}", path=s.run.path, again=again))
    return run_export(s, options.source)


def _choose(s: RunSession, options: PipelineOptions) -> Choice:
    return run_choose(s, checkpoint_scorer(s, options.judging_project(), options.judges) if options.judges else None)


def _dial(s: RunSession, options: PipelineOptions) -> Dial:
    return run_dial(s, options.project.tribunal if options.project else None)


def _trial(s: RunSession, options: PipelineOptions) -> TrialResult:
    return run_trial(s, options.judging_project(), TrialRequest(options.judges))


REGISTRY = {
    stage.name: stage
    for stage in (
        Stage(SPECS["export"], N_("the run's own copy of its examples"), _export, ExportStatistics.from_json),
        Stage(
            SPECS["plan"], N_("what will be trained, and what it should take"), lambda s, _: run_plan(s), Plan.from_json
        ),
        Stage(SPECS["train"], N_("QLoRA, loss on the answers only"), lambda s, _: run_train(s), TrainResult.from_json),
        Stage(SPECS["choose"], N_("which epoch's adapter is used"), _choose, Choice.from_json),
        Stage(SPECS["dial"], N_("how strongly the adapter is used"), _dial, Dial.from_json),
        Stage(
            SPECS["judge"],
            N_("base against tuned on the held-out examples"),
            lambda s, options: run_judge(s, project=options.project),
            JudgeResult.from_json,
        ),
        Stage(SPECS["merge"], N_("adapter and base into one model"), lambda s, _: run_merge(s), MergeResult.from_json),
        Stage(
            SPECS["gguf"],
            N_("for llama.cpp, and does it behave alike?"),
            lambda s, _: run_gguf(s),
            Certificate.from_json,
        ),
        Stage(SPECS["trial"], N_("base and tuned model before the Tribunal"), _trial, TrialResult.from_json),
        Stage(SPECS["report"], N_("one page"), lambda s, _: run_report(s), ReportResult.from_json),
    )
}


def stages_to_run(options: PipelineOptions) -> tuple[str, ...]:
    """The stages of a whole pipeline, in order, for a run that has its data: without judges there is no trial."""
    return tuple(name for name in REGISTRY if name != "export" and (name != "trial" or options.judges))


def training_stages() -> tuple[str, ...]:
    """The stages of `noesis train`: up to the adapter that everything else takes."""
    return tuple(name for name in REGISTRY if name != "export" and name not in downstream_of("dial"))


def run_all(
    s: RunSession,
    options: PipelineOptions = PipelineOptions(),
    *,
    stages: Sequence[str] | None = None,
    done: int = 0,
) -> None:
    """Run the stages in order, each under a heading.

    Args:
        stages: which; default: those of `stages_to_run`.
        done: steps that came before and count in the headings.
    """
    names = stages_to_run(options) if stages is None else stages
    for number, name in enumerate(names, start=done + 1):
        heading(number, done + len(names), name, _(REGISTRY[name].title))
        REGISTRY[name].run(s, options)
