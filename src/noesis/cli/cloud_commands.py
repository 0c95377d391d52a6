"""`noesis cloud plan|train|doctor|watch|logs|stop|cost|pull`: prepare, follow and fetch a run on Modal.

The run itself is `modal run -m noesis.cloud.app`, or a checkout's scripts/modal_train.py. Page: https://modal.com/docs
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from noesis.cli import cloud_run_commands
from noesis.cli.options import JsonOption, ProjectOption, modal_section, print_result, report_checks, reserve_stdout
from noesis.core.i18n import _

if TYPE_CHECKING:
    from noesis.cloud.volume.remote import ModalVolumeFiles
    from noesis.core.config import ModalSection

app = typer.Typer(
    help="Prepare, follow and fetch a training run on Modal.com.\n\nExample: noesis cloud doctor",
    no_args_is_help=True,
)
app.add_typer(cloud_run_commands.app)


@app.command()
def doctor(project: ProjectOption = None, as_json: JsonOption = False) -> None:
    """Check what a run on Modal needs: token, volume, secret, dataset, model licence, price list.

    Exit code 1: something is missing; the command that creates it is printed.

    Example: noesis cloud doctor
    """
    reserve_stdout(as_json)
    found, section = modal_section(project)
    from noesis.cloud.doctor import run_checks

    report_checks(run_checks(found, section), as_json)


@app.command()
def watch(
    project: ProjectOption = None,
    once: Annotated[bool, typer.Option("--once", help="Print the state once instead of until the run ends.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Follow the run on the volume: step, loss, tokens per second, USD spent, time left.

    The run publishes these about once a minute.

    Example: noesis cloud watch --once
    """
    from noesis.core.console import say_text

    reserve_stdout(as_json)
    with _modal_volume(project) as (_, files):
        from noesis.cloud.volume.layout import SUMMARY
        from noesis.cloud.volume.remote import read_text
        from noesis.cloud.watch import follow

        progress = follow(files, once=once or as_json)
        if progress.done:
            say_text(read_text(files, f"/{SUMMARY}") or "")
    print_result(progress.to_json(), as_json)


@app.command()
def cost(
    run: Annotated[
        Path | None,
        typer.Argument(metavar="RUN", help="Run directory that was pulled; default: the run on the volume."),
    ] = None,
    project: ProjectOption = None,
    as_json: JsonOption = False,
) -> None:
    """Compare what a run was quoted, what it metered stage by stage, and what Modal billed.

    Example: noesis cloud cost runs/noesis-philosopher-v1
    """
    from noesis.core.config import load_config
    from noesis.core.console import say
    from noesis.core.project import find_project
    from noesis.run.directory import load_run

    reserve_stdout(as_json)
    with _modal_volume(project) as (section, files):
        from noesis.cloud.cost import CostReport
        from noesis.cloud.run_summary import preemption_lines
        from noesis.cloud.volume.remote import manifest_of

        manifest = load_run(run).manifest if run else manifest_of(files)
        report = CostReport.of(section.app, manifest)
    rate = load_config(find_project(project)).training.budget.brl_per_usd
    for line in [*report.lines(rate), *preemption_lines(manifest), *report.billing_lines()]:
        say(line)
    print_result(report.to_json(), as_json)


@app.command()
def pull(
    run: Annotated[
        Path, typer.Argument(metavar="RUN", help="Folder to copy to, for example runs/noesis-philosopher-v1.")
    ],
    state: Annotated[
        bool, typer.Option("--state", help="Include the trainer's saved state, to continue the training here.")
    ] = False,
    archived: Annotated[
        str | None, typer.Option("--archived", metavar="NAME", help="An older run: a name in /runs of the volume.")
    ] = None,
    project: ProjectOption = None,
    as_json: JsonOption = False,
) -> None:
    """Copy the run from the volume, checking each file against its hash.

    If it is interrupted, the same command continues.

    Example: noesis cloud pull runs/noesis-philosopher-v1
    """
    from noesis.core.console import command, say

    reserve_stdout(as_json)
    with _modal_volume(project) as (_section, files):
        from noesis.cloud.pull import pull as pull_run

        result = pull_run(files, run, state=state, archived=archived)
    say(_("Next: {command}", command=command("verify", run)))
    print_result(result.to_json(), as_json)


@contextmanager
def _modal_volume(project: Path | None) -> Iterator[tuple[ModalSection, ModalVolumeFiles]]:
    """The project's settings for Modal and its volume; Modal's errors inside the block become one message."""
    _, section = modal_section(project)
    from noesis.cloud.modal_errors import explained
    from noesis.cloud.volume.remote import ModalVolumeFiles

    with explained(section):
        yield section, ModalVolumeFiles(section)
