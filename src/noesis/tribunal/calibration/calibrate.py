"""`noesis tribunal calibrate`: measure judges on the benchmark and store the figures."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from noesis.core.config import RewardSection, TribunalSection
from noesis.core.console import command, say
from noesis.core.errors import ModelError, UsageError
from noesis.core.event_loop import run_async
from noesis.core.files import utc_now
from noesis.core.i18n import _, retold
from noesis.core.project import Project
from noesis.llm.clients.spec import parse_spec
from noesis.llm.clients.spending import Spending
from noesis.tribunal.calibration.benchmark import Benchmark, fit_scales, measure_judges
from noesis.tribunal.calibration_store import Calibration, save_calibration
from noesis.tribunal.panel import JudgePanel, open_panel
from noesis.tribunal.reading.asking import judge_kinds
from noesis.tribunal.reward.client import RewardClient
from noesis.tribunal.suite import JudgePair, Part, read_benchmark

MOST_REASONS = 3  # that a message names


def calibrate(
    project: Project,
    section: TribunalSection,
    judges: Sequence[str],
    part: Part,
    *,
    max_usd: float | None = None,
    count: int | None = None,
) -> list[Calibration]:
    """Measure judges on the benchmark, and store their calibrations in the project.

    Args:
        judges: SPECs, as given with --judge.
        count: measure on this many pairs only, evenly spread; such a trial run is not stored.

    Raises:
        UsageError, DataError: no benchmark, a SPEC that is not understood, or a locked part without its seal.
        ModelError: a judge gave no verdict at all; what is known of the others is stored.
        CapError: the cap is reached; the same command with a higher one continues.
    """
    pairs, twins = read_benchmark(project.tribunal, part)
    if count is not None:
        pairs, twins = _evenly(pairs, count), []
    spending = Spending(max_usd=max_usd)
    alone = section.model_copy(update={"reward": RewardSection()})
    specs = [parse_spec(text, kinds=(*judge_kinds(section.ask), "reward")) for text in judges]
    with open_panel(project, specs, alone, spending) as panel:
        _require_scales(panel, judges, part)
        measured = run_async(_measure(panel, Benchmark(pairs, twins, part), section))
        measured = [replace(calibration, spending=spending.to_json()) for calibration in measured]
        silent = [calibration for calibration in measured if not calibration.verdicts]
        for calibration in measured if count is None else ():
            if calibration not in silent:
                dated = replace(calibration, date=utc_now())
                say(f"  → {save_calibration(project.calibrations, dated, panel.rubrics)}")
    if silent:
        raise ModelError(
            "; ".join(
                _("{judge} gave no verdict, so nothing was measured: {why}", judge=c.judge, why=_why(c)) for c in silent
            )
        )
    return measured


def _why(calibration: Calibration) -> str:
    return " | ".join(map(retold, calibration.details["reasons"][:MOST_REASONS])) or _("there is nothing to judge")


def _require_scales(panel: JudgePanel, judges: Sequence[str], part: Part) -> None:
    """Refuse to use the locked half for a reward model whose scale is not known.

    Raises:
        UsageError: it was not calibrated on the dev half.
    """
    for client, spec in zip(panel.clients, judges, strict=True):
        if part != "dev" and isinstance(client, RewardClient) and client.identity not in panel.scales:
            run_async(panel.close())
            again = command("tribunal", "calibrate", "--part", "dev", "--judge", spec)
            raise UsageError(
                _("{spec} has no scale yet: calibrate it on the dev half first, with  {again}", spec=spec, again=again)
            )


async def _measure(panel: JudgePanel, benchmark: Benchmark, section: TribunalSection) -> list[Calibration]:
    async with panel:
        if benchmark.part == "dev":
            panel = replace(panel, scales=await fit_scales(panel, benchmark))
        return await measure_judges(panel, benchmark, section)


def _evenly(pairs: list[JudgePair], count: int) -> list[JudgePair]:
    stride = max(1, len(pairs) // count)
    return pairs[::stride][:count]
