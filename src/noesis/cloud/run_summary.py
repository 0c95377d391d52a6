"""Where everything lies on the volume, what it cost and how often it was taken away: the last words of a run in the cloud."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from noesis.cloud.volume.layout import FOLDER, OPENED
from noesis.core.console import duration, size
from noesis.run.directory import Run, load_run

NAMES = {"train": "training", "judge": "judging", "trial": "the trial", "merge": "merging", "gguf": "writing GGUF"}


def summary_lines(root: Path, *, volume: str | None = None) -> list[str]:
    """The summary of the run at `root`, the volume's root.

    Args:
        volume: its name, for the commands to type; None: as the run's configuration says.
    """
    run = load_run(root)
    volume = volume or run.config().training.modal.volume
    lines = ["", "Where everything is on the volume", *_places(run)]
    lines += ["", *_epochs(root), *_verdict(run)]
    lines += ["", "What it cost", *cost_lines(run.manifest.to_json())]
    lines += preemption_lines(run.manifest.to_json(), starts(root))
    if run.is_done("merge"):
        lines += [
            "",
            f"Next:    noesis cloud pull runs/{run.merged.name}",
            f"   or    modal volume get {volume} /merged/{run.merged.name} ./model_output",
        ]
    return lines


def _places(run: Run) -> list[str]:
    found = []
    for what, path in (
        ("adapters", run.checkpoints),
        ("model", run.merged),
        ("GGUF", run.gguf),
        ("report", run.report),
        ("metrics", run.metrics),
    ):
        if path.exists():
            files = (
                [path]
                if path.is_file()
                else [p for p in path.rglob("*") if p.is_file() and "resume" not in p.relative_to(path).parts]
            )
            if files:
                found.append(
                    f"  {what:9} /{path.relative_to(run.path).as_posix()}  {size(sum(p.stat().st_size for p in files))}"
                )
    return found


def _epochs(root: Path) -> list[str]:
    """Held-out loss and preference after each epoch that was judged."""
    rows = epochs_judged(root)
    own = load_run(root).result("judge")
    if own and rows:
        rows = [*rows, {"epoch": max(r["epoch"] for r in rows) + 1, "preference": own["preference"]}]
    lines = []
    for row in rows:
        p = row["preference"]
        lines.append(
            f"  epoch_{row['epoch']}  held-out loss {p['tuned']['held_out_loss']:.4f}, prefers the revised answer {p['tuned']['preferred']}/{p['examples']}"
        )
    return lines


def epochs_judged(root: Path) -> list[dict[str, Any]]:
    """What was found of each epoch beside the training of the next, in order."""
    files = (root / "tribunal" / "epochs").glob("epoch_[0-9]*.json")
    return sorted((json.loads(f.read_text(encoding="utf-8")) for f in files), key=lambda row: int(row["epoch"]))


def _verdict(run: Run) -> list[str]:
    found = run.result("trial") or run.result("judge")
    return [f"  Tribunal: {found['court']['verdict']}: {found['court']['reason']}"] if found else []


def by_stage(manifest: dict[str, Any]) -> dict[str, tuple[float, float]]:
    """Of each stage in the ledger: (USD, seconds)."""
    found: dict[str, tuple[float, float]] = {}
    for entry in manifest.get("ledger", []):
        usd, seconds = found.get(entry["stage"], (0.0, 0.0))
        found[entry["stage"]] = (usd + float(entry["usd"]), seconds + float(entry["seconds"]))
    return found


def cost_lines(manifest: dict[str, Any]) -> list[str]:
    """Metered, stage by stage: the seconds that it worked at the price of its machine; beside it what the plan had said."""
    quoted: dict[str, float] = {}
    for stage in ((manifest["stages"].get("plan", {}).get("result")) or {}).get("stages", []):
        quoted[stage["name"].split(" and ")[0]] = float(stage["usd"])
    lines, usd, seconds = [], 0.0, 0.0
    for stage, (cost, took) in by_stage(manifest).items():
        said = f"   quoted {quoted[stage]:.2f}" if stage in quoted else ""
        lines.append(f"  {stage:12} {duration(took):>13}  {cost:8.4f} USD{said}")
        usd, seconds = usd + cost, seconds + took
    return [*lines, f"  {'in all':12} {duration(seconds):>13}  {usd:8.4f} USD   quoted {sum(quoted.values()):.2f}"]


def starts(root: Path) -> int:
    """How many containers the last training had, one after the other."""
    note = root / FOLDER / OPENED
    return int(json.loads(note.read_text(encoding="utf-8"))["starts"]) if note.is_file() else 1


def preemption_lines(manifest: dict[str, Any], starts: int = 1) -> list[str]:
    """How often a stage's container was taken away before the stage had ended.

    Args:
        starts: containers of the training; one that was killed before it could publish anything is in no ledger.
    """
    counts: dict[str, int] = {}
    for entry in manifest.get("ledger", []):
        if entry.get("ended") in ("interrupted", "killed"):
            counts[entry["stage"]] = counts.get(entry["stage"], 0) + 1
    if starts - 1 > counts.get("train", 0):
        counts["train"] = starts - 1
    return [
        f"  {NAMES.get(stage, stage)} was taken away {n} time{'s' if n > 1 else ''} and went on each time"
        for stage, n in counts.items()
    ]
