"""`noesis demo|plan|train|judge|report`: each imports its stage only when it is called."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from noesis.cli.options import (
    AgainOption,
    FreshOption,
    GateOption,
    JsonOption,
    JudgeOption,
    JudgesMaxUsdOption,
    MaxMinutesOption,
    MaxUsdOption,
    MethodOption,
    PartOption,
    ProjectOption,
    RunArgument,
    RunOption,
    checked_part,
    configured,
    print_result,
    program,
    send_output_to,
    shown,
    verdict_code,
)

app = typer.Typer()


@app.command()
def demo(
    project: ProjectOption = None,
    run: Annotated[
        Path | None, typer.Option("--run", metavar="DIR", help="Run directory; default: runs/demo of the project.")
    ] = None,
    quick: Annotated[
        bool, typer.Option("--quick", help="One epoch on a few examples: is everything in place?")
    ] = False,
    fresh: FreshOption = False,
    judges: JudgeOption = None,
    gate: GateOption = False,
    max_usd: MaxUsdOption = None,
    max_minutes: MaxMinutesOption = None,
) -> None:
    """The whole pipeline on the embedded model: validate, plan, train, judge, merge, GGUF, report.

    Example: noesis demo --quick
    """
    from noesis.core.console import duration, say
    from noesis.core.project import find_project
    from noesis.pipeline.demo import demo as run_demo

    found = find_project(project)
    s = run_demo(
        found,
        run or found.runs / "demo",
        quick=quick,
        fresh=fresh,
        judges=judges,
        max_usd=max_usd,
        max_minutes=max_minutes,
    )
    result = s.run.result("judge") or {}
    court = s.run.verdict()
    b, t, n = result["preference"]["base"], result["preference"]["tuned"], result["preference"]["examples"]
    seconds = sum(stage["seconds"] for stage in s.run.manifest["stages"].values())
    say("\nBase → tuned")
    say(f"  held-out loss        {b['held_out_loss']:.4f} → {t['held_out_loss']:.4f}")
    say(
        f"  preference accuracy  {b['preferred']}/{n} → {t['preferred']}/{n}   mean margin {b['mean_margin']:+.4f} → {t['mean_margin']:+.4f}"
    )
    say(f"  Tribunal             {court['verdict']}: {court['reason'].split(':')[0]}")
    say(f"Stages took {duration(seconds)} in all.")
    say(f"Report   {s.run.report}\nModel    {s.run.merged}\nGGUF     {s.run.gguf}\nAdapter  {s.run.adapter()}")
    say(f"Next:    {program()} chat {shown(s.run.path)}")
    if gate:
        raise typer.Exit(verdict_code(court["verdict"]))


@app.command()
def plan(
    project: ProjectOption = None,
    model: Annotated[str | None, typer.Option(help="smollm2, a folder, or a Hub name.")] = None,
    epochs: Annotated[int | None, typer.Option(min=1, help="Passes over the examples.")] = None,
    max_examples: Annotated[int | None, typer.Option(min=1, help="Train on this many only.")] = None,
    method: MethodOption = None,
    gpu: Annotated[
        str | None,
        typer.Option(
            metavar="NAME", help="A card that need not be here: L40S, A100-80GB, H100 …; default: this machine."
        ),
    ] = None,
    gpus: Annotated[
        int | None, typer.Option(min=1, metavar="N", help="Cards of one machine; default: all that are here, or 1.")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Does it fit, how, in what time, for how many USD, and what would it be elsewhere? Trains nothing.

    Example: noesis plan --model meta-llama/Llama-3.1-8B-Instruct --gpu L40S --epochs 3
    """
    from noesis.constitution.document import load_constitution
    from noesis.dataset.load import read_train_export
    from noesis.pipeline.stages.plan import plan_without_run
    from noesis.planning.display import show_plan

    found, config = configured(project, model, epochs, max_examples, as_json, method=method)
    constitution = load_constitution(found.constitution)
    dataset = read_train_export(found, config, constitution)
    result, require_fit = plan_without_run(config, dataset, constitution, gpu=gpu, gpus=gpus)
    print_result(result.as_json(), as_json) if as_json else show_plan(result.as_json(), everything=True)
    require_fit()


@app.command()
def train(
    project: ProjectOption = None,
    run: RunOption = None,
    model: Annotated[str | None, typer.Option(help="smollm2, a folder, or a Hub name.")] = None,
    epochs: Annotated[int | None, typer.Option(min=1, help="Passes over the examples.")] = None,
    max_examples: Annotated[int | None, typer.Option(min=1, help="Train on this many only.")] = None,
    method: MethodOption = None,
    dataset: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="Folder with train.jsonl and eval.jsonl; default: data/training/exports."),
    ] = None,
    fresh: FreshOption = False,
    resume: Annotated[
        bool,
        typer.Option(
            "--resume", help="Go on with the run that lies there, or refuse and say what differs; may add epochs."
        ),
    ] = False,
    fork: Annotated[
        Path | None, typer.Option(metavar="RUN", help="Begin a new run with the adapter of this one.")
    ] = None,
    judges: JudgeOption = None,
    max_usd: MaxUsdOption = None,
    max_minutes: MaxMinutesOption = None,
) -> None:
    """Train on the exported examples and choose the epoch to use. The same command goes on where it was interrupted. Exit code 5: stopped at the cap.

    Example: noesis train --model smollm2 --epochs 3 --run runs/mine
    """
    from noesis.core.console import heading, say
    from noesis.core.errors import UsageError
    from noesis.pipeline.stages.choose import run_choose
    from noesis.pipeline.stages.plan import run_plan
    from noesis.pipeline.stages.train import run_train
    from noesis.pipeline.stages.trial import checkpoint_scorer
    from noesis.pipeline.start_run import from_exports, start_run
    from noesis.run.directory import Run

    if resume and (fresh or fork):
        raise UsageError("--resume goes on with a run; --fresh and --fork begin one: give one of them")
    found, config = configured(
        project, model, epochs, max_examples, False, max_usd=max_usd, max_minutes=max_minutes, method=method
    )
    path = run or found.runs / config.training.output_name
    with Run(path, {}).locked():
        heading(1, 4, "data", "the exported examples, checked again")
        s = start_run(
            found,
            config,
            path,
            from_exports(dataset or found.exports, found),
            fresh=fresh,
            resume=resume,
            fork=fork,
        )
        heading(2, 4, "plan", "what will be trained, and what it should take")
        run_plan(s)
        heading(3, 4, "train", f"QLoRA by {config.training.method}, loss on the answers only")
        run_train(s)
        heading(4, 4, "choose", "which epoch's adapter is used")
        run_choose(s, checkpoint_scorer(s, found, judges))
    say(f"Next: {program()} judge {shown(path)}")


@app.command()
def judge(
    run: RunArgument,
    judges: JudgeOption = None,
    against: Annotated[
        str, typer.Option(help="What the tuned model is compared with; base is the only choice so far.")
    ] = "base",
    part: PartOption = "dev",
    prompts: Annotated[
        int | None, typer.Option(min=1, metavar="N", help="So many prompts of the suite only, evenly spread.")
    ] = None,
    max_usd: JudgesMaxUsdOption = None,
    project: ProjectOption = None,
    again: AgainOption = False,
    as_json: JsonOption = False,
) -> None:
    """Base against tuned: on the held-out examples and, with --judge, before the Tribunal. Exit code 0: APPROVED, 3: REJECTED, 4: CONDITIONAL or UNDECIDED.

    Example: noesis judge runs/demo --judge openai:https://api.openai.com/v1:gpt-5-mini --max-usd 2
    """
    from noesis.core.errors import UsageError
    from noesis.pipeline.session import reopen_run
    from noesis.pipeline.stages.judge import run_judge

    if against != "base":
        raise UsageError(f"--against {against!r}: base is the only choice so far")
    send_output_to(as_json)
    s = reopen_run(run)
    with s.run.locked():
        result = run_judge(s, again=again)
        named = tuple(judges) if judges else s.config.training.tribunal.judges
        if named:
            from noesis.core.project import find_project
            from noesis.pipeline.stages.trial import TrialRequest
            from noesis.pipeline.stages.trial import run_trial as trial

            result = trial(
                s, find_project(project), TrialRequest(named, checked_part(part), prompts, max_usd), again=again
            )
    print_result(result, as_json)
    raise typer.Exit(verdict_code(result["court"]["verdict"]))


@app.command()
def report(run: RunArgument) -> None:
    """Write the run's report again: one page that works offline.

    Example: noesis report runs/demo
    """
    from noesis.pipeline.session import reopen_run
    from noesis.pipeline.stages.report import run_report

    s = reopen_run(run)
    with s.run.locked():
        run_report(s)
