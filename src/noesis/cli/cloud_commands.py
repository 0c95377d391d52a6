"""`noesis cloud doctor|cost|watch|pull`: what a run on Modal needs, cost, does, left. The run itself is `modal run scripts/modal_train.py`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from noesis.cli.options import JsonOption, ProjectOption, print_result, send_output_to

app = typer.Typer(
    help="Training on Modal.com: is everything there, how far is it, what did it cost?\n\nExample: noesis cloud doctor",
    no_args_is_help=True,
)


@app.command()
def doctor(project: ProjectOption = None, as_json: JsonOption = False) -> None:
    """Token, volume, secret, data set on the volume, licence of the model, age of the prices: ok, or what to type.

    Example: noesis cloud doctor
    """
    from noesis.core.console import say

    send_output_to(as_json)
    found, section = _section(project)
    from noesis.cloud.doctor import run_checks

    checks = run_checks(found, section)
    for check in checks:
        state = "ok     " if check.ok else "MISSING" if check.needed else "–      "
        say(f"  {state}  {check.name}: {check.found}" + ("" if check.ok else f"\n           → {check.remedy}"))
    print_result([vars(c) for c in checks], as_json)
    if any(not c.ok and c.needed for c in checks):
        raise typer.Exit(1)


@app.command()
def watch(
    project: ProjectOption = None,
    once: Annotated[bool, typer.Option("--once", help="Look once instead of until the run ends.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Progress, tokens a second, loss, USD spent, time left of the run on the volume; it publishes them about once a minute.

    Example: noesis cloud watch --once
    """
    import time

    from noesis.core.console import say

    send_output_to(as_json)
    _, section = _section(project)
    from noesis.cloud.modal_errors import explained
    from noesis.cloud.volume.layout import SUMMARY
    from noesis.cloud.volume.remote import ModalVolumeFiles, read_text
    from noesis.cloud.watch import EVERY_S, progress_lines, read_progress

    with explained(section):
        far, before = ModalVolumeFiles(section), [""]
        while True:
            found = read_progress(far)
            lines = progress_lines(found)
            if lines != before:
                say("\n".join(["", *lines]))
                before = lines
            if once or as_json or not found["alive"]:
                break
            time.sleep(EVERY_S)
        if found["done"]:
            say(read_text(far, f"/{SUMMARY}") or "")
    print_result(found, as_json)


@app.command()
def cost(
    run: Annotated[
        Path | None,
        typer.Argument(metavar="[RUN]", help="A run directory that was pulled; default: the one on the volume."),
    ] = None,
    project: ProjectOption = None,
    as_json: JsonOption = False,
) -> None:
    """What a run was quoted, what it metered stage by stage (seconds × price), and, where Modal tells, what was billed.

    Example: noesis cloud cost runs/noesis-philosopher-v1
    """
    from noesis.core.console import duration, say
    from noesis.run.directory import load_run

    send_output_to(as_json)
    _, section = _section(project)
    from noesis.cloud.cost import billed, costs
    from noesis.cloud.modal_errors import explained
    from noesis.cloud.run_summary import preemption_lines
    from noesis.cloud.volume.remote import ModalVolumeFiles, manifest_of

    with explained(section):
        manifest = load_run(run).manifest.to_json() if run else manifest_of(ModalVolumeFiles(section))
        rows = costs(manifest)
        amount, why = billed(section.app, manifest)
    say(f"  {'':14} {'quoted':>24}   {'metered':>24}")
    for r in rows:
        quoted = "" if r["quoted_usd"] is None else f"{duration(r['quoted_seconds'])} {r['quoted_usd']:9.4f} USD"
        metered = (
            "not yet" if r["metered_usd"] is None else f"{duration(r['metered_seconds'])} {r['metered_usd']:9.4f} USD"
        )
        say(f"  {r['stage']:14} {quoted:>24}   {metered:>24}")
    total = {name: round(sum(r[name] or 0.0 for r in rows), 6) for name in ("quoted_usd", "metered_usd")}
    say(f"  {'in all':14} {total['quoted_usd']:20.4f} USD   {total['metered_usd']:20.4f} USD")
    for line in preemption_lines(manifest):
        say(line)
    say(f"  billed         {'–' if amount is None else f'{amount:.4f} USD'}: {why}")
    say("  metered is the stages' own time; Modal also charges for starting and ending containers")
    print_result({"stages": rows, **total, "billed_usd": amount, "billed_how": why}, as_json)


@app.command()
def pull(
    run: Annotated[
        Path, typer.Argument(metavar="RUN", help="Folder to copy to, for example runs/noesis-philosopher-v1.")
    ],
    state: Annotated[
        bool, typer.Option("--state", help="With the trainer's saved state, to go on training here.")
    ] = False,
    archived: Annotated[
        str | None, typer.Option("--archived", metavar="NAME", help="An older run, a name in /runs of the volume.")
    ] = None,
    project: ProjectOption = None,
    as_json: JsonOption = False,
) -> None:
    """Copy the run from the volume, each file checked against its hash; the same command goes on where it was broken off.

    Example: noesis cloud pull runs/noesis-philosopher-v1
    """
    from noesis.cli.options import program, shown
    from noesis.core.console import say

    send_output_to(as_json)
    _, section = _section(project)
    from noesis.cloud.modal_errors import explained
    from noesis.cloud.pull import pull as copy
    from noesis.cloud.volume.remote import ModalVolumeFiles

    with explained(section):
        result = copy(ModalVolumeFiles(section), run, state=state, archived=archived)
    say(f"Next: {program()} verify {shown(run.absolute())}")
    print_result(result, as_json)


def _section(project: Path | None) -> tuple[Any, Any]:
    """The project and what its training_config.yaml says of Modal.

    Raises:
        MissingExtra: the package modal is not installed.
    """
    import importlib.util

    from noesis.core.config import load_config
    from noesis.core.errors import MissingExtra
    from noesis.core.project import find_project

    if importlib.util.find_spec("modal") is None:
        raise MissingExtra("modal", "modal")
    found = find_project(project)
    return found, load_config(found).training.modal
