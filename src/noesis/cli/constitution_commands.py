"""`noesis constitution show|check|diff`: the document. The commands that make data from it: `synthesis_commands.py`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from noesis.cli.options import JsonOption, ProjectOption, print_result, reserve_stdout
from noesis.core.i18n import _, spoken

app = typer.Typer(
    help="Read, check and compare the constitution, and make data from it.\n\nExample: noesis constitution check",
    no_args_is_help=True,
    rich_markup_mode=None,
)

SPEC = "openai:BASE_URL:MODEL, gguf:PATH, or torch:NAME (smollm2, a folder, or a name on the Hub)"
CapOption = Annotated[
    float | None,
    typer.Option(
        "--max-usd",
        min=0,
        metavar="USD",
        help="Stop before endpoints cost more than this; needs tribunal: prices in training_config.yaml.",
    ),
]
SeedOption = Annotated[
    int, typer.Option("--seed", min=0, metavar="N", help="Seed of all random choices; it is recorded.")
]


@app.command()
def show(
    ids: Annotated[
        list[str] | None,
        typer.Argument(metavar="ID", help="Ids of principles or values to show in full; default: an overview of all."),
    ] = None,
    language: Annotated[
        str | None, typer.Option(metavar="CODE", help="Language of the texts; default: the one that is spoken.")
    ] = None,
    project: ProjectOption = None,
    as_json: JsonOption = False,
) -> None:
    """Show the values in rank order with their principles.

    Those named by id are shown with their critique requests, judges' items, prompts and examples.

    Example: noesis constitution show fontes-reais
    """
    from noesis.constitution.document import load_constitution
    from noesis.core.console import say, say_text
    from noesis.core.errors import UsageError
    from noesis.core.project import find_project
    from noesis.synthesis.coverage import check_coverage

    reserve_stdout(as_json)
    language = language or spoken()
    found = find_project(project)
    constitution = load_constitution(found.constitution)
    wanted = set(ids or ())
    if unknown := sorted(wanted - constitution.principle_ids - constitution.value_ids):
        raise UsageError(
            _(
                "the constitution has no {unknown!r}; principles: {id}",
                unknown=unknown[0],
                id=", ".join(p.id for p in constitution.principles),
            )
        )
    covers = {cover.principle: cover for cover in check_coverage(found).covers} if wanted else {}
    for rank, value in enumerate(constitution.values, 1):
        named = value[language]
        mine = [
            p
            for p in constitution.principles
            if p.value == value.id and (not wanted or p.id in wanted or value.id in wanted)
        ]
        if mine:
            judge = f", {value.judge}" if value.judge else ""
            say(f"{rank}. {named.name} ({value.id}{judge}): {named.text}")
        for principle in mine:
            say(f"   {principle.id}: {principle[language]}")
            if principle.id in covers:
                for name in ("critique", "revision"):
                    request = getattr(principle, name)
                    worded = request[language] if request else _("(generic wording)")
                    say(f"     {name}: {worded}")
                cover = covers[principle.id]
                say(
                    _(
                        "     items: {items}; prompts: {prompts}",
                        items=", ".join(cover.items) or _("none"),
                        prompts=len(cover.prompts),
                    )
                )
                say(
                    _("     examples: ")
                    + "; ".join(f"{code} {', '.join(names) or _('none')}" for code, names in cover.examples.items())
                )
    for attitude in constitution.attitudes:
        if not wanted or attitude.id in wanted:
            named = attitude[language]
            say(f"·  {named.name} ({attitude.id}): {named.text}")
    if not wanted:
        say()
        say_text(_("System prompt: {system_prompt}", system_prompt=constitution.system_prompt[language]))
    print_result(constitution.model_dump(mode="json"), as_json)


@app.command()
def check(project: ProjectOption = None, as_json: JsonOption = False) -> None:
    """Check the document, and that each principle has examples, judges' items and prompts.

    Exit code 1: mistakes in the document; gaps are only listed.

    Example: noesis constitution check
    """
    from noesis.core.console import say
    from noesis.core.project import find_project
    from noesis.synthesis.coverage import check_coverage

    reserve_stdout(as_json)
    result = check_coverage(find_project(project))
    for mistake in result.mistakes:
        say(str(mistake))
    if result.covers:
        first, *others = result.covers[0].examples
        more = "".join(f" {code:>4}" for code in others)
        examples = _("examples {language}", language=first)
        say(f"  {_('principle'):<28} {examples:>11}{more} {_('items'):>6} {_('prompts'):>9}")
    for cover in result.covers:
        count, *rest = (len(names) for names in cover.examples.values())
        more = "".join(f" {n:>4}" for n in rest)
        say(f"  {cover.principle:<28} {count:>11}{more} {len(cover.items):>6} {len(cover.prompts):>9}")
    gaps = [f"{cover.principle}: {gap}" for cover in result.covers for gap in cover.gaps]
    for gap in gaps:
        say(_("  gap: {gap}", gap=gap))
    say(
        _(
            "{covers} principles, {mistakes} mistakes, {gaps} gaps",
            covers=len(result.covers),
            mistakes=len(result.mistakes),
            gaps=len(gaps),
        )
    )
    print_result(result.to_json(), as_json)
    if result.mistakes:
        raise typer.Exit(1)


@app.command()
def diff(
    old: Annotated[Path | None, typer.Argument(metavar="OLD", help="YAML file of the older constitution.")] = None,
    new: Annotated[
        Path | None, typer.Argument(metavar="NEW", help="YAML file of the newer one; default: the project's.")
    ] = None,
    runs: Annotated[
        tuple[Path, Path] | None,
        typer.Option("--runs", metavar="A B", help="Two judged runs, compared principle by principle."),
    ] = None,
    apply: Annotated[
        bool, typer.Option("--apply", help="Write new critiques for what depends on a change, to a new file.")
    ] = False,
    critic: Annotated[
        str | None, typer.Option("--critic", metavar="SPEC", help=f"Model that writes them: {SPEC}.")
    ] = None,
    out: Annotated[
        Path | None, typer.Option("--out", metavar="DIR", help="Folder to write; default: data/generated/critiques.")
    ] = None,
    seed: SeedOption = 0,
    max_usd: CapOption = None,
    project: ProjectOption = None,
    as_json: JsonOption = False,
) -> None:
    """Show what changed in the text and what depends on it; with --runs, how two models' behaviour differs.

    Example: noesis constitution diff before.yaml data/constitution.yaml --runs runs/before runs/after
    """
    from noesis.constitution.document import load_constitution
    from noesis.core.console import say
    from noesis.core.errors import UsageError
    from noesis.core.project import find_project

    reserve_stdout(as_json)
    found = find_project(project)
    result: dict[str, Any] = {}
    if old is None and runs is None:
        raise UsageError(_("name an OLD constitution to compare with the project's, or two runs with --runs A B"))
    if apply and (old is None or critic is None):
        raise UsageError(_("--apply needs an OLD constitution and --critic SPEC"))
    if old is not None:
        from noesis.constitution.diff import compare
        from noesis.synthesis.critique_revision import Settings
        from noesis.synthesis.renewal import RenewalRequest, dependents, renew

        before, after = load_constitution(old), load_constitution(new or found.constitution)
        changes = compare(before, after)
        affected = dependents(found, before, after, changes)
        for change in changes:
            for line in change.lines():
                say(f"  {line}")
        for d in affected:
            counts = (
                ", ".join(_("{names} in {code}", names=len(names), code=code) for code, names in d.examples.items())
                or "none"
            )
            say(
                _(
                    "  {principle} affects: examples {counts}; generated {generated}; items {items}; prompts {prompts}",
                    principle=d.principle,
                    counts=counts,
                    generated=len(d.generated),
                    items=", ".join(d.items) or "none",
                    prompts=len(d.prompts),
                )
            )
        say(_("{changes} changes, {affected} principles affected", changes=len(changes), affected=len(affected)))
        result = {"changes": [vars(c) for c in changes], "dependents": [vars(d) for d in affected]}
        if apply and critic:
            settings = Settings(shots=0, seed=seed)
            folder = out or found.data / "generated" / "critiques"
            made = renew(found, after, changes, RenewalRequest(critic, folder, settings, max_usd))
            say(_("{made} of {due} critiques rewritten → {file}", made=made.made, due=made.due, file=made.file))
            result["applied"] = made.to_json()
    if runs is not None:
        from noesis.pipeline.comparison.by_principle import compare_runs

        behaviour = compare_runs(found, *runs)
        say(f"  {_('principle'):<28} {_('prompts'):>9} {'A':>6} {'B':>6}   B − A")
        for name, f in behaviour.by_principle.items():
            say(
                _(
                    "  {name:<28} {f.prompts:>9} {f.a:>6.3f} {f.b:>6.3f}   {f.difference:+.3f} {interval}, p {f.p:.3f}",
                    name=name,
                    f=f,
                    interval=list(f.interval_95) if f.interval_95 else "",
                )
            )
        result["runs"] = behaviour.to_json()
    print_result(result, as_json)


@app.command()
def draft(
    domain: Annotated[
        str, typer.Option("--domain", metavar="TEXT", help="What the assistant is for, as in: an assistant for TEXT.")
    ],
    again: Annotated[bool, typer.Option("--again", help="Replace the files that are there, edited or not.")] = False,
    project: ProjectOption = None,
) -> None:
    """Draft the judges' rubrics and questions from the constitution, to be edited.

    Example: noesis constitution draft --domain "a biblioteca pública de Olinda"
    """
    from noesis.core.console import path_here, say
    from noesis.core.project import find_project
    from noesis.workspace.draft_tribunal import draft_tribunal

    for file in draft_tribunal(find_project(project), domain, again=again):
        say(f"  {path_here(file)}")
    say(_("Edit them: the questions are a start, and a verdict needs at least 20"))
