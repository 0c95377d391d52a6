"""`noesis influence`: what the examples of a finished run did."""

from __future__ import annotations

import typer

from noesis.cli.options import AgainOption, JsonOption, RunArgument, print_result, reserve_stdout, show_manifest_hash
from noesis.core.i18n import _

app = typer.Typer()


@app.command()
def influence(run: RunArgument, again: AgainOption = False, as_json: JsonOption = False) -> None:
    """Show which training examples did it: for each, how its step lies to what was gained and to what was lost.

    By the adapter's gradients at every epoch up to the one that is used; about as long as these epochs took to train.
    It says what a small step on an example would do, not what leaving it out does: benchmarks/influence.py shows that.

    Example: noesis influence runs/demo
    """
    from noesis.core.console import command, say
    from noesis.pipeline.session import locked_session
    from noesis.pipeline.stages.influence.measure import run_influence, show_influence

    reserve_stdout(as_json)
    with locked_session(run) as s:
        found = run_influence(s, again=again)
        show_influence(found)
    print_result(found.to_json(), as_json)
    show_manifest_hash(run)
    say(_("Next: {command}  shows the tables", command=command("report", run)))
