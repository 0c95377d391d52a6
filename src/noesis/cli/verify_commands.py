"""`noesis status|verify|replay`: what is in a run directory, and does it match its manifest?"""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from noesis.cli.options import JsonOption, ProjectOption, RunArgument, print_result, reserve_stdout, show_manifest_hash
from noesis.core.i18n import _, retold

app = typer.Typer()


@app.command()
def status(run: RunArgument, as_json: JsonOption = False) -> None:
    """Show each stage of a run: its state, whether what it read has changed, its time and its cost.

    Example: noesis status runs/demo
    """
    from noesis.core.console import command, duration, say
    from noesis.pipeline.verify.status import status as run_status
    from noesis.run.directory import load_run

    reserve_stdout(as_json)
    loaded = load_run(run)
    stages = run_status(loaded)
    for stage in stages:
        reads = ", ".join(
            _("{name} unchanged", name=name) if same else _("{name} CHANGED since", name=name)
            for name, same in stage.inputs.items()
        )
        read = _("reads {inputs}", inputs=reads) if reads else ""
        took = (
            _("{time:>13}  {usd:8.2f} USD", time=duration(stage.seconds), usd=stage.usd)
            if stage.status != "not run"
            else ""
        )
        say(f"  {stage.name:12} {retold(stage.status):12} {took}  {read}".rstrip())
        for line in stage.wrong:
            say(f"               {line}")
    if loaded.manifest.is_early:
        say(f"  {early_version(loaded.manifest.made_in)}")
    usd, seconds = loaded.spent()
    say(_("  in all   {blank:12} {seconds:>13}  {usd:8.2f} USD", blank="", seconds=duration(seconds), usd=usd))
    if any(stage.wrong for stage in stages):
        say(
            _(
                "Something is missing or was changed: {command}  checks it all, and fails",
                command=command("verify", run),
            )
        )
    print_result({"stages": [asdict(stage) for stage in stages], "usd": usd, "seconds": seconds}, as_json)


def early_version(made_in: int) -> str:
    """What a run of an early format is, and what to do where that is not enough."""
    return _(
        "Begun by an early version of Noesis (format {made_in}), which recorded less: what is marked – can't be "
        "checked; make the run again where it must be",
        made_in=made_in,
    )


@app.command()
def verify(
    run: RunArgument,
    sha256: Annotated[
        str | None,
        typer.Option(
            "--sha256", metavar="HEX", help="Hash of manifest.json that you kept; each run prints it at its end."
        ),
    ] = None,
    project: ProjectOption = None,
    as_json: JsonOption = False,
) -> None:
    """Check a run against its manifest: hash every file again, derive again what can be derived.

    A manifest that was rewritten together with its files is found only by a hash that you kept, or a signature.
    Exit code 1: something does not match; it is named.

    Example: noesis verify runs/demo
    """
    from noesis.core.console import say
    from noesis.core.project import find_project
    from noesis.pipeline.verify.check_run import verify as verify_run
    from noesis.pipeline.verify.trial import project_here
    from noesis.run.directory import load_run

    reserve_stdout(as_json)
    loaded, found = load_run(run), find_project(project) if project else project_here()
    results = []
    for finding in verify_run(loaded, found, sha256=sha256):
        results.append(asdict(finding) | {"checked": finding.what})
        state, why = (_("WRONG"), finding.wrong) if finding.wrong else ("–", finding.unchecked)
        say(f"  {state if why else 'ok':5}  {finding.what}" + (f": {why}" if why else ""))
    bad = sum(r["wrong"] is not None for r in results)
    unchecked = sum(r["unchecked"] is not None for r in results)
    outcome = [_("{bad} do not match", bad=bad)] if bad else []
    outcome += [_("{unchecked} could not be made, marked –", unchecked=unchecked)] if unchecked else []
    say(_("{results} checks, {outcome}", results=len(results), outcome=", ".join(outcome) or _("all match")))
    if loaded.manifest.is_early:
        say(f"  {early_version(loaded.manifest.made_in)}")
    if not bad and sha256 is None:
        say(_("  This shows that the run agrees with itself, not who made it: files that were rewritten together"))
        say(_("  with the manifest are found only by a hash that you kept, or a signature (docs/verify.md)."))
        show_manifest_hash(loaded.path)
    print_result(results, as_json)
    if bad:
        raise typer.Exit(1)


@app.command()
def replay(
    run: RunArgument,
    out: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Folder for the second run; default: .replay/ next to the run.")
    ] = None,
) -> None:
    """Train a run again from its manifest and compare the adapters bit by bit.

    Exit code 1: they differ.

    Example: noesis replay runs/demo
    """
    from noesis.core.console import command, say
    from noesis.pipeline.replay import replay as replay_run

    result = replay_run(run, out)
    for line in result.differs:
        say(_("  differs here: {line}", line=line))
    say(_("  adapter of the run      sha256 {expected}", expected=result.expected))
    say(_("  adapter of the replay   sha256 {found}", found=result.found))
    if not result.identical:
        why = (
            _("which the differences above may explain")
            if result.differs
            else _("on the same CPU, threads and versions")
        )
        say(
            _(
                "the adapters differ, {why}; look at the replay with  {command}",
                why=why,
                command=command("status", result.path),
            )
        )
        raise typer.Exit(1)
    say(_("identical"))
