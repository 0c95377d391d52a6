"""QLoRA by TRL's SFTTrainer or DPOTrainer: rows with labels in, one adapter an epoch out, resumable at any step that was saved.

The trainer is given token rows (`input_ids`, `labels`), so what is trained on is exactly what `noesis data inspect` shows.
"""

from __future__ import annotations

import gc
import os
import time
from pathlib import Path
from typing import Any

from noesis.core.config import Config
from noesis.core.console import say
from noesis.core.device import Device
from noesis.core.errors import CapError, TrainingError
from noesis.core.files import require_space
from noesis.core.libraries import quiet_libraries
from noesis.core.signals import Overdue, deferred
from noesis.llm.token_rows import TokenRow
from noesis.planning.budget import Budget
from noesis.planning.plan import Plan, next_smaller_plan
from noesis.run.metrics import held_out_figures, losses_by_epoch, read_metrics
from noesis.training.backends.engine_sft import _engine_trainer, _why_not_the_engine
from noesis.training.backends.preference import _preference_trainer
from noesis.training.backends.torchrun import train_on_all_gpus
from noesis.training.backends.transformers_sft import _plain_trainer
from noesis.training.backends.trl_arguments import is_worker
from noesis.training.backends.unsloth import train_with_unsloth
from noesis.training.job import PreferencePairs
from noesis.training.recorder import Metrics, peak_memory, recorder
from noesis.training.state.adapter import save_adapter
from noesis.training.state.checkpoint import newest_whole, step_of
from noesis.training.state.save_schedule import SaveSchedule

__all__ = ["read_metrics", "save_adapter", "train"]


def train(
    folder: Path,
    rows: list[TokenRow] | PreferencePairs,
    config: Config,
    plan: Plan,
    device: Device,
    *,
    checkpoints: Path,
    metrics: Path,
    budget: Budget | None = None,
    parent: Path | None = None,
) -> dict[str, Any]:
    """Train and leave `checkpoints/epoch_0 …`; goes on from the newest whole state in `checkpoints/resume/`.

    Args:
        rows: of SFT; or the pairs of preference training.
        budget: what may be spent; None: anything.
        parent: folder of an adapter to begin with, where the run is a fork.

    Returns:
        figures of the run: steps, tokens, seconds, tokens/s, final loss, peak memory.

    Raises:
        TrainingError: a loss that is not finite (nothing of that step was applied), or too little memory for this plan and the next smaller one.
        CapError: another step would pass the budget; the last one is saved.
        KeyboardInterrupt, Terminated: asked to stop; the last whole step is saved.
    """
    if not isinstance(rows, PreferencePairs) and plan.setup.engine == "unsloth":
        return train_with_unsloth(folder, rows, config, plan, checkpoints=checkpoints, metrics=metrics, budget=budget)
    if (
        not isinstance(rows, PreferencePairs)
        and plan.setup.gpus > 1
        and not is_worker()
        and _why_not_the_engine(folder, config, plan, device) is None
    ):
        return train_on_all_gpus(
            folder, rows, config, plan, device, checkpoints=checkpoints, metrics=metrics, budget=budget, parent=parent
        )
    work = (folder, rows, config, device, checkpoints, metrics, budget, parent)
    found: dict[str, Any] | None = _attempt(plan, *work)
    if found is not None:
        return found
    next_plan = next_smaller_plan(plan)
    if next_plan is not None and plan.setup.gpus <= 1:
        say(
            f"  out of memory: going on from the last saved step with {next_plan.precision}, gradient checkpointing {next_plan.setup.gradient_checkpointing}"
        )
        found = _attempt(next_plan, *work)
        if found is not None:
            return found | {"smaller_plan": next_plan.to_json()}
    raise TrainingError(
        "out of memory on the card, also with the next smaller plan: in training_config.yaml set per_device_train_batch_size: 1 and "
        f"gradient_accumulation_steps: {plan.setup.sequences_per_step}, lower max_length, or choose a smaller --model or a larger card"
    )


def _attempt(plan: Plan, *work: Any) -> dict[str, Any] | None:
    """One try with one plan; None: the card's memory was too small."""
    import torch

    try:
        return _run(plan, *work)
    except torch.cuda.OutOfMemoryError:
        pass  # out of this frame, so that the exception keeps nothing of the model alive
    gc.collect()
    torch.cuda.empty_cache()
    return None


def _run(
    plan: Plan,
    folder: Path,
    rows: list[TokenRow] | PreferencePairs,
    config: Config,
    device: Device,
    checkpoints: Path,
    metrics: Path,
    budget: Budget | None,
    parent: Path | None,
) -> dict[str, Any]:
    quiet_libraries()  # before anything imports bitsandbytes
    import torch
    from transformers import AutoTokenizer, PrinterCallback

    from noesis.training.state.adapter import load_adapter_into
    from noesis.training.state.resumable import StopTraining

    # adapters of each epoch in 4 bytes a weight, and saved states with Adam's moments: two that stay and the one being written
    state_bytes = plan.adapter_parameters * 4 * 3 + 1e6
    require_space(
        checkpoints, plan.adapter_parameters * 4 * plan.epochs + 3 * state_bytes + 20e6, "training's checkpoints"
    )
    last = newest_whole(checkpoints / "resume", set_aside=os.environ.get("RANK", "0") == "0")
    tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False, local_files_only=True)
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    tokens = rows.tokens if isinstance(rows, PreferencePairs) else sum(len(row.input_ids) for row in rows)
    lines = Metrics(metrics, plan, device, tokens, step=step_of(last) if last else 0, budget=budget)
    callback = recorder(checkpoints, lines, tokenizer)
    why_not = _why_not_the_engine(folder, config, plan, device)
    if why_not and device.kind == "cuda":
        say(f"  trained by the plain path, not the fast one: {why_not}")
    parts = (config, plan, device, tokenizer, callback, lines, checkpoints / "resume")
    if isinstance(rows, PreferencePairs):
        trainer = _preference_trainer(folder, rows, *parts, engine=not why_not, start=parent, budget=budget)
    else:
        trainer = (_plain_trainer if why_not else _engine_trainer)(folder, rows, *parts)
    trainer.remove_callback(PrinterCallback)
    callback.trainer, trainer.flush = trainer, lines.sync
    if parent is not None and last is None and not isinstance(rows, PreferencePairs):
        load_adapter_into(trainer.model, parent)
    if last is not None:
        say(f"  going on from step {step_of(last)}")
    started = time.monotonic()
    with lines.progress, deferred() as interrupt:
        step_seconds = plan.tokens_per_epoch / plan.rows * plan.setup.sequences_per_step / plan.tokens_per_s
        trainer.pace = pace = SaveSchedule(
            config.training.saving,
            card=device.kind == "cuda",
            step_seconds=step_seconds,
            state_bytes=state_bytes,
            steps=plan.steps,
            cards=trainer.accelerator.num_processes,
            budget=budget,
            interrupt=interrupt,
        )
        try:
            trainer.train(resume_from_checkpoint=str(last) if last else None)
        except (StopTraining, Overdue):
            interrupt.rest()
            trainer.save_last_step()
            say(f"  stopped after step {trainer.state.global_step} of {trainer.state.max_steps}, which is saved")
            if pace.interrupted:
                interrupt.leave()
            assert budget is not None
            raise CapError(
                f"stopped at what was agreed: {budget.describe()}; the same command with a higher --max-usd or --max-minutes goes on from there"
            ) from None
    seconds = time.monotonic() - started
    read = read_metrics(metrics)
    losses = [line["loss"] for line in read]
    return {
        "steps": trainer.state.global_step,
        "epochs": plan.epochs,
        "tokens": lines.tokens_here,
        "seconds": round(seconds, 2),
        "tokens_per_s": round(lines.tokens_here / seconds, 1),
        "first_loss": losses[0] if losses else None,
        "final_loss": losses[-1] if losses else None,
        "peak_memory_bytes": peak_memory(device),
        "saves": pace.saves,
        "save_seconds": round(pace.in_saves, 3),
        "save_share": round(pace.share(), 4),
        "threads": torch.get_num_threads(),
        "mean_training_loss": losses_by_epoch(read, plan.epochs),
    } | (
        {"held_out": held_out_figures(read, len(rows.held_out))}
        if isinstance(rows, PreferencePairs) and rows.held_out
        else {}
    )
