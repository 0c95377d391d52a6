"""Stage train: QLoRA, one adapter an epoch."""

from __future__ import annotations

import gc
from typing import Any

from noesis.core.console import duration, say
from noesis.pipeline.session import RunSession
from noesis.planning.budget import quote, require_affordable
from noesis.planning.plan import Plan
from noesis.training.methods import remaining_cost, saved_states, train_run, training_outputs


def run_train(s: RunSession) -> dict[str, Any]:
    """QLoRA, by SFT, DPO or both in turn; one adapter an epoch."""

    def work() -> dict[str, Any]:
        p = Plan.from_json(s.run.manifest["stages"]["plan"]["result"])
        material, budget = s.training_set, s.budget()
        if not saved_states(s.run.checkpoints):
            s.run.metrics.unlink(missing_ok=True)
        for line in quote(p.as_json(), budget):
            say(line)
        still, done_share = remaining_cost(p, s.run.checkpoints)
        require_affordable(still, budget, done=done_share)
        parent = s.run.path / "parent" if "parent" in s.run.manifest else None
        places = {"checkpoints": s.run.checkpoints, "metrics": s.run.metrics}
        done = train_run(s.model.path, material, s.as_trained, p, s.device, **places, budget=budget, parent=parent)
        if (smaller := done.pop("smaller_plan", None)) is not None:
            s.run.manifest["stages"]["plan"]["result"] = smaller  # later stages read from it what was trained
        return done | {"out_of_memory_once": smaller is not None}

    result = s.run.perform("train", work, lambda: [*training_outputs(s.run.checkpoints), s.run.metrics])
    gc.collect()
    say(
        f"  {result['steps']} steps in {duration(result['seconds'])} ({result['tokens_per_s']:,.0f} tokens/s); "
        f"loss {result['first_loss']:.3f} → {result['final_loss']:.3f}; → {s.run.epochs()[-1]}"
    )
    if result.get("held_out", {}).get("by_epoch"):
        last, pairs = result["held_out"]["by_epoch"][-1], result["held_out"]["pairs"]
        say(
            f"  held-out pairs: chosen above rejected in {last['reward_accuracy'] * pairs:.0f} of {pairs}, mean margin {last['reward_margin']:+.3f}"
        )
    if "mean_training_loss" in result:
        losses = ", ".join(
            f"{name} {loss:.3f}" for name, loss in result["mean_training_loss"].items() if loss is not None
        )
        say(f"  {result['saves']} states saved in {result['save_share']:.1%} of the time; mean training loss {losses}")
    return result
