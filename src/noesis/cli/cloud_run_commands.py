"""`noesis cloud plan|train|logs|stop`: a run on Modal before it is one, without a terminal, and to its end."""

from __future__ import annotations

from typing import Annotated

import typer

from noesis.cli.options import (
    EpochsOption,
    JsonOption,
    MaxExamplesOption,
    MaxMinutesOption,
    MaxUsdOption,
    MethodOption,
    ModelOption,
    ProjectOption,
    modal_section,
    print_result,
    reserve_stdout,
)
from noesis.core.i18n import _

app = typer.Typer()

GpuOption = Annotated[
    str | None, typer.Option("--gpu", metavar="NAME", help="GPU for training: L40S, A100-80GB, H100 …")
]
GpusOption = Annotated[
    int | None, typer.Option("--gpus", min=1, metavar="N", help="GPUs for training, in one container.")
]
NodesOption = Annotated[
    int | None, typer.Option("--nodes", min=1, metavar="N", help="Machines for training, each with 8 GPUs.")
]
CloudJudgeOption = Annotated[
    str | None,
    typer.Option("--judge", metavar="SPECS", help="vllm:MODEL, openai:BASE_URL:MODEL, separated by commas; or none."),
]


@app.command()
def plan(
    project: ProjectOption = None,
    model: ModelOption = None,
    epochs: EpochsOption = None,
    max_examples: MaxExamplesOption = None,
    method: MethodOption = None,
    gpu: GpuOption = None,
    gpus: GpusOption = None,
    nodes: NodesOption = None,
    judge: CloudJudgeOption = None,
    max_usd: MaxUsdOption = None,
    max_minutes: MaxMinutesOption = None,
    as_json: JsonOption = False,
) -> None:
    """Plan and quote a run on Modal on this machine alone: no account is needed, and Modal is not asked.

    Example: noesis cloud plan --epochs 3
    """
    from noesis.cloud.checks import check_request
    from noesis.cloud.quote import cloud_quote, not_exported
    from noesis.cloud.request import request_from_options
    from noesis.core.config import load_config
    from noesis.core.console import say
    from noesis.core.project import find_project

    reserve_stdout(as_json)
    found = find_project(project)
    section = load_config(found).training.modal
    request = request_from_options(
        section,
        model=model,
        epochs=epochs,
        max_examples=max_examples,
        method=method,
        gpu=gpu,
        gpus=gpus,
        nodes=nodes,
        judge=judge,
        max_usd=max_usd,
        max_minutes=max_minutes,
    )
    config = request.overrides.configure(found)
    check_request(found, config.training, request)
    quoted = cloud_quote(found, config, request, section)
    for line in [not_exported()] if quoted is None else quoted.lines():
        say(line)
    print_result(None if quoted is None else quoted.to_json(), as_json)


@app.command()
def train(
    project: ProjectOption = None,
    model: ModelOption = None,
    epochs: EpochsOption = None,
    max_examples: MaxExamplesOption = None,
    method: MethodOption = None,
    gpu: GpuOption = None,
    gpus: GpusOption = None,
    nodes: NodesOption = None,
    judge: CloudJudgeOption = None,
    max_usd: MaxUsdOption = None,
    max_minutes: MaxMinutesOption = None,
    resume: Annotated[bool, typer.Option("--resume", help="Continue the run, with more epochs if asked.")] = False,
    fresh: Annotated[bool, typer.Option("--fresh", help="Start over; the old run is moved to /runs.")] = False,
    test_only: Annotated[bool, typer.Option("--test-only", help="Only judge.")] = False,
    merge_only: Annotated[bool, typer.Option("--merge-only", help="Only merge.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Deploy the app, start the run and return: it needs this machine no more. For CI, and for laptops that sleep.

    The run itself is that of  modal run -m noesis.cloud.app  with these options.

    Example: noesis cloud train --epochs 3 --max-usd 5
    """
    from noesis.core.libraries import silence_libraries

    reserve_stdout(as_json)
    found, section = modal_section(project)
    silence_libraries()
    from noesis.cloud.deployed import start_deployed

    call = start_deployed(
        found,
        section,
        {
            "model": model,
            "epochs": epochs,
            "max_examples": max_examples,
            "method": method,
            "gpu": gpu,
            "gpus": gpus,
            "nodes": nodes,
            "judge": judge,
            "max_usd": max_usd,
            "max_minutes": max_minutes,
            "resume": resume,
            "fresh": fresh,
            "test_only": test_only,
            "merge_only": merge_only,
        },
    )
    print_result({"call": call, "app": section.app}, as_json)


@app.command()
def logs(
    project: ProjectOption = None,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Until Ctrl-C.")] = False,
) -> None:
    """Print the log of the deployed app, by its name: of runs that `noesis cloud train` started.

    Example: noesis cloud logs --follow
    """
    import subprocess
    import sys

    _, section = modal_section(project)
    more = ["-f"] if follow else []
    raise typer.Exit(subprocess.call([sys.executable, "-m", "modal", "app", "logs", section.app, *more]))


@app.command()
def stop(project: ProjectOption = None, as_json: JsonOption = False) -> None:
    """Cancel the run on the volume, however it was started; what is finished is kept, and the same command continues.

    Example: noesis cloud stop
    """
    from noesis.core.console import say

    reserve_stdout(as_json)
    _project, section = modal_section(project)
    from noesis.cloud.deployed import stop_run
    from noesis.cloud.modal_errors import explained

    with explained(section):
        calls = stop_run(section)
    say(
        _("cancelled {calls} calls; each saves what it has", calls=len(calls))
        if calls
        else _("nothing is running on this volume")
    )
    print_result({"cancelled": calls}, as_json)
