"""`noesis tribunal calibrate|baselines|lock`: are the judges fit to judge?"""

from __future__ import annotations

from typing import Annotated, Any

import typer

from noesis.cli.options import (
    JsonOption,
    JudgeOption,
    JudgesMaxUsdOption,
    PartOption,
    ProjectOption,
    print_result,
    reserve_stdout,
)

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
    max_usd: JudgesMaxUsdOption = None,
    project: ProjectOption = None,
    as_json: JsonOption = False,
) -> None:
    """Measure judges on minimal pairs, against keyword and length baselines, and store the result.

    A judge counts as fit only after --part locked.

    Example: noesis tribunal calibrate --judge gguf:judge.gguf --part locked
    """
    from noesis.core.config import load_config
    from noesis.core.errors import UsageError
    from noesis.core.project import find_project
    from noesis.tribunal.calibration.calibrate import calibrate as measure

    if not judges:
        raise UsageError("name a judge: --judge openai:BASE_URL:MODEL or --judge gguf:PATH")
    reserve_stdout(as_json)
    found = find_project(project)
    results = measure(found, load_config(found).training.tribunal, judges, part, max_usd=max_usd, count=pairs)
    for result in results:
        _show(result)
    print_result(results, as_json)


@app.command()
def baselines(part: PartOption = "dev", project: ProjectOption = None, as_json: JsonOption = False) -> None:
    """Measure keywords, length and the offline screen on the judge benchmark; needs no model.

    Example: noesis tribunal baselines
    """
    from noesis.constitution.document import load_constitution
    from noesis.core.console import say
    from noesis.core.project import find_project, tribunal_folder
    from noesis.tribunal.calibration.baselines import baselines as both
    from noesis.tribunal.calibration.baselines import by_attack, keyword_score, screen_figures
    from noesis.tribunal.suite import read_benchmark

    reserve_stdout(as_json)
    found = find_project(project)
    pairs, _ = read_benchmark(tribunal_folder(found), part)
    result: dict[str, Any] = both(pairs) | {
        "keywords_by_attack": by_attack(pairs, keyword_score),
        "screen": screen_figures(pairs, load_constitution(found.constitution)),
    }
    for name in ("keywords", "length"):
        f = result[name]
        low, high = f["interval_95"]
        say(
            f"  {name:<9} {f['right']}/{f['pairs']} pairs right: {f['accuracy']:.2f} [{low:.2f}, {high:.2f}], {f['ties']} ties"
        )
    s = result["screen"]
    say(
        f"  {s['name']}: flags {s['bad_flagged']} of {s['bad']} bad answers and {s['good_flagged']} of {s['good']} good ones"
    )
    print_result(result, as_json)


@app.command()
def lock(project: ProjectOption = None) -> None:
    """Seal the locked parts of prompts and benchmark by writing their hashes to data/tribunal/locked.json.

    Example: noesis tribunal lock
    """
    from noesis.core.console import say
    from noesis.core.project import find_project, tribunal_folder
    from noesis.tribunal.suite import write_seal

    folder = tribunal_folder(find_project(project))
    for name, digest in write_seal(folder).items():
        say(f"  {digest[:16]}  {name}")
    say(f"  → {folder / 'locked.json'}: commit it")


def _show(r: dict[str, Any]) -> None:
    from noesis.core.console import say

    low, high = r["interval_95"]
    say(f"{r['judge']} on {r['pairs']} pairs ({r['part']}): {'beats both baselines' if r['fit'] else 'NOT FIT'}")
    say(
        f"  accuracy   {r['accuracy']:.2f} [{low:.2f}, {high:.2f}], {r['ties']} ties, {r['abstention']['count']} of {r['abstention']['of']} scores missing"
    )
    for name in ("keywords", "length"):
        b = r["baselines"][name]
        say(f"  {name:<10} {b['accuracy']:.2f} [{b['interval_95'][0]:.2f}, {b['interval_95'][1]:.2f}]")
    for attack, f in r["by_attack"].items():
        say(f"    {attack:<20} {f['count']}/{f['of']} [{f['interval_95'][0]:.2f}, {f['interval_95'][1]:.2f}]")
    say(f"  AUROC      {', '.join(f'{judge} {x:.2f}' for judge, x in r['auroc'].items() if x is not None)}")
    if r["pt_minus_en"]:
        say(f"  PT − EN    {r['pt_minus_en']['gap']:+.2f} {r['pt_minus_en']['interval_95']}")
    if r["length"]:
        say(
            f"  length     {r['length']['score_per_100_words']:+.3f} ± {1.96 * r['length']['standard_error']:.3f} of the score for 100 words more"
        )
    for kind, f in r["invariance"].items():
        if f["comparisons"]:
            say(
                f"    {kind:<20} changes the score by {f['mean_change']:+.3f}, {f['mean_absolute_change']:.3f} either way"
            )
    spans = r["spans_found"]
    say(
        f"  injection  {r['injection']['count']}/{r['injection']['of']} succeed; Brier {r['brier']}; spans found {spans['found']}/{spans['given']}"
    )
    if r["agreement"]:
        say(
            f"  agreement  alpha {r['agreement']['alpha']}, {r['agreement']['models']} models are worth {r['agreement']['effective_votes']} independent votes"
        )
