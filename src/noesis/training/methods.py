"""What a run trains, by its method: `sft` on rows, `dpo` on pairs, `sft+dpo` on one after the other; the plan of each, and both in turn.

The second part of `sft+dpo` begins with the adapter of the first, which stays in `checkpoints/sft/` with its states and metrics; the run's
own adapters, states and metrics are those of the second. Torch-free until something is trained.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from noesis.core.config import Config
from noesis.core.console import say
from noesis.core.device import Device
from noesis.core.errors import TrainingError
from noesis.core.files import sha256_file, write_json
from noesis.planning.budget import Budget
from noesis.planning.plan import Plan
from noesis.training.job import TrainingSet
from noesis.training.state.adapter import ADAPTER_FILE
from noesis.training.state.checkpoint import saved, step_of

Records = list[dict[str, Any]]
SFT_FOLDER = "sft"  # folder of the first part's adapters, states and metrics, in the run's checkpoints


# --- plans


# --- training


def saved_states(checkpoints: Path) -> list[Path]:
    """Saved states of every part."""
    return [*saved(checkpoints / SFT_FOLDER / "resume"), *saved(checkpoints / "resume")]


def remaining_cost(plan: Plan, checkpoints: Path) -> tuple[Plan, float]:
    """(what the budget must still pay for, as a plan; share of its steps that is done)."""
    own = saved(checkpoints / "resume")
    done = min(step_of(own[-1]) / plan.steps, 1) if own else 0.0
    if plan.sft is None:
        return plan, done
    first, before = plan.sft, saved(checkpoints / SFT_FOLDER / "resume")
    share = 1.0 if _finished(checkpoints / SFT_FOLDER) else min(step_of(before[-1]) / first.steps, 1) if before else 0.0
    # what is left of the first part counts as the second one's start
    own_seconds = plan.seconds - first.seconds
    start = plan.start_seconds + first.seconds * (1 - share)
    return replace(plan, start_seconds=start, seconds=own_seconds + start - plan.start_seconds), done


def train_run(
    folder: Path,
    material: TrainingSet,
    config: Config,
    plan: Plan,
    device: Device,
    *,
    checkpoints: Path,
    metrics: Path,
    budget: Budget | None = None,
    parent: Path | None = None,
) -> dict[str, Any]:
    """Train what the method asks for; the arguments, the result and the errors are those of `trainer.train`, of the last part.

    Of `sft+dpo` the first part's result is in it, as `sft`.
    """
    from noesis.training.trainer import train

    last = material.rows if material.pairs is None else material.pairs
    assert last is not None
    if plan.sft is None:
        return train(
            folder, last, config, plan, device, checkpoints=checkpoints, metrics=metrics, budget=budget, parent=parent
        )
    place, first = checkpoints / SFT_FOLDER, plan.sft
    before = _finished(place)
    if before is None:
        assert material.rows is not None
        say("  first part: SFT")
        before = train(
            folder,
            material.rows,
            config,
            first,
            device,
            checkpoints=place,
            metrics=place / "metrics.jsonl",
            budget=budget,
            parent=parent,
        )
        smaller = before.get("smaller_plan")
        if smaller is not None and smaller["setup"]["precision"] != plan.setup.precision:
            raise TrainingError(
                f"the first part fitted only with the base in {smaller['setup']['precision']}: set precision: {smaller['setup']['precision']} "
                "in training_config.yaml, so that both parts train on the same base, and run the same command again"
            )
        adapter = place / f"epoch_{first.epochs - 1}"
        write_json(
            place / "result.json",
            {"adapter": adapter.name, "sha256": sha256_file(adapter / ADAPTER_FILE), "result": before},
        )
    say("  second part: preferences")
    start = place / f"epoch_{first.epochs - 1}"
    return train(
        folder, last, config, plan, device, checkpoints=checkpoints, metrics=metrics, budget=budget, parent=start
    ) | {"sft": before}


def training_outputs(checkpoints: Path) -> Sequence[Path]:
    """What training leaves beside the run's metrics."""
    first = checkpoints / SFT_FOLDER
    own = [*checkpoints.glob("epoch_*/*"), *first.glob("epoch_*/*")]
    return own + [
        file
        for file in (checkpoints / "reference.json", first / "metrics.jsonl", first / "result.json")
        if file.is_file()
    ]


def _finished(place: Path) -> dict[str, Any] | None:
    """The result of a first part that ran to its end and whose adapter is still what it was."""
    try:
        stored = json.loads((place / "result.json").read_text(encoding="utf-8"))
        whole = sha256_file(place / str(stored["adapter"]) / ADAPTER_FILE) == stored["sha256"]
    except (FileNotFoundError, ValueError, KeyError, TypeError):
        return None
    return dict(stored["result"]) if whole else None
