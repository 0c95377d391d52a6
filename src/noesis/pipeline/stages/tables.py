"""The report's tables as CSV beside it: `tables/NAME.csv` in the run, one for each table that the run has."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from noesis.core.files import make_folder
from noesis.core.rooted import remove
from noesis.pipeline.comparison.table import Comparison
from noesis.pipeline.csv_table import Rows, write_csv
from noesis.pipeline.results import Choice, RunResults
from noesis.pipeline.stages.influence.figures import stored_influence
from noesis.run.directory import Run
from noesis.run.metrics import read_metrics
from noesis.tribunal.heldout import JudgeResult
from noesis.tribunal.kept.figures import KeptFigures, KeptGroup

FOLDER = "tables"


def write_tables(run: Run, comparison: Comparison | None) -> list[Path]:
    """Write the tables of a run, in place of earlier ones; the files."""
    results, folder = RunResults(run), run.path / FOLDER
    influence = stored_influence(run)
    found: dict[str, Rows] = {
        "training": [
            {k: v for k, v in line.items() if isinstance(v, int | float)} for line in read_metrics(run.metrics)
        ],
        "epochs": epochs_table(results.choice) if results.choice else [],
        "dial": [vars(figures) for figures in results.dial.curve] if results.dial else [],
        "held_out": held_out_table(results.judge) if results.judge else [],
        "kept": kept_table(results.judge.kept) if results.judge and results.judge.kept else [],
        "influence": [vars(example) for example in influence.examples] if influence else [],
        "stages": [
            {"stage": name, "status": record.status, "seconds": record.seconds}
            for name, record in run.manifest.stages.items()
            if name != "report"
        ],
        "comparison": comparison_table(comparison) if comparison else [],
    }
    remove(folder)
    make_folder(folder)
    files = []
    for name, rows in found.items():
        if rows:
            write_csv(folder / f"{name}.csv", rows)
            files.append(folder / f"{name}.csv")
    return files


def epochs_table(choice: Choice) -> Rows:
    """A row for each adapter that was scored; `chosen_of_seed` where several seeds were trained."""
    seeds = {name: int(seed) for seed, name in choice.seeds.items()}
    return [
        {
            "adapter": name,
            "preferred": f.preferred,
            "examples": f.examples,
            "mean_margin": f.mean_margin,
            "held_out_loss": f.held_out_loss,
            "tribunal_mean": f.tribunal.mean if f.tribunal else None,
            "chosen_of_seed": seeds.get(name),
            "used": name == choice.adapter,
        }
        for name, f in choice.epochs.items()
    ]


def held_out_table(judge: JudgeResult) -> Rows:
    """A row for each held-out example: both models' margins, nats a token."""
    return [vars(example) for example in judge.preference.by_example]


def kept_table(kept: KeptFigures) -> Rows:
    """A row for all small tasks, and one for each language, kind and tier."""

    def row(part: str, group: KeptGroup) -> dict[str, Any]:
        low, high = group.lost_95
        counts = {"items": group.items, "base": group.base, "tuned": group.tuned}
        changes = {"kept": group.kept, "lost": group.lost, "gained": group.gained}
        return {"part": part, **counts, **changes, "lost_low": low, "lost_high": high, "p": group.p}

    parts = {"language": kept.by_language, "kind": kept.by_kind, "tier": kept.by_tier}
    return [row("all", kept.all)] + [row(f"{k} {n}", g) for k, groups in parts.items() for n, g in groups.items()]


def comparison_table(found: Comparison) -> Rows:
    """A row for each run and comparable measure, with its difference from the first run; then the verdicts."""
    rows: list[dict[str, Any]] = []
    for measure in found.measures:
        for run, cell in zip(found.runs, measure.cells, strict=False):
            low, high = cell.interval_95 or (None, None)
            figures = {"value": cell.value, "difference": cell.difference, "low": low, "high": high, "p": cell.p}
            rows.append({"run": Path(run).name, "measure": measure.name, "shared": measure.items, **figures})
    verdicts = zip(found.runs, found.rulings, strict=True)
    return rows + [{"run": Path(run).name, "measure": "verdict", "verdict": r.verdict} for run, r in verdicts]
