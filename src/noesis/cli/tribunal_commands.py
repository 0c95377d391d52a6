"""`noesis tribunal calibrate|weigh|train-judge|baselines|lock`: are the judges fit, and a judge of one's own."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from noesis.cli.options import (
    AskOption,
    JsonOption,
    JudgeOption,
    JudgesMaxUsdOption,
    MaxMinutesOption,
    MaxUsdOption,
    ModelOption,
    PartOption,
    ProjectOption,
    print_result,
    reserve_stdout,
)
from noesis.core.i18n import _, retold

if TYPE_CHECKING:
    from noesis.tribunal.calibration_store import Calibration

app = typer.Typer(
    help="Measure the Tribunal's judges: are they fit to judge?\n\nExample: noesis tribunal baselines",
    no_args_is_help=True,
)


@app.command()
def calibrate(
    judges: JudgeOption = None,
    part: PartOption = "dev",
    pairs: Annotated[
        int | None, typer.Option(min=1, metavar="N", help="Use only N pairs, as a trial; the result is not stored.")
    ] = None,
    ask: AskOption = None,
    max_usd: JudgesMaxUsdOption = None,
    project: ProjectOption = None,
    as_json: JsonOption = False,
) -> None:
    """Measure judges on minimal pairs, against keyword and length baselines, and store the result.

    A judge counts as fit only after --part locked.

    Example: noesis tribunal calibrate --judge gguf:judge.gguf --part locked
    """
    from noesis.core.errors import UsageError
    from noesis.core.overrides import Overrides
    from noesis.core.project import find_project
    from noesis.tribunal.calibration.calibrate import calibrate as measure

    if not judges:
        raise UsageError(_("name a judge: --judge openai:BASE_URL:MODEL, gguf:PATH or reward:NAME"))
    reserve_stdout(as_json)
    found = find_project(project)
    section = Overrides(ask=ask).configure(found).training.tribunal
    results = measure(found, section, judges, part, max_usd=max_usd, count=pairs)
    for result in results:
        _show(result)
    print_result([result.to_json() for result in results], as_json)


@app.command("train-judge")
def train_judge(
    model: ModelOption = None,
    sources: Annotated[
        str | None,
        typer.Option(
            "--from",
            metavar="LIST",
            help="What to train on, of examples, pairs, planted; default: as in training_config.yaml.",
        ),
    ] = None,
    method: Annotated[
        Literal["lora", "probe"] | None,
        typer.Option("--method", help="An adapter with a head, or a head alone on the frozen base."),
    ] = None,
    run: Annotated[
        Path | None,
        typer.Option("--run", metavar="DIR", help="Folder to work in and to go on from; default: runs/judge."),
    ] = None,
    name: Annotated[str | None, typer.Option("--name", metavar="NAME", help="What verdicts call the judge.")] = None,
    max_planted: Annotated[
        int | None,
        typer.Option("--max-planted", min=1, metavar="N", help="Plant only N faults, evenly over their kinds."),
    ] = None,
    epochs: Annotated[int | None, typer.Option(min=1, metavar="N", help="Passes over the pairs.")] = None,
    learning_rate: Annotated[float | None, typer.Option("--learning-rate", metavar="RATE", help="Peak rate.")] = None,
    max_usd: MaxUsdOption = None,
    max_minutes: MaxMinutesOption = None,
    project: ProjectOption = None,
    as_json: JsonOption = False,
) -> None:
    """Train a reward model on the project's own pairs: a judge that gives one number and quotes nothing.

    A stopped command goes on where it was. Whether the judge is fit, `calibrate --judge reward:DIR/judge` says.

    Example: noesis tribunal train-judge --model smollm2 --from examples,planted
    """
    from noesis.core.overrides import JudgeOverrides
    from noesis.core.project import find_project
    from noesis.pipeline.train_judge.train import train_judge as train

    reserve_stdout(as_json)
    found = find_project(project)
    config = JudgeOverrides(
        model=model,
        method=method,
        sources=sources,
        max_planted=max_planted,
        epochs=epochs,
        learning_rate=learning_rate,
        max_usd=max_usd,
        max_minutes=max_minutes,
    ).configure(found)
    print_result(train(found, config, run or found.runs / "judge", name=name), as_json)


@app.command()
def weigh(
    judge: Annotated[
        str,
        typer.Option("--judge", metavar="SPEC", help="The judge: gguf:PATH, torch:NAME or openai:BASE_URL:MODEL."),
    ],
    max_usd: JudgesMaxUsdOption = None,
    project: ProjectOption = None,
    as_json: JsonOption = False,
) -> None:
    """Learn on the dev half what each item of a judge that is read is worth, and how that does on attacks left out.

    The weights count where training_config.yaml has tribunal: item_weights: true; the judge is then another judge.

    Example: noesis tribunal weigh --judge gguf:judge.gguf
    """
    from noesis.core.config import load_config
    from noesis.core.console import say
    from noesis.core.project import find_project
    from noesis.tribunal.calibration.weigh import weigh as learn
    from noesis.tribunal.calibration.weigh import weights_lines

    reserve_stdout(as_json)
    project_found = find_project(project)
    found = learn(project_found, load_config(project_found).training.tribunal, judge, max_usd=max_usd)
    for line in weights_lines(found):
        say(line)
    print_result(found.to_json(), as_json)


@app.command()
def baselines(part: PartOption = "dev", project: ProjectOption = None, as_json: JsonOption = False) -> None:
    """Measure keywords, length and the offline screen on the judge benchmark; needs no model.

    Example: noesis tribunal baselines
    """
    from noesis.constitution.document import load_constitution
    from noesis.core.console import say
    from noesis.core.project import find_project
    from noesis.tribunal.calibration.baselines import baselines as both
    from noesis.tribunal.calibration.baselines import by_attack, keyword_score, screen_figures
    from noesis.tribunal.suite import read_benchmark

    reserve_stdout(as_json)
    found = find_project(project)
    pairs, _ignored = read_benchmark(found.tribunal, part)
    result: dict[str, Any] = both(pairs) | {
        "keywords_by_attack": by_attack(pairs, keyword_score),
        "screen": screen_figures(pairs, load_constitution(found.constitution)),
    }
    for name in ("keywords", "length"):
        f = result[name]
        low, high = f["interval_95"]
        say(
            _(
                "  {name:<9} {right}/{pairs} pairs right: {accuracy:.2f} [{low:.2f}, {high:.2f}], {ties} ties",
                name=name,
                right=f["right"],
                pairs=f["pairs"],
                accuracy=f["accuracy"],
                low=low,
                high=high,
                ties=f["ties"],
            )
        )
    s = result["screen"]
    say(
        _(
            "  {name}: flags {bad_flagged} of {bad} bad answers and {good_flagged} of {good} good ones",
            name=retold(s["name"]),
            bad_flagged=s["bad_flagged"],
            bad=s["bad"],
            good_flagged=s["good_flagged"],
            good=s["good"],
        )
    )
    print_result(result, as_json)


@app.command()
def lock(project: ProjectOption = None) -> None:
    """Seal the locked parts of prompts and benchmark by writing their hashes to data/tribunal/locked.json.

    Example: noesis tribunal lock
    """
    from noesis.core.console import say
    from noesis.core.project import find_project
    from noesis.tribunal.suite import write_seal

    folder = find_project(project).tribunal
    for name, digest in write_seal(folder).items():
        say(f"  {digest[:16]}  {name}")
    say(_("  → {folder}: commit it", folder=folder / "locked.json"))


def _show(c: Calibration) -> None:
    from noesis.core.console import say

    low, high = c.interval_95
    d = c.details
    say(
        _(
            "{judge} on {pairs} pairs ({part}): {fit}",
            judge=c.judge,
            pairs=c.pairs,
            part=c.part,
            fit=_("beats its baselines") if c.fit else _("NOT FIT"),
        )
    )
    missing = _("{count} of {all} scores missing", count=d["abstention"]["count"], all=d["abstention"]["of"])
    say(
        _(
            "  accuracy   {accuracy:.2f} [{low:.2f}, {high:.2f}], {ties} ties, {missing}",
            accuracy=c.accuracy or 0.0,
            low=low,
            high=high,
            ties=c.ties,
            missing=missing,
        )
    )
    for reason in d["reasons"]:
        say(_("    missing: {reason}", reason=retold(reason)))
    for name, b in c.baselines.items():
        say(f"  {name:<10} {b['accuracy']:.2f} [{b['interval_95'][0]:.2f}, {b['interval_95'][1]:.2f}]")
    for date, f in d["by_date"].items() if len(d["by_date"]) > 1 else ():
        length = f["baselines"]["length"]["accuracy"]
        rate = f"{f['count']}/{f['of']} [{f['interval_95'][0]:.2f}, {f['interval_95'][1]:.2f}]"
        say(
            _(
                "  rows {date:<11} {rate}; keywords {keywords:.2f}, length {length:.2f}",
                date=date,
                rate=rate,
                keywords=f["baselines"]["keywords"]["accuracy"],
                length=length,
            )
        )
    for attack, f in d["by_attack"].items():
        say(f"    {attack:<20} {f['count']}/{f['of']} [{f['interval_95'][0]:.2f}, {f['interval_95'][1]:.2f}]")
    say(
        _(
            "  AUROC      {items}",
            items=", ".join(f"{judge} {x:.2f}" for judge, x in d["auroc"].items() if x is not None),
        )
    )
    if d["pt_minus_en"]:
        say(
            _(
                "  PT − EN    {gap:+.2f} {interval}",
                gap=d["pt_minus_en"]["gap"],
                interval=d["pt_minus_en"]["interval_95"],
            )
        )
    if d["length"]:
        effect, error = d["length"]["score_per_100_words"], 1.96 * d["length"]["standard_error"]
        say(_("  length     {effect:+.3f} ± {error:.3f} of the score per 100 more words", effect=effect, error=error))
    for kind, f in d["invariance"].items():
        if f["comparisons"]:
            say(
                _(
                    "    {kind:<20} changes the score by {change:+.3f}, {size:.3f} in size",
                    kind=kind,
                    change=f["mean_change"],
                    size=f["mean_absolute_change"],
                )
            )
    if (ways := d.get("items")) and set(ways) != {"quoted"}:
        say(_("  items      {items}", items=", ".join(f"{count} {way}" for way, count in sorted(ways.items()))))
    spans, injection = d["spans_found"], d["injection"]
    say(
        _(
            "  injection  {succeed}/{of} succeed; Brier {brier}; spans found {found}/{given}",
            succeed=injection["count"],
            of=injection["of"],
            brier=d["brier"],
            found=spans["found"],
            given=spans["given"],
        )
    )
    if note := d.get("note"):
        say(_("  note       {note}", note=note))
    if agreement := d["agreement"]:
        say(
            _(
                "  agreement  alpha {alpha}, {models} models are worth {votes} independent votes",
                alpha=agreement["alpha"],
                models=agreement["models"],
                votes=agreement["effective_votes"],
            )
        )
