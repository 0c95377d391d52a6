"""`noesis constitution show|check|prompts|revise|prefer|diff`: the document, and the data that is made from it."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from noesis.cli.options import JsonOption, ProjectOption, print_result, talk

app = typer.Typer(
    help="The constitution: what it says, what it reaches, and data made from it.\n\nExample: noesis constitution check",
    no_args_is_help=True,
    rich_markup_mode=None,
)

SPEC = "openai:BASE_URL:MODEL, gguf:PATH, or torch:NAME (smollm2, a model folder, a Hub name)"
ModelSpec = Annotated[str, typer.Option("--model", metavar="SPEC", help=f"Whose answers are revised: {SPEC}.")]
CriticSpec = Annotated[str | None, typer.Option("--critic", metavar="SPEC", help="Who criticises and revises; default: the model itself.")]
CapOption = Annotated[
    float | None, typer.Option("--max-usd", min=0, help="Stop before endpoints cost more than this; needs tribunal: prices in training_config.yaml.")
]
SeedOption = Annotated[int, typer.Option("--seed", min=0, help="Of all draws; recorded.")]
CountOption = Annotated[int | None, typer.Option("--count", min=1, metavar="N", help="Only the first N.")]


@app.command()
def show(
    ids: Annotated[list[str] | None, typer.Argument(metavar="[ID]...", help="Principles or values to show; default: all, without the requests.")] = None,
    language: Annotated[str, typer.Option(help="pt or en.")] = "en",
    project: ProjectOption = None,
    as_json: JsonOption = False,
) -> None:
    """Values in rank order with their principles; named ones with their requests, judges' items, prompts and examples.

    Example: noesis constitution show fontes-reais
    """
    from noesis.config import find_project
    from noesis.console import say
    from noesis.constitution.document import load_constitution
    from noesis.errors import UsageError
    from noesis.revising.coverage import check as covered

    talk(as_json)
    if language not in ("pt", "en"):
        raise UsageError(f"--language {language!r}: choose pt or en")
    found = find_project(project)
    constitution = load_constitution(found.constitution)
    wanted = set(ids or ())
    if unknown := sorted(wanted - constitution.principle_ids - constitution.value_ids):
        raise UsageError(f"the constitution has no {unknown[0]!r}; principles: {', '.join(p.id for p in constitution.principles)}")
    covers = {cover.principle: cover for cover in covered(found).covers} if wanted else {}
    for rank, value in enumerate(constitution.values, 1):
        named = getattr(value, language)
        mine = [p for p in constitution.principles if p.value == value.id and (not wanted or p.id in wanted or value.id in wanted)]
        if mine:
            say(f"{rank}. {named.name} ({value.id}, {value.judge}): {named.text}")
        for principle in mine:
            say(f"   {principle.id}: {principle.text(language)}")
            if principle.id in covers:
                for name in ("critique", "revision"):
                    request = getattr(principle, name)
                    say(f"     {name}: {request[language] if request else '(general words)'}")
                cover = covers[principle.id]
                say(f"     items: {', '.join(cover.items) or 'none'}; prompts: {len(cover.prompts)}")
                say("     examples: " + "; ".join(f"{code} {', '.join(names) or 'none'}" for code, names in cover.examples.items()))
    for attitude in constitution.attitudes:
        if not wanted or attitude.id in wanted:
            named = getattr(attitude, language)
            say(f"·  {named.name} ({attitude.id}): {named.text}")
    if not wanted:
        say(f"\nSystem prompt: {getattr(constitution.system_prompt, language)}")
    print_result(constitution.model_dump(mode="json"), as_json)


@app.command()
def check(project: ProjectOption = None, as_json: JsonOption = False) -> None:
    """Does the document hold together, and does each principle reach examples, judges' items and prompts? Exit code 1: mistakes; gaps are only listed.

    Example: noesis constitution check
    """
    from noesis.config import find_project
    from noesis.console import say
    from noesis.revising.coverage import check as covered

    talk(as_json)
    result = covered(find_project(project))
    for mistake in result.mistakes:
        say(str(mistake))
    if result.covers:
        say(f"  {'principle':<28} {'examples pt':>11} {'en':>4} {'items':>6} {'prompts':>8}")
    for cover in result.covers:
        counts = {code: len(names) for code, names in cover.examples.items()}
        say(f"  {cover.principle:<28} {counts['pt']:>11} {counts['en']:>4} {len(cover.items):>6} {len(cover.prompts):>8}")
    gaps = [f"{cover.principle}: {gap}" for cover in result.covers for gap in cover.gaps]
    for gap in gaps:
        say(f"  gap: {gap}")
    say(f"{len(result.covers)} principles, {len(result.mistakes)} mistakes, {len(gaps)} gaps")
    print_result(result.as_json(), as_json)
    if result.mistakes:
        raise typer.Exit(1)


@app.command()
def revise(
    model: ModelSpec,
    prompts: Annotated[Path, typer.Option("--prompts", metavar="FILE", help="JSONL with id and prompt; made by  noesis constitution prompts  or your own.")],
    critic: CriticSpec = None,
    out: Annotated[
        Path | None, typer.Option("--out", metavar="DIR", help="Where to; default: data/generated/revisions. The same command goes on there.")
    ] = None,
    rounds: Annotated[int, typer.Option(min=1, max=4, help="Critiques and revisions of each answer, each by another principle.")] = 1,
    shots: Annotated[int, typer.Option(min=0, max=8, help="Hand-written examples shown before each request.")] = 2,
    reviser: Annotated[str, typer.Option(help="Who writes the revisions: critic or model.")] = "critic",
    temperature: Annotated[float, typer.Option(min=0, max=2, help="Of all replies.")] = 0.7,
    attempts: Annotated[int, typer.Option(min=1, max=10, help="Of each step, before an example is left out.")] = 3,
    tokens: Annotated[int, typer.Option(min=32, help="Longest answer; a critique may have three quarters of it.")] = 400,
    seed: SeedOption = 0,
    judges: Annotated[list[str] | None, typer.Option("--judge", metavar="SPEC", help="A Tribunal that revisions go before, if it is fit.")] = None,
    count: CountOption = None,
    max_usd: CapOption = None,
    project: ProjectOption = None,
    as_json: JsonOption = False,
) -> None:
    """Initial answer, critique by a drawn principle, revision: examples marked as generated, with their lineage. Resumable after a kill.

    Example: noesis constitution revise --model torch:smollm2 --prompts prompts.jsonl --count 8
    """
    from noesis.config import find_project
    from noesis.console import say
    from noesis.errors import UsageError
    from noesis.revising.chain import Settings
    from noesis.revising.revise import Ask
    from noesis.revising.revise import revise as make

    talk(as_json)
    if reviser not in ("critic", "model"):
        raise UsageError(f"--reviser {reviser!r}: choose critic or model")
    found = find_project(project)
    settings = Settings(rounds, shots, seed, attempts, temperature, tokens, max(32, tokens * 3 // 4), reviser)
    folder = out or found.data / "generated" / "revisions"
    ask = Ask(model, critic or model, prompts, folder, settings, tuple(judges or ()), max_usd, count)
    _show_report(make(found, ask))
    say(f"  → {folder / 'examples.jsonl'}; left out: {folder / 'left_out.jsonl'}")
    if as_json:
        print_result(_report(folder), True)


def _report(folder: Path) -> Any:
    import json

    return json.loads((folder / "report.json").read_text(encoding="utf-8"))


def _show_report(report: dict[str, Any]) -> None:
    from noesis.console import duration, say

    say(f"{report['kept']} examples kept of {report['prompts']} prompts ({report['made']} made), {duration(report['seconds'])}")
    for name, f in report["by_principle"].items():
        low, high = f["interval_95"]
        say(f"  {name:<28} {f['kept']}/{f['drawn']} kept: {f['rate']:.2f} [{low:.2f}, {high:.2f}]")
    for title, counts in (("left out", report["left_out"]), ("replies not used", report["failures"])):
        if counts:
            say(f"  {title}: " + ", ".join(f"{why} {n}" for why, n in counts.items()))
    spent = report["spending"]
    say(f"  {report['court']}; {spent['requests']} requests to endpoints, {'price unknown' if spent['usd'] is None else str(spent['usd']) + ' USD'}")
