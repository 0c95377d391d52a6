"""Stage train: QLoRA by SFT, DPO or both in turn; one adapter for each epoch."""

from __future__ import annotations

import gc
from typing import Any

from noesis.core.console import duration, say
from noesis.pipeline.session import RunSession
from noesis.planning.budget import quote, require_affordable
from noesis.planning.plan import Plan, with_planned_storage
from noesis.training.job import TrainJob
from noesis.training.methods import remaining_cost, saved_states, train_run, training_outputs


def run_train(s: RunSession) -> dict[str, Any]:
    """Train as planned, continuing from the newest saved state.

    Raises:
        CapError: another step would exceed the budget; the last one is saved.
        TrainingError: a loss that is not finite, or too little memory for the plan and the next smaller one.
    """
    result = s.run.perform("train", lambda: _train(s), lambda: [*training_outputs(s.run.checkpoints), s.run.metrics])
    gc.collect()
    show_training(result)
    say(f"  → {s.run.epochs()[-1]}")
    return result


def _train(s: RunSession) -> dict[str, Any]:
    plan, budget = Plan.from_json(s.run.result("plan") or {}), s.budget()
    if not saved_states(s.run.checkpoints):
        s.run.metrics.unlink(missing_ok=True)
    for line in quote(plan, budget):
        say(line)
    remaining, done = remaining_cost(plan, s.run.checkpoints)
    require_affordable(remaining, budget, done=done)
    config = with_planned_storage(s.config, plan)
    run = s.run
    return train_run(
        TrainJob(s.model.path, s.training_set, config, plan, s.device, run.checkpoints, run.metrics, budget, run.parent)
    ).to_json()


def show_training(result: dict[str, Any]) -> None:
    """Print what training took and where the loss went."""
    say(
        f"  {result['steps']} steps in {duration(result['seconds'])} ({result['tokens_per_s']:,.0f} tokens/s); "
        f"loss {result['first_loss']:.3f} → {result['final_loss']:.3f}"
    )
    if result.get("held_out", {}).get("by_epoch"):
        last, pairs = result["held_out"]["by_epoch"][-1], result["held_out"]["pairs"]
        preferred = f"{last['reward_accuracy'] * pairs:.0f} of {pairs}"
        say(f"  held-out pairs: chosen above rejected in {preferred}, mean margin {last['reward_margin']:+.3f}")
    if "mean_training_loss" in result:
        losses = [f"{name} {loss:.3f}" for name, loss in result["mean_training_loss"].items() if loss is not None]
        saved = f"{result['saves']} states saved in {result['save_share']:.1%} of the time"
        say(f"  {saved}; mean training loss {', '.join(losses)}")
