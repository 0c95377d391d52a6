"""`noesis demo|plan|train|judge|report`: train a model and judge it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from noesis.cli.options import (
    AgainOption,
    AskOption,
    EpochsOption,
    ExamplesLanguageOption,
    FreshOption,
    GateOption,
    JsonOption,
    JudgeOption,
    JudgesMaxUsdOption,
    KlWeightOption,
    MaxExamplesOption,
    MaxMinutesOption,
    MaxUsdOption,
    MethodOption,
    ModelOption,
    PartOption,
    ProjectOption,
    RunArgument,
    RunOption,
    SeedsOption,
    StrengthOption,
    print_result,
    reserve_stdout,
    show_manifest_hash,
)
from noesis.core.i18n import _, retold

if TYPE_CHECKING:
    from noesis.run.directory import Run

app = typer.Typer()


@app.command()
def demo(
    project: ProjectOption = None,
    run: Annotated[
        Path | None,
        typer.Option("--run", metavar="DIR", help="Run directory; default: runs/demo, with --model runs/demo-<name>."),
    ] = None,
    model: ModelOption = None,
    language: ExamplesLanguageOption = None,
    quick: Annotated[
        bool, typer.Option("--quick", help="Train one epoch on a few examples, to check the installation.")
    ] = False,
    fresh: FreshOption = False,
    judges: JudgeOption = None,
    gate: GateOption = False,
    strength: StrengthOption = None,
    max_usd: MaxUsdOption = None,
    max_minutes: MaxMinutesOption = None,
) -> None:
    """Run the whole pipeline on the embedded model, or another: validate, plan, train, judge, merge, GGUF, report.

    Example: noesis demo --quick
    """
    from noesis.core.project import find_project
    from noesis.pipeline.demo import demo as run_demo
    from noesis.pipeline.demo import demo_run_name
    from noesis.pipeline.results import RunResults

    found = find_project(project)
    s = run_demo(
        found,
        run or found.runs / demo_run_name(model),
        model=model,
        language=language,
        quick=quick,
        fresh=fresh,
        judges=judges,
        strength=strength,
        max_usd=max_usd,
        max_minutes=max_minutes,
    )
    _show_outcome(s.run)
    if gate:
        raise typer.Exit(RunResults(s.run).ruling.exit_code)


def _show_outcome(run: Run) -> None:
    """What training changed, where the files are, and the next command."""
    from noesis.core.console import command, duration, say
    from noesis.pipeline.results import RunResults

    results = RunResults(run)
    judged, ruling = results.judge, results.ruling
    assert judged is not None  # the demo runs every stage
    base, tuned, count = judged.preference.base, judged.preference.tuned, judged.preference.examples
    seconds = sum(stage.seconds for stage in run.manifest.stages.values())
    say()
    say(_("Base → tuned"))
    say(_("  held-out loss        {base.held_out_loss:.4f} → {tuned.held_out_loss:.4f}", base=base, tuned=tuned))
    say(
        _(
            "  preference accuracy  {base.preferred}/{count} → {tuned.preferred}/{count}   "
            "mean margin {base.mean_margin:+.4f} → {tuned.mean_margin:+.4f}",
            base=base,
            tuned=tuned,
            count=count,
        )
    )
    reason = retold(ruling.reason).split(":")[0]
    say(_("  Tribunal             {verdict}: {reason}", verdict=ruling.verdict, reason=reason))
    say(_("Stages took {seconds} in all.", seconds=duration(seconds)))
    say(_("Report   {report}", report=run.report))
    say(_("Model    {merged}", merged=run.merged))
    say(_("GGUF     {gguf}", gguf=run.gguf))
    say(_("Adapter  {adapter}", adapter=run.adapter()))
    show_manifest_hash(run.path)
    say(_("Next:    {command}", command=command("chat", run.path)))


@app.command()
def plan(
    project: ProjectOption = None,
    model: ModelOption = None,
    epochs: EpochsOption = None,
    max_examples: MaxExamplesOption = None,
    method: MethodOption = None,
    kl_weight: KlWeightOption = None,
    seeds: SeedsOption = None,
    gpu: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="Plan for this GPU, which need not be here: L40S, A100-80GB, H100 …; default: this machine.",
        ),
    ] = None,
    gpus: Annotated[
        int | None,
        typer.Option(min=1, metavar="N", help="GPUs in one machine; default: all that are here, or 1."),
    ] = None,
    measure: Annotated[
        bool,
        typer.Option(
            "--measure",
            help="Train a few steps first, with little else running: their speed goes into this and later plans.",
        ),
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Predict memory, time and cost of a training, here and on other machines, without training.

    Example: noesis plan --model meta-llama/Llama-3.1-8B-Instruct --gpu L40S --epochs 3
    """
    from noesis.api.training import draft
    from noesis.core.config import load_config
    from noesis.core.project import find_project
    from noesis.planning.display import show_plan

    reserve_stdout(as_json)
    found = find_project(project)
    result, require_fit = draft(
        found,
        exports=found.exports,
        gpu=gpu,
        gpus=gpus,
        measure=measure,
        model=model,
        epochs=epochs,
        max_examples=max_examples,
        method=method,
        kl_weight=kl_weight,
        seeds=seeds,
    )
    rate = load_config(found).training.budget.brl_per_usd
    print_result(result.to_json(), as_json) if as_json else show_plan(result, everything=True, brl_per_usd=rate)
    require_fit()


@app.command()
def train(
    project: ProjectOption = None,
    run: RunOption = None,
    model: ModelOption = None,
    epochs: EpochsOption = None,
    max_examples: MaxExamplesOption = None,
    method: MethodOption = None,
    kl_weight: KlWeightOption = None,
    seeds: SeedsOption = None,
    dataset: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="Folder with train.jsonl and eval.jsonl; default: data/training/exports."),
    ] = None,
    fresh: FreshOption = False,
    resume: Annotated[
        bool,
        typer.Option(
            "--resume", help="Continue the run in --run, with more --epochs if you like; stop if other settings differ."
        ),
    ] = False,
    fork: Annotated[
        Path | None, typer.Option(metavar="RUN", help="Start a new run from the adapter of this one.")
    ] = None,
    judges: JudgeOption = None,
    strength: StrengthOption = None,
    max_usd: MaxUsdOption = None,
    max_minutes: MaxMinutesOption = None,
    nnodes: Annotated[
        int,
        typer.Option(
            metavar="N", min=1, help="Machines with GPUs that train together; they share the project's folder."
        ),
    ] = 1,
    node_rank: Annotated[int, typer.Option(metavar="K", min=0, help="Which of them this is; 0 leads.")] = 0,
    master_addr: Annotated[str, typer.Option(metavar="HOST", help="Address of machine 0.")] = "127.0.0.1",
) -> None:
    """Train on the exported examples; choose which epoch to use, and at which strength.

    If it is interrupted, the same command continues where it stopped. Exit code 5: stopped at the cap.

    On several machines, the same command on each, with its own --node-rank.

    Example: noesis train --model smollm2 --epochs 3 --run runs/mine
    """
    from noesis.api.training import train as train_run
    from noesis.core.console import command, say
    from noesis.core.errors import UsageError
    from noesis.core.project import find_project
    from noesis.training.backends.nodes import follow_here
    from noesis.training.distributed import Nodes

    if resume and (fresh or fork):
        raise UsageError(_("--resume continues a run, --fresh and --fork start one: give only one of them"))
    if node_rank >= nnodes:
        raise UsageError(
            _(
                "--node-rank {rank}: of {nnodes} machines the last is {last}; give --nnodes, too",
                rank=node_rank,
                nnodes=nnodes,
                last=nnodes - 1,
            )
        )
    nodes = Nodes(node_rank, nnodes, master_addr)
    if nodes.rank > 0:
        follow_here(nodes)
        return
    found = find_project(project)
    path = train_run(
        found,
        run,
        exports=dataset or found.exports,
        judges=judges,
        fresh=fresh,
        resume=resume,
        fork=fork,
        nodes=nodes,
        model=model,
        epochs=epochs,
        max_examples=max_examples,
        method=method,
        strength=strength,
        kl_weight=kl_weight,
        seeds=seeds,
        max_usd=max_usd,
        max_minutes=max_minutes,
    ).path
    show_manifest_hash(path)
    say(_("Next: {command}", command=command("judge", path)))


@app.command()
def dial(
    run: RunArgument,
    strength: StrengthOption = None,
    project: ProjectOption = None,
    again: AgainOption = False,
    as_json: JsonOption = False,
) -> None:
    """Choose how strongly the adapter is used, by what each strength gains and breaks; or set it with --strength.

    What was made from the run before then has to be made again: judge, merge, gguf.

    Example: noesis dial runs/demo --strength 0.75
    """
    from noesis.core.console import command, say
    from noesis.pipeline.comparison.table import project_or_none
    from noesis.pipeline.session import locked_session
    from noesis.pipeline.stages.dial import run_dial, with_strength

    reserve_stdout(as_json)
    found = project_or_none(project)
    with locked_session(run) as s:
        result = run_dial(with_strength(s, strength), found.tribunal if found else None, again=again)
    show_manifest_hash(run)
    print_result(result.to_json(), as_json)
    say(_("Next: {command}", command=command("judge", run)))


@app.command()
def judge(
    run: RunArgument,
    judges: JudgeOption = None,
    part: PartOption = "dev",
    prompts: Annotated[
        int | None, typer.Option(min=1, metavar="N", help="Use only N prompts of the suite, evenly spread.")
    ] = None,
    ask: AskOption = None,
    against: Annotated[
        Path | None,
        typer.Option(
            "--against",
            metavar="RUN",
            help="Have the judges score this run's tuned model in place of the base: a comparison, and no verdict.",
        ),
    ] = None,
    max_usd: JudgesMaxUsdOption = None,
    project: ProjectOption = None,
    again: AgainOption = False,
    as_json: JsonOption = False,
) -> None:
    """Compare the tuned model with its base on the held-out examples and, with --judge, before the Tribunal.

    Exit code 0: APPROVED, 3: REJECTED, 4: CONDITIONAL or UNDECIDED; with --against 0.

    Example: noesis judge runs/demo --judge openai:https://api.openai.com/v1:gpt-5-mini --max-usd 2
    """
    from noesis.api.runs import judge as judge_run
    from noesis.api.runs import judge_against
    from noesis.core.project import find_project

    reserve_stdout(as_json)
    found = None if project is None else find_project(project)
    if against is not None:
        compared = judge_against(
            run, against, judges, part=part, prompts=prompts, ask=ask, max_usd=max_usd, project=found
        )
        print_result(compared.to_json(), as_json)
        return
    result = judge_run(run, judges, part=part, prompts=prompts, ask=ask, max_usd=max_usd, project=found, again=again)
    show_manifest_hash(run)
    print_result(result.to_json(), as_json)
    raise typer.Exit(result.court.exit_code)


@app.command()
def compare(
    runs: Annotated[list[Path], typer.Argument(metavar="RUN", help="Runs; the others are compared with the first.")],
    csv: Annotated[
        Path | None, typer.Option("--csv", metavar="FILE", help="Write the table as CSV, for a notebook.")
    ] = None,
    project: ProjectOption = None,
    as_json: JsonOption = False,
) -> None:
    """Show several runs' tuned models side by side, with paired intervals on what they share.

    Held-out loss and preference, the Tribunal's mean, keyed items, verdicts. Reads only; needs no model.

    Example: noesis compare runs/before runs/after
    """
    from noesis.core.console import say
    from noesis.pipeline.comparison.csv_table import write_csv
    from noesis.pipeline.comparison.table import compare_runs_side_by_side, project_or_none, show_comparison
    from noesis.pipeline.stages.tables import comparison_table

    reserve_stdout(as_json)
    found = compare_runs_side_by_side(runs, project_or_none(project))
    show_comparison(found)
    if csv is not None:
        write_csv(csv, comparison_table(found))
        say(f"  → {csv}")
    print_result(found.to_json(), as_json)


@app.command()
def report(
    runs: Annotated[
        list[Path],
        typer.Argument(metavar="RUN", help="The run; others are shown beside it in its report, as `compare` does."),
    ],
    beside: Annotated[
        list[Path] | None,
        typer.Option("--with", metavar="RUN", help="The same as a further RUN; repeatable."),
    ] = None,
    project: ProjectOption = None,
) -> None:
    """Rewrite the run's report, one HTML page that works offline, and its tables as CSV (tables/ in the run).

    Example: noesis report runs/after runs/before
    """
    from noesis.api.runs import report as write_report
    from noesis.core.project import find_project

    others = [*runs[1:], *(beside or [])]
    write_report(runs[0], others, project=None if project is None else find_project(project))
    show_manifest_hash(runs[0])
