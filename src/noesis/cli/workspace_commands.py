"""`noesis init|clean|doctor`: the project folder and this machine."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from noesis.cli.options import JsonOption, ProjectOption, print_result, report_checks, reserve_stdout
from noesis.core.i18n import _

app = typer.Typer()


@app.command()
def init(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="The new folder; it must not exist yet, or be empty.")],
    domain: Annotated[
        str | None,
        typer.Option("--domain", metavar="TEXT", help="What the assistant is for, as in: an assistant for TEXT."),
    ] = None,
    name: Annotated[
        str | None, typer.Option("--name", metavar="NAME", help="The assistant's name; default: the folder's.")
    ] = None,
    language: Annotated[
        str | None,
        typer.Option(
            "--language",
            metavar="CODE",
            help="Its language: pt, en, es; others get English drafts; default: the one that is spoken.",
        ),
    ] = None,
) -> None:
    """Create a project of your own: settings, a constitution, examples, judges and questions, all to be edited.

    With --domain they are drafts for that domain; at a terminal you are asked. Else they are the philosopher's.

    Example: noesis init biblioteca --domain "a biblioteca pública de Olinda" --language pt
    """
    import sys

    from noesis.core.console import command, say
    from noesis.core.i18n import spoken
    from noesis.workspace.new_project import create_project
    from noesis.workspace.own_project import Purpose

    language = language or spoken()
    if domain is None and sys.stdin.isatty() and sys.stdout.isatty():
        say(_("What is the assistant for? An assistant for … (Enter: the philosopher that Noesis comes with)"))
        domain = input(_("  domain    ")).strip() or None
        if domain:
            language = input(_("  language  [{language}] ", language=language)).strip() or language
            name = input(_("  name      [{name}] ", name=name or folder.name)).strip() or name
    if domain is None and name is not None:
        raise typer.BadParameter(_("--name needs --domain"))
    purpose = Purpose(name or folder.resolve().name, domain, language) if domain else None
    for file in create_project(folder, purpose, language):
        say(f"  {file}")
    say(_("Read {folder}: it says what to change.", folder=folder / "README.md"))
    say(_("Edit them, then:  {command}", command=command("demo", "--project", folder)))


@app.command()
def clean(
    project: ProjectOption = None,
    delete: Annotated[
        bool, typer.Option("--delete", help="Delete what is listed; without this, nothing is deleted.")
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """List what can be deleted to free space: archived runs, half-written files, converted models.

    Example: noesis clean --delete
    """
    from noesis.core.console import command, say, size
    from noesis.core.project import find_project
    from noesis.workspace.clean import free, garbage

    reserve_stdout(as_json)
    items = garbage(find_project(project))
    place = () if project is None else ("--project", project)
    for item in items:
        say(f"  {size(item.bytes):>10}  {item.path}  ({item.what})")
    say(
        _("{bytes} in {items} places", bytes=size(sum(i.bytes for i in items)), items=len(items))
        + (
            ""
            if delete or not items
            else _("; delete them with  {command}", command=command("clean", "--delete", *place))
        )
    )
    kept = free(items) if delete else []
    for item, why in kept:
        say(_("  kept {path}: {why}", path=item.path, why=why))
    if delete:
        say(_("deleted {deleted} of {all}", deleted=len(items) - len(kept), all=len(items)) if kept else _("deleted"))
    left = {item.path for item, _ in kept}
    print_result(
        [
            {"path": str(i.path), "bytes": i.bytes, "what": i.what, "freed": delete and i.path not in left}
            for i in items
        ],
        as_json,
    )


@app.command()
def doctor(project: ProjectOption = None, as_json: JsonOption = False) -> None:
    """Check this machine: Python, device, memory, disk, packages, tokens; say how to get what is missing.

    Example: noesis doctor
    """
    from noesis.workspace.doctor import run_checks

    reserve_stdout(as_json)
    report_checks(run_checks(project), as_json)
