"""`noesis cloud plan`: what a run on Modal would be, before it is one."""

from __future__ import annotations

from typing import Annotated

import typer

from noesis.cli.options import (
    EpochsOption,
    MaxExamplesOption,
    MaxMinutesOption,
    MaxUsdOption,
    MethodOption,
    ModelOption,
    ProjectOption,
)

app = typer.Typer()

GpuOption = Annotated[
    str | None, typer.Option("--gpu", metavar="NAME", help="GPU for training: L40S, A100-80GB, H100 …")
]
GpusOption = Annotated[
    int | None, typer.Option("--gpus", min=1, metavar="N", help="GPUs for training, in one container.")
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
    judge: CloudJudgeOption = None,
    max_usd: MaxUsdOption = None,
    max_minutes: MaxMinutesOption = None,
) -> None:
    """Plan and quote a run on Modal on this machine alone: no account is needed, and Modal is not asked.

    Example: noesis cloud plan --epochs 3
    """
    from noesis.cloud.checks import check_request
    from noesis.cloud.quote import quote_lines
    from noesis.cloud.request import request_from_options
    from noesis.core.config import load_config
    from noesis.core.console import say
    from noesis.core.project import find_project

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
        judge=judge,
        max_usd=max_usd,
        max_minutes=max_minutes,
    )
    config = request.overrides.configure(found)
    check_request(found, config.training, request)
    for line in quote_lines(found, config, request, section):
        say(line)
