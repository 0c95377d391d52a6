"""`noesis data validate|export|inspect`: the examples that are trained on."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from noesis.cli.options import JsonOption, ProjectOption, print_result, reserve_stdout
from noesis.core.i18n import N_, _, ngettext, number

app = typer.Typer(
    help="Check, split and inspect the examples.\n\nExample: noesis data validate",
    no_args_is_help=True,
    rich_markup_mode=None,
)


COLUMNS = {  # of the report of a validation
    "language": N_("language"),
    "category": N_("category"),
    "difficulty": N_("difficulty"),
    "stance": N_("stance"),
}


def _counted(severity: str, count: int) -> str:
    if severity == "error":
        return ngettext("{count:,} error", "{count:,} errors", count)
    return ngettext("{count:,} warning", "{count:,} warnings", count)


@app.command("validate")
def data_validate(
    paths: Annotated[
        list[Path] | None,
        typer.Argument(metavar="PATH", help="JSONL files or folders; default: the project's examples."),
    ] = None,
    project: ProjectOption = None,
    json_file: Annotated[
        Path | None,
        typer.Option(
            "--json", metavar="FILE", help="Write the report as JSON; - for stdout, with everything else on stderr."
        ),
    ] = None,
) -> None:
    """Check examples and report problems by file and line.

    Exit code 0: no errors (warnings allowed), 1: errors.

    Example: noesis data validate data/training/philosophical
    """
    from noesis.api.projects import sources, validate
    from noesis.core.config import load_config
    from noesis.core.console import say, use_stderr
    from noesis.core.files import require_output, write_json
    from noesis.core.project import find_project

    if json_file == Path("-"):
        use_stderr()
    found = find_project(project)
    checked = paths or sources(found)
    if json_file is not None and json_file != Path("-"):
        require_output(json_file, "--json", inputs=(*checked, found.training, found.constitution), starts=b"{\n")
    result = validate(found, checked)
    for problem in result.problems:
        say(str(problem))
    for (severity, code), count in sorted(result.found.items()):
        if count > (printed := sum(p.code == code and p.severity == severity for p in result.problems)):
            say(
                _(
                    "{many} [{code}], {printed} of them shown",
                    many=_counted(severity, count),
                    code=code,
                    printed=printed,
                )
            )
    say(
        result.window
        or _(
            "lengths in tokens were not checked: the tokenizer of {model} is not on this machine",
            model=load_config(found).training.model,
        )
    )
    say(
        _(
            "{rows} in {files}: {table:,} valid, {errors}, {warnings}",
            rows=ngettext("{count:,} row", "{count:,} rows", result.rows),
            files=ngettext("{count:,} file", "{count:,} files", len(result.files)),
            table=len(result.table),
            errors=_counted("error", result.total("error")),
            warnings=_counted("warning", result.total("warning")),
        )
    )
    for name, counts in result.counts().items():
        if counts:
            counted = ", ".join(f"{key} {number(count, ',')}" for key, count in sorted(counts.items()))
            say(f"  {_(COLUMNS[name])}: {counted}")
    if json_file == Path("-"):
        print_result(result.to_json(), True)
    elif json_file is not None:
        write_json(json_file, result.to_json())
        say(f"  → {json_file}")
    if result.total("error"):
        raise typer.Exit(1)


@app.command("export")
def data_export(
    more: Annotated[
        list[Path] | None, typer.Argument(metavar="PATH", help="JSONL files or folders, added to --source.")
    ] = None,
    source: Annotated[
        list[Path] | None,
        typer.Option("--source", metavar="PATH", help="JSONL files or folders; default: the project's examples."),
    ] = None,
    out: Annotated[
        Path | None, typer.Option("--out", metavar="DIR", help="Folder to write; default: data/training/exports.")
    ] = None,
    language: Annotated[
        str | None, typer.Option(metavar="LANGUAGE", help="pt, en or both; default: as in training_config.yaml.")
    ] = None,
    dedupe: Annotated[
        bool,
        typer.Option(
            "--dedupe", help="Keep one row of each cluster of near-duplicates; dropped.jsonl names the others."
        ),
    ] = False,
    project: ProjectOption = None,
    as_json: JsonOption = False,
) -> None:
    """Write train.jsonl, eval.jsonl and statistics.json, with the same bytes for the same input and settings.

    Example: noesis data export --language both --out /tmp/exports
    """
    from noesis.constitution.document import load_constitution
    from noesis.core.console import say
    from noesis.core.overrides import Overrides
    from noesis.core.project import find_project
    from noesis.dataset.export import export

    reserve_stdout(as_json)
    found = find_project(project)
    config = Overrides(language=language).configure(found)
    target = out or found.exports
    sources = [*(source or ()), *(more or ())] or found.sources(config.training.data.language)
    statistics = export(
        sources, target, load_constitution(found.constitution), config, dedupe=dedupe, tribunal=found.data / "tribunal"
    )
    for part in (statistics.train, statistics.held_out):
        say(
            _(
                "  {file}: {examples}",
                file=part.file,
                examples=ngettext("{count:,} example", "{count:,} examples", part.examples),
            )
        )
    say(f"  {target / 'statistics.json'}")
    print_result(statistics.to_json(), as_json)


@app.command("inspect")
def data_inspect(
    ids: Annotated[
        list[str] | None,
        typer.Argument(metavar="ID", help="Ids of the examples to show; default: the first three."),
    ] = None,
    everything: Annotated[bool, typer.Option("--all", help="Show all examples.")] = False,
    html: Annotated[
        Path | None,
        typer.Option(
            "--html", metavar="FILE", help="Write a self-contained page; the terminal then shows only the counts."
        ),
    ] = None,
    model: Annotated[
        str | None,
        typer.Option(
            metavar="MODEL",
            help="Model whose tokenizer and chat template are used; default: as in training_config.yaml.",
        ),
    ] = None,
    language: Annotated[
        str | None, typer.Option(metavar="LANGUAGE", help="pt, en or both; default: as in training_config.yaml.")
    ] = None,
    project: ProjectOption = None,
) -> None:
    """Show what the model is trained on: the rendered conversation, with the trained tokens marked and counted.

    Exit code 0: training accepts the rows shown, 1: it would refuse one, and the reason is shown.

    Example: noesis data inspect maieutica_001
    """
    from noesis.core.overrides import Overrides
    from noesis.core.project import find_project
    from noesis.dataset.inspect import show

    found = find_project(project)
    config = Overrides(model=model, language=language).configure(found)
    if any(row.refusal for row in show(found, config, ids or [], everything=everything, html=html)):
        raise typer.Exit(1)
