"""Stage train: QLoRA by SFT, DPO or both in turn; one adapter for each epoch."""

from __future__ import annotations

import gc
from dataclasses import replace
from pathlib import Path

from noesis.core.console import command, duration, say
from noesis.core.errors import RunError
from noesis.core.i18n import _, ngettext, number
from noesis.core.rooted import remove
from noesis.pipeline.own_answers import own_answers
from noesis.pipeline.results import RunResults, read_result
from noesis.pipeline.session import RunSession
from noesis.pipeline.training_set import build_training_set
from noesis.planning.budget import quote, require_affordable
from noesis.planning.plan import with_planned_storage
from noesis.training.job import TrainJob, TrainResult
from noesis.training.methods import remaining_cost, saved_states, state_seals, train_run, training_outputs
from noesis.training.tracking.trackers import require_trackers


def run_train(s: RunSession) -> TrainResult:
    """Train as planned, continuing from the newest saved state.

    Raises:
        CapError: another step would exceed the budget; the last one is saved.
        TrainingError: a loss that is not finite, or too little memory for the plan and the next smaller one.
    """

    def outputs() -> list[Path]:
        return [*training_outputs(s.run.checkpoints), s.run.metrics]

    stored = s.run.perform("train", lambda: _train(s).to_json(), outputs)
    result = read_result(s.run, "train", stored, TrainResult.from_json)
    gc.collect()
    show_training(result)
    say(f"  → {s.run.epochs()[-1]}")
    return result


def _train(s: RunSession) -> TrainResult:
    plan, budget = RunResults(s.run).plan, s.budget()
    if plan is None:
        raise RunError(
            _(
                "{path} has no plan to train by: start it with  {command}",
                path=s.run.path,
                command=command("train", "--run", s.run.path),
            )
        )
    require_trackers(s.config.training.report_to)
    if not saved_states(s.run.checkpoints):
        remove(s.run.metrics)
    for line in quote(plan, budget):
        say(line)
    remaining, done = remaining_cost(plan, s.run.checkpoints)
    require_affordable(remaining, budget, done=done)
    config = with_planned_storage(s.config, plan)
    run, answers = s.run, own_answers(s)
    data = s.training_set
    if answers is not None:
        data = build_training_set(s.config, s.dataset, s.encoder, s.constitution, answers)
    result = train_run(
        TrainJob(s.model.path, data, config, plan, s.device, run.checkpoints, run.metrics, budget, run.parent)
    )
    return replace(result, states=state_seals(run.checkpoints))


def show_training(result: TrainResult) -> None:
    """Print what training took and where the loss went."""
    unknown = float("nan")  # there are no metrics
    first, final = (unknown if loss is None else loss for loss in (result.first_loss, result.final_loss))
    say(
        _(
            "  {steps} in {seconds} ({tokens_per_s:,.0f} tokens/s); loss {first:.3f} → {final:.3f}",
            steps=ngettext("{count:,} step", "{count:,} steps", result.steps),
            seconds=duration(result.seconds),
            tokens_per_s=result.tokens_per_s,
            first=first,
            final=final,
        )
    )
    if (held_out := result.held_out) is not None and held_out.by_epoch:
        last = held_out.by_epoch[-1]
        preferred = _(
            "{reward_accuracy:.0f} of {pairs}",
            reward_accuracy=last.reward_accuracy * held_out.pairs,
            pairs=held_out.pairs,
        )
        say(
            _(
                "  held-out pairs: chosen above rejected in {preferred}, mean margin {reward_margin:+.3f}",
                preferred=preferred,
                reward_margin=last.reward_margin,
            )
        )
    if result.mean_training_loss is not None:
        losses = [
            f"{name} {number(loss, '.3f')}" for name, loss in result.mean_training_loss.items() if loss is not None
        ]
        saved = _(
            "{states} saved in {save_share:.1%} of the time",
            states=ngettext("{count:,} state", "{count:,} states", result.saves or 0),
            save_share=result.save_share or 0.0,
        )
        say(_("  {saved}; mean training loss {losses}", saved=saved, losses=", ".join(losses)))
    for seed, other in (result.seeds or {}).items():
        first, final = (unknown if loss is None else loss for loss in (other.first_loss, other.final_loss))
        say(_("  seed {seed}: loss {first:.3f} → {final:.3f}", seed=seed, first=first, final=final))
