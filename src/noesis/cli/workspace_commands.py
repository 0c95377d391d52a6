"""`noesis init|clean|doctor`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from noesis.cli.options import JsonOption, ProjectOption, print_result, send_output_to

app = typer.Typer()


@app.command()
def init(folder: Annotated[Path, typer.Argument(metavar="DIR", help="Where; must not exist or be empty.")]) -> None:
    """A project of your own: both YAML files, a constitution and three examples to edit.

    Example: noesis init my-philosopher
    """
    from noesis.core.console import say
    from noesis.workspace.new_project import create_project

    for file in create_project(folder):
        say(f"  {file}")
    say(f"Edit them, then:  noesis demo --project {folder}")


@app.command()
def clean(
    project: ProjectOption = None,
    delete: Annotated[bool, typer.Option("--delete", help="Free it; without this only the list is shown.")] = False,
    as_json: JsonOption = False,
) -> None:
    """What can be freed and how much: archived runs, half-written files, converted models that can be made again.

    Example: noesis clean --delete
    """
    from noesis.core.console import say, size
    from noesis.core.project import find_project
    from noesis.workspace.clean import free, garbage

    send_output_to(as_json)
    items = garbage(find_project(project))
    for item in items:
        say(f"  {size(item.bytes):>10}  {item.path}  ({item.what})")
    say(
        f"{size(sum(i.bytes for i in items))} in {len(items)} places"
        + ("" if delete or not items else "; free it with  noesis clean --delete")
    )
    if delete:
        free(items)
        say("freed")
    print_result([{"path": str(i.path), "bytes": i.bytes, "what": i.what, "freed": delete} for i in items], as_json)


@app.command()
def doctor(project: ProjectOption = None, as_json: JsonOption = False) -> None:
    """What is here: Python, device, memory, disk, packages, tokens; what is missing and how to get it.

    Example: noesis doctor
    """
    from noesis.core.console import say
    from noesis.workspace.doctor import run_checks

    send_output_to(as_json)
    checks = run_checks(project)
    for check in checks:
        state = "ok     " if check.ok else "MISSING" if check.needed else "–      "
        say(f"  {state}  {check.name}: {check.found}" + ("" if check.ok else f"\n           → {check.remedy}"))
    print_result([vars(c) for c in checks], as_json)
    if any(not c.ok and c.needed for c in checks):
        raise typer.Exit(1)
