"""metrics.jsonl: one line a step, as training writes it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from noesis.core.jsonl import MAX_RUN_FILE, iter_intact_objects
from noesis.core.typed import MOST


def read_metrics(file: Path) -> list[dict[str, Any]]:
    """The lines of metrics.jsonl, one a step; if a step was repeated after an interruption, the last one counts.

    Each has at least `step`, `epoch` and `loss`, which are numbers; a line without them is none.

    Raises:
        DataError: it is far larger than any run's.
    """
    if not file.is_file():
        return []
    lines = {}
    for _, line in iter_intact_objects(file, most=MAX_RUN_FILE):  # a line may be cut off, where the process was killed
        if all(_is_figure(line.get(key)) for key in ("step", "epoch", "loss")):
            lines[line["step"]] = line
    return [lines[step] for step in sorted(lines)]


def _is_figure(value: Any) -> bool:
    return type(value) in (int, float) and abs(value) < MOST


def losses_by_epoch(lines: list[dict[str, Any]], epochs: int) -> dict[str, float | None]:
    """The mean training loss of each epoch; None for one without a step."""
    losses = {}
    for epoch in range(epochs):
        of_epoch = [line["loss"] for line in lines if epoch < line["epoch"] <= epoch + 1]
        losses[f"epoch_{epoch}"] = round(sum(of_epoch) / len(of_epoch), 6) if of_epoch else None
    return losses


def held_out_figures(lines: list[dict[str, Any]], pairs: int) -> dict[str, Any]:
    """Preference training's figures on the held-out pairs after each epoch, from its metrics."""
    names = ("held_out_reward_accuracy", "held_out_reward_margin", "held_out_loss")
    found = [
        {name.removeprefix("held_out_"): round(line[name], 6) for name in names} for line in lines if names[0] in line
    ]
    return {"pairs": pairs, "by_epoch": found}
