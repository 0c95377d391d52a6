"""`noesis constitution prompts|revise|prefer`: make training data from the constitution."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from noesis.cli.constitution_commands import SPEC, CapOption, SeedOption
from noesis.cli.constitution_commands import app as app  # one group of commands
from noesis.cli.options import JsonOption, ProjectOption, print_result, reserve_stdout
from noesis.core.i18n import _

ModelSpec = Annotated[str, typer.Option("--model", metavar="SPEC", help=f"Model whose answers are revised: {SPEC}.")]
CriticSpec = Annotated[
    str | None,
    typer.Option("--critic", metavar="SPEC", help="Model that criticises and revises; default: the same as --model."),
]
CountOption = Annotated[int | None, typer.Option("--count", min=1, metavar="N", help="Take only the first N.")]


@app.command()
def prompts(
    model: Annotated[
        str | None,
        typer.Option(
            "--model",
            metavar="SPEC",
            help="Model that words the prompts; without it, instructions for people are written.",
        ),
    ] = None,
    out: Annotated[
        Path | None, typer.Option("--out", metavar="DIR", help="Folder to write; default: data/generated/prompts.")
    ] = None,
    language: Annotated[
        str, typer.Option(metavar="CODE", help="Language of the prompts; both: the constitution's.")
    ] = "both",
    count: Annotated[int, typer.Option(min=1, metavar="N", help="Number of combinations to sample.")] = 100,
    temperature: Annotated[
        float, typer.Option(min=0, max=2, metavar="T", help="Sampling temperature of --model.")
    ] = 0.8,
    seed: SeedOption = 0,
    max_usd: CapOption = None,
    project: ProjectOption = None,
    as_json: JsonOption = False,
) -> None:
    """Make prompts by combining topic, situation, asker and difficulty from data/constitution_prompts.yaml.

    Prompts that exist already are left out.

    Example: noesis constitution prompts --count 200 --model openai:http://127.0.0.1:8080/v1:qwen3
    """
    from noesis.constitution.document import load_constitution
    from noesis.core.console import say
    from noesis.core.project import find_project
    from noesis.synthesis.make_prompts import PromptsRequest, make_prompts

    reserve_stdout(as_json)
    found = find_project(project)
    languages = load_constitution(found.constitution).languages if language == "both" else (language,)
    ask = PromptsRequest(
        out or found.data / "generated" / "prompts", languages, count, model, seed, temperature, max_usd=max_usd
    )
    report = make_prompts(found, ask)
    say(
        _(
            "{kept} of {asked} kept; the lists make {combinations:,} in each language",
            kept=report["kept"],
            asked=report["asked"],
            combinations=report["of"],
        )
    )
    if report["left_out"]:
        say(_("  left out: ") + ", ".join(f"{why} {n}" for why, n in report["left_out"].items()))
    say(f"  → {report['file']}")
    print_result(report, as_json)


@app.command()
def prefer(
    critic: Annotated[
        str,
        typer.Option(
            "--critic", metavar="SPEC", help=f"Model that compares; it must return log-probabilities: {SPEC}."
        ),
    ],
    pairs: Annotated[
        Path | None,
        typer.Option(
            "--pairs",
            metavar="FILE",
            help="JSONL with prompt, a and b, or examples, whose revised and initial answers are compared.",
        ),
    ] = None,
    prompts: Annotated[
        Path | None, typer.Option("--prompts", metavar="FILE", help="JSONL of prompts that --model answers twice.")
    ] = None,
    model: Annotated[str | None, typer.Option("--model", metavar="SPEC", help="Model that answers --prompts.")] = None,
    out: Annotated[
        Path | None, typer.Option("--out", metavar="DIR", help="Folder to write; default: data/generated/preferences.")
    ] = None,
    reasoning: Annotated[
        bool,
        typer.Option("--reasoning", help="Let the critic reason first; its labels are then clamped to 0.4 to 0.6."),
    ] = False,
    temperature: Annotated[
        float, typer.Option(min=0, max=2, metavar="T", help="Sampling temperature of the two answers.")
    ] = 1.0,
    seed: SeedOption = 0,
    count: CountOption = None,
    max_usd: CapOption = None,
    project: ProjectOption = None,
    as_json: JsonOption = False,
) -> None:
    """Label pairs of answers with a probability that one is preferred, by a random principle for each pair.

    The critic compares each pair in both orders. If interrupted, the same command continues.

    Example: noesis constitution prefer --critic torch:smollm2 --pairs data/generated/revisions/examples.jsonl
    """
    from noesis.core.console import say
    from noesis.core.project import find_project
    from noesis.synthesis.make_preferences import make_preferences
    from noesis.synthesis.preference_labels import PreferencesRequest

    reserve_stdout(as_json)
    found = find_project(project)
    folder = out or found.data / "generated" / "preferences"
    ask = PreferencesRequest(
        critic,
        folder,
        pairs,
        prompts,
        model,
        reasoning=reasoning,
        seed=seed,
        temperature=temperature,
        count=count,
        max_usd=max_usd,
    )
    report = make_preferences(found, ask)
    say(
        _(
            "{labelled} of {pairs} pairs labelled by {critic}",
            labelled=report["labelled"],
            pairs=report["pairs"],
            critic=report["critic"],
        )
    )
    if report["labelled"]:
        place = report["first_place"]
        say(
            _(
                "  mean p_chosen {mean:.3f}; both orders agree on {agree:.2f}",
                mean=report["mean_p_chosen"],
                agree=report["both_orders_agree"],
            )
        )
        say(
            _(
                "  probability of whatever stands first {place:.2f} {interval}",
                place=place["mean"],
                interval=place["interval_95"] or "",
            )
        )
        if report["both_orders_agree"] < 0.6:
            say(
                _(
                    "  the critic goes by an answer's position more than by its content, so these labels teach little: "
                    "name a stronger critic"
                )
            )
    if "revised_preferred" in report:
        say(
            _(
                "  the revision is preferred in {preferred} of {pairs} pairs",
                preferred=report["revised_preferred"]["count"],
                pairs=report["revised_preferred"]["of"],
            )
        )
    if report["left_out"]:
        say(_("  left out: ") + ", ".join(f"{why} {n}" for why, n in report["left_out"].items()))
    say(f"  → {folder / 'pairs.jsonl'}")
    print_result(report, as_json)


@app.command()
def revise(
    model: ModelSpec,
    prompts: Annotated[
        Path,
        typer.Option(
            "--prompts",
            metavar="FILE",
            help="JSONL with id and prompt, your own or from  noesis constitution prompts.",
        ),
    ],
    critic: CriticSpec = None,
    out: Annotated[
        Path | None,
        typer.Option("--out", metavar="DIR", help="Folder to write or continue; default: data/generated/revisions."),
    ] = None,
    rounds: Annotated[
        int,
        typer.Option(
            min=1, max=4, metavar="N", help="Critiques and revisions of each answer, each by another principle."
        ),
    ] = 1,
    shots: Annotated[
        int, typer.Option(min=0, max=8, metavar="N", help="Hand-written examples shown before each request.")
    ] = 2,
    reviser: Annotated[
        Literal["critic", "model"], typer.Option(help="Which of the two writes the revisions.")
    ] = "critic",
    temperature: Annotated[
        float, typer.Option(min=0, max=2, metavar="T", help="Sampling temperature of all replies.")
    ] = 0.7,
    attempts: Annotated[
        int, typer.Option(min=1, max=10, metavar="N", help="Tries of each step before an example is left out.")
    ] = 3,
    tokens: Annotated[
        int, typer.Option(min=32, metavar="TOKENS", help="Longest answer; a critique gets three quarters of it.")
    ] = 400,
    seed: SeedOption = 0,
    judges: Annotated[
        list[str] | None,
        typer.Option(
            "--judge",
            metavar="SPEC",
            help="Judge model of a Tribunal that must pass each revision, if it is fit; may be repeated.",
        ),
    ] = None,
    count: CountOption = None,
    max_usd: CapOption = None,
    project: ProjectOption = None,
    as_json: JsonOption = False,
) -> None:
    """Make examples: initial answer, critique by a random principle, revision.

    They are marked as generated, with their lineage. If interrupted, the same command continues.

    Example: noesis constitution revise --model torch:smollm2 --prompts prompts.jsonl --count 8
    """
    from noesis.core.console import say
    from noesis.core.project import find_project
    from noesis.synthesis.critique_revision import Settings
    from noesis.synthesis.make_examples import ExamplesRequest, make_examples

    reserve_stdout(as_json)
    found = find_project(project)
    settings = Settings(rounds, shots, seed, attempts, temperature, tokens, max(32, tokens * 3 // 4), reviser)
    folder = out or found.data / "generated" / "revisions"
    ask = ExamplesRequest(model, critic or model, prompts, folder, settings, tuple(judges or ()), max_usd, count)
    _show_report(make_examples(found, ask))
    say(_("  → {folder}; left out: {left_out}", folder=folder / "examples.jsonl", left_out=folder / "left_out.jsonl"))
    if as_json:
        import json

        print_result(json.loads((folder / "report.json").read_text(encoding="utf-8")), True)


def _show_report(report: dict[str, Any]) -> None:
    from noesis.core.console import duration, say

    say(
        _(
            "{kept} examples kept of {prompts} prompts ({made} made), {time}",
            kept=report["kept"],
            prompts=report["prompts"],
            made=report["made"],
            time=duration(report["seconds"]),
        )
    )
    for name, f in report["by_principle"].items():
        low, high = f["interval_95"]
        say(
            _(
                "  {name:<28} {kept}/{drawn} kept: {rate:.2f} [{low:.2f}, {high:.2f}]",
                name=name,
                kept=f["kept"],
                drawn=f["drawn"],
                rate=f["rate"],
                low=low,
                high=high,
            )
        )
    for title, counts in ((_("left out"), report["left_out"]), (_("replies not used"), report["failures"])):
        if counts:
            say(f"  {title}: " + ", ".join(f"{why} {n}" for why, n in counts.items()))
    spent = report["spending"]
    price = _("price unknown") if spent["usd"] is None else f"{spent['usd']} USD"
    say(
        _(
            "  {report}; {spent} requests to endpoints, {price}",
            report=report["court"],
            spent=spent["requests"],
            price=price,
        )
    )
