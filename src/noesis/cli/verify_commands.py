"""`noesis status|verify|replay`: what lies in a run directory, and is it what it says?"""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from noesis.cli.options import JsonOption, RunArgument, print_result, program, send_output_to

app = typer.Typer()


@app.command()
def status(run: RunArgument, as_json: JsonOption = False) -> None:
    """Each stage, what it read and whether that still matches, what it took and cost.

    Example: noesis status runs/demo
    """
    from noesis.core.console import duration, say
    from noesis.pipeline.verify import status as states
    from noesis.run.directory import load_run

    send_output_to(as_json)
    loaded = load_run(run)
    found = states(loaded)
    for stage in found:
        reads = ", ".join(f"{name} {'unchanged' if same else 'CHANGED since'}" for name, same in stage.inputs.items())
        took = f"{duration(stage.seconds):>13}  {stage.usd:8.2f} USD" if stage.status != "not run" else ""
        say(f"  {stage.name:12} {stage.status:12} {took}  {'reads ' + reads if reads else ''}".rstrip())
        for line in stage.wrong:
            say(f"               {line}")
    usd, seconds = loaded.spent()
    say(f"  in all       {'':12} {duration(seconds):>13}  {usd:8.2f} USD")
    print_result({"stages": [asdict(stage) for stage in found], "usd": usd, "seconds": seconds}, as_json)


@app.command()
def verify(run: RunArgument, as_json: JsonOption = False) -> None:
    """Hash every file again and derive again what can be derived. Exit code 1: something does not match; it is named.

    Example: noesis verify runs/demo
    """
    from noesis.core.console import say
    from noesis.pipeline.verify import verify as check
    from noesis.run.directory import load_run

    send_output_to(as_json)
    results = []
    for what, wrong in check(load_run(run)):
        results.append({"checked": what, "wrong": wrong})
        say(f"  {'ok   ' if wrong is None else 'WRONG'}  {what}" + (f": {wrong}" if wrong else ""))
    bad = sum(r["wrong"] is not None for r in results)
    say(f"{len(results)} checks, {bad} do not match" if bad else f"{len(results)} checks, all match")
    print_result(results, as_json)
    if bad:
        raise typer.Exit(1)


@app.command()
def replay(
    run: RunArgument,
    out: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Where it is made again; default: .replay/ beside the run.")
    ] = None,
) -> None:
    """Train a run again from its manifest and compare the adapters, bit by bit. Exit code 1: they differ.

    Example: noesis replay runs/demo
    """
    from noesis.core.console import say
    from noesis.pipeline.replay import replay as again

    result = again(run, out)
    for line in result.differs:
        say(f"  not as it was: {line}")
    say(f"  adapter of the run      sha256 {result.expected}\n  of its replay           sha256 {result.found}")
    if not result.identical:
        why = "which what differs here may explain" if result.differs else "on the same processor, threads and versions"
        say(f"they differ, {why}; look at both with  {program()} status {result.path}")
        raise typer.Exit(1)
    say("identical")
