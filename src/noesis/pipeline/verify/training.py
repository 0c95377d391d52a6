"""What training reports: by its plan, by its metrics, and by the adapters that it left."""

from __future__ import annotations

from typing import Any

from noesis.core.i18n import _
from noesis.pipeline.verify.evidence import Evidence, UncheckedError
from noesis.run.metrics import losses_by_epoch, read_metrics
from noesis.training.job import TrainResult
from noesis.training.methods import SFT_FOLDER, saved_states, seed_folder, state_seals
from noesis.training.state.checkpoint import unusable_reason


def executed_plan(e: Evidence) -> str | None:
    planned, executed, train = e.results.plan, e.results.executed_plan, e.results.train
    if planned is None or executed is None:
        raise UncheckedError(_("an early version made no such plan"))
    wrong = [
        key for key in ("model", "r", "epochs", "tokens_per_epoch") if getattr(planned, key) != getattr(executed, key)
    ]
    if wrong:
        return _("training's own plan has another {wrong} than the plan", wrong=", ".join(wrong))
    asked = (e.config.lora.r, e.config.training.epochs)
    if (planned.r, planned.epochs) != asked:
        return _(
            "the plan has rank {rank} and {epochs} epochs, config.json {asked_rank} and {asked_epochs}",
            rank=planned.r,
            epochs=planned.epochs,
            asked_rank=asked[0],
            asked_epochs=asked[1],
        )
    if train is not None and train.epochs != executed.epochs:
        return _(
            "training reports {epochs} epochs, its plan has {executed_epochs}",
            epochs=train.epochs,
            executed_epochs=executed.epochs,
        )
    return None


def figures(e: Evidence) -> str | None:
    result = e.results.train
    assert result is not None
    if result.sft is not None:
        steps = len(read_metrics(e.run.checkpoints / "sft" / "metrics.jsonl"))
        if steps != result.sft.steps:
            return _(
                "checkpoints/sft/metrics.jsonl has {steps} steps, the manifest {sft_steps}",
                steps=steps,
                sft_steps=result.sft.steps,
            )
    for seed, other in (result.seeds or {}).items():
        file = seed_folder(e.run.checkpoints, int(seed)) / "metrics.jsonl"
        if wrong := _figures_of(other, read_metrics(file), f"checkpoints/seed_{seed}/metrics.jsonl"):
            return wrong
    return _figures_of(result, read_metrics(e.run.metrics), "metrics.jsonl")


def _figures_of(result: TrainResult, lines: list[dict[str, Any]], name: str) -> str | None:
    told = (result.steps, result.first_loss, result.final_loss)
    found = (len(lines), lines[0]["loss"], lines[-1]["loss"]) if lines else (0, None, None)
    if told != found:
        return _(
            "{name} says {found} of steps, first and last loss, the manifest {told}", name=name, found=found, told=told
        )
    losses = result.mean_training_loss
    same = losses is None or losses == losses_by_epoch(lines, result.epochs)
    return None if same else _("the mean losses of the epochs do not follow from {name}", name=name)


def epochs(e: Evidence) -> str | None:
    result = e.results.train
    assert result is not None
    folders = {name.rpartition("/")[0].removeprefix("checkpoints/") for name in e.run.manifest.stages["train"].outputs}
    listed = {name for name in folders if name.rpartition("/")[2].startswith("epoch_") and not _of_first_part(name)}
    own = {f"epoch_{epoch}" for epoch in range(result.epochs)}
    made = own | {f"seed_{seed}/{epoch}" for seed in result.seeds or {} for epoch in own}
    if listed == made:
        return None
    return _(
        "it trained {epochs}, and lists {listed}", epochs=result.epochs, listed=", ".join(sorted(listed)) or "none"
    )


def _of_first_part(folder: str) -> bool:
    """Whether an adapter's folder belongs to the first part of `sft+dpo`."""
    return SFT_FOLDER in folder.split("/")


def states(e: Evidence) -> str | None:
    """Each state by its own seal, and the seals by what training recorded; one that is not there was left out."""
    wrong = [f"{p.name}: {why}" for p in saved_states(e.run.checkpoints) if (why := unusable_reason(p))]
    found, train = state_seals(e.run.checkpoints), e.results.train
    if wrong or not found or train is None:
        return "; ".join(wrong) or None
    if train.states is None and e.run.manifest.is_early:
        raise UncheckedError(_("an early version did not record which states training left"))
    told = train.states or {}
    other = [name for name, sha256 in found.items() if told.get(name) != sha256]
    return _("training did not leave {other} as it is", other=", ".join(other)) if other else None
