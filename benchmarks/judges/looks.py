"""`python benchmarks/judges/looks.py [--trials N]`: how often a trial by looks errs, and what it saves.

Simulated trials through the gate itself (intervals, floors, stopping in vain), on the suite's own numbers of prompts;
scores are beta-distributed with standard deviation 0.2. Rows at a boundary, where every approval is a false one, get N
trials (default 10,000, most of an hour of one core in all), the others a tenth.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path

from noesis.core.config import TribunalSection
from noesis.core.project import find_project
from noesis.tribunal.court import APPROVED, CONDITIONAL, REJECTED, UNDECIDED
from noesis.tribunal.rubric import JUDGES
from noesis.tribunal.suite import Part, read_suite
from noesis.tribunal.trial.bounds import obrien_fleming
from noesis.tribunal.trial.looks import Schedule, plan_looks
from noesis.tribunal.trial.simulate import simulate_trials

SECTION = TribunalSection()
SUITE = find_project(Path(__file__).resolve().parents[2]).tribunal
PARTS: tuple[Part, ...] = ("dev", "all")
AT_FLOOR = {"veritas": 0.9, "sophia": 0.5, "dike": 0.9}  # its mean is far above the threshold: only the floor holds it

Row = tuple[str, dict[str, float], Schedule, float]  # name, true means, schedule, share of prompts with judges alike


def boundary_rows(looks: Schedule, once: Schedule, strict: Schedule) -> Iterator[Row]:
    """Models that must not be approved, by a hair."""
    alike = dict.fromkeys(JUDGES, 0.70)
    yield "**0.70**", alike, looks, 1.0
    yield "**0.70**, one look", alike, once, 1.0
    yield "**0.70**, O'Brien-Fleming", alike, strict, 1.0
    yield "**0.70**, judges alike on half the prompts", alike, looks, 0.5
    yield "**0.90, Sophia at the floor**", AT_FLOOR, looks, 0.5


def other_rows(looks: Schedule, once: Schedule, strict: Schedule) -> Iterator[Row]:
    for mean in (0.35, 0.60, 0.75, 0.80, 0.85):
        yield f"{mean:.2f}", dict.fromkeys(JUDGES, mean), looks, 1.0
    yield "0.75, one look", dict.fromkeys(JUDGES, 0.75), once, 1.0
    yield "0.75, O'Brien-Fleming", dict.fromkeys(JUDGES, 0.75), strict, 1.0


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--trials", type=int, default=10_000)
    most = parser.parse_args().trials
    print("| part | true mean | APPROVED | CONDITIONAL | REJECTED | UNDECIDED | prompts | ended at look 1, 2, … |")
    print("|---|---|---|---|---|---|---|---|")
    for part in PARTS:
        items = read_suite(SUITE, part)
        looks, once = (plan_looks(items, limits)[1] for limits in (SECTION.looks, ()))
        schedules = looks, once, Schedule.of(looks.prompts, looks.clusters, obrien_fleming)
        for rows, trials in ((boundary_rows, most), (other_rows, max(1, most // 10))):
            for name, means, schedule, agreement in rows(*schedules):
                found = simulate_trials(means, schedule, SECTION, trials=trials, agreement=agreement, seed=len(items))
                verdicts = (found.verdicts.get(v, 0.0) for v in (APPROVED, CONDITIONAL, REJECTED, UNDECIDED))
                shares = " | ".join(f"{share:.3f}" for share in verdicts)
                ended = ", ".join(f"{found.looks.get(i, 0.0):.2f}" for i in range(1, len(schedule.prompts) + 1))
                print(f"| {part} | {name} | {shares} | {found.prompts:.0f} of {len(items)} | {ended} |", flush=True)


if __name__ == "__main__":
    main()
