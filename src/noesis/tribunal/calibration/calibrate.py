"""`noesis tribunal calibrate`: measure judges on the benchmark and keep the figures."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from noesis.core.config import TribunalSection
from noesis.core.console import say
from noesis.core.files import utc_now
from noesis.core.project import Project, cache_folder
from noesis.llm.clients.open import close_clients, open_judges
from noesis.llm.clients.reply_cache import open_cache
from noesis.llm.clients.spec import parse_spec
from noesis.llm.clients.spending import Spending
from noesis.tribunal.calibration.benchmark import Benchmark, measure_judges
from noesis.tribunal.calibration_store import calibration_summary, load_calibration, save_calibration, unfit_reason
from noesis.tribunal.panel import JudgePanel
from noesis.tribunal.rubric import load_rubrics
from noesis.tribunal.suite import Part, read_benchmark


def calibrate(
    project: Project,
    section: TribunalSection,
    judges: Sequence[str],
    part: Part,
    *,
    max_usd: float | None = None,
    count: int | None = None,
) -> list[dict[str, Any]]:
    """Measure judges on the benchmark and keep what was found in the project.

    Args:
        count: only so many pairs, evenly spread; such a trial run is not kept.
    """
    folder = project.tribunal
    bench = load_rubrics(folder / "judges")
    pairs, twins = read_benchmark(folder, part)
    if count is not None:
        stride = max(1, len(pairs) // count)
        pairs, twins = pairs[::stride][:count], []
    spending = Spending(max_usd=max_usd)
    clients = open_judges([parse_spec(text) for text in judges], section, spending)
    benchmark = Benchmark(pairs, twins, part)

    async def work() -> list[dict[str, Any]]:
        with open_cache(cache_folder() / "tribunal" / "replies.sqlite") as cache:
            try:
                return await measure_judges(clients, JudgePanel(bench, clients, cache), benchmark, section)
            finally:
                await close_clients(clients)

    found = asyncio.run(work())
    for calibration in found:
        calibration["spending"] = spending.as_json()
        if count is None:
            file = save_calibration(project.calibrations, calibration, bench, utc_now())
            say(f"  → {file}")
    return found


def live_pairs(
    project: Project, section: TribunalSection, file: Path, name: str, count: int = 6
) -> dict[str, Any] | None:
    """The embedded model in the judge's chair, on `count` pairs of the dev half, one judge each; and its kept calibration.

    Why the demo ends UNDECIDED: a reader sees it fail. None where the project has no judge benchmark.
    """
    from noesis.llm.clients.gguf_client import GgufClient

    folder = project.tribunal
    if not (folder / "judge_bench" / "pairs.jsonl").is_file():
        return None
    bench, (pairs, _) = load_rubrics(folder / "judges"), read_benchmark(folder, "dev")
    stride = max(1, len(pairs) // count)
    few = [pair.model_copy(update={"judges": pair.judges[:1]}) for pair in pairs[::stride][:count]]
    client = GgufClient(file, name=name)

    async def work() -> list[dict[str, Any]]:
        with open_cache(cache_folder() / "tribunal" / "replies.sqlite") as cache:
            try:
                return await measure_judges(
                    [client], JudgePanel(bench, [client], cache), Benchmark(few, [], "dev"), section
                )
            finally:
                await client.close()

    (found,) = asyncio.run(work())
    kept = load_calibration(project.calibrations, client.identity, bench)
    return {
        "judge": name,
        "identity": client.identity,
        "pairs": found["pairs"],
        "outcomes": found["outcomes"],
        "right": round((found["accuracy"] or 0) * found["pairs"]),
        "calibration": calibration_summary(kept),
        "verdict": unfit_reason([kept], [name]),
    }


def show_live(found: dict[str, Any]) -> None:
    """Print what `live_pairs` found."""
    said = ", ".join(f"{name} {outcome}" for name, outcome in found["outcomes"].items())
    say(f"  {found['judge']} as judge, live: {found['right']} of {found['pairs']} pairs right ({said})")
    kept = found["calibration"]
    if kept:
        b, (low, high) = kept["baselines"], kept["interval_95"]
        say(
            f"  its calibration of {kept['date']} ({kept['part']} half): {kept['accuracy']:.2f} [{low:.2f}, {high:.2f}]; "
            f"keywords {b['keywords']['accuracy']:.2f}, length {b['length']['accuracy']:.2f}"
        )
    say(
        f"  so it may not decide: {found['verdict']}"
        if found["verdict"]
        else "  it is fit to judge; seat it with --judge"
    )
