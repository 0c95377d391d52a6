"""Runs a trainer of transformers through a job: resume, save, stop at a signal or at the budget, and report.

Shared by sft.py and preference.py.
"""

from __future__ import annotations

import gc
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from noesis.core.console import say
from noesis.core.errors import CapError, TrainingError
from noesis.core.files import require_space
from noesis.core.i18n import _
from noesis.core.signals import Overdue, deferred
from noesis.run.metrics import held_out_figures, losses_by_epoch, read_metrics
from noesis.training.distributed import Nodes, is_main_process
from noesis.training.job import HeldOutPairs, TrainJob, TrainResult
from noesis.training.recorder import Metrics, peak_memory, recorder
from noesis.training.state.adapter import load_adapter_into
from noesis.training.state.checkpoint import newest_whole, step_of
from noesis.training.state.save_schedule import SaveSchedule
from noesis.training.tracking.trackers import Trackers

BYTES_PER_WEIGHT = 4  # of an adapter on disk: float32


@dataclass(frozen=True)
class TrainerParts:
    """What every trainer is built with, apart from its job."""

    tokenizer: Any
    callback: Any
    metrics: Metrics
    step: int = 0  # that it resumes from


BuildTrainer = Callable[[TrainJob, TrainerParts], Any]


def run_trainer(job: TrainJob, build: BuildTrainer, *, load_parent: bool = True) -> TrainResult:
    """Build a trainer and train to the end of the job.

    Args:
        load_parent: load the job's parent adapter into the trainer's model; False where `build` does.

    Raises:
        As `Backend.train`.
    """
    from transformers import PrinterCallback

    # a saved state is the adapter with Adam's two moments
    state_bytes = job.plan.adapter_parameters * BYTES_PER_WEIGHT * 3 + 1e6
    _require_space(job, state_bytes)
    checkpoint = newest_whole(job.resume_folder, set_aside=is_main_process())
    tokenizer = _load_tokenizer(job.model_folder)
    step = 0 if checkpoint is None else step_of(checkpoint)
    metrics = Metrics(job.metrics, job.plan, job.device, job.tokens_per_epoch, step=step, budget=job.budget)
    callback = recorder(job.checkpoints, metrics, tokenizer)
    trainer = build(job, TrainerParts(tokenizer, callback, metrics, step))
    trainer.remove_callback(PrinterCallback)
    callback.trainer, trainer.sync_metrics = trainer, metrics.sync
    names = job.config.training.report_to if is_main_process() else ()
    if names:
        metrics.trackers = Trackers(names, job.config, job.metrics.parent, trainer.args)
    if load_parent and job.parent is not None and checkpoint is None:
        load_adapter_into(trainer.model, job.parent)
    if checkpoint is not None:
        say(_("  resuming from step {step}", step=step))
    started = time.monotonic()
    try:
        _train(job, trainer, metrics, checkpoint, state_bytes)
    finally:
        if metrics.trackers is not None:
            metrics.trackers.close()
    seconds = time.monotonic() - started
    return result_of(job, trainer, metrics, seconds)


def result_of(job: TrainJob, trainer: Any, metrics: Metrics, seconds: float) -> TrainResult:
    """What was done, by the trainer and by what is in a job's metrics."""
    import torch

    lines, schedule = read_metrics(metrics.file), trainer.schedule
    losses = [line["loss"] for line in lines]
    held_out = len(job.data.pairs.held_out) if job.data.pairs is not None else 0
    return TrainResult(
        steps=trainer.state.global_step,
        epochs=job.plan.epochs,
        tokens=metrics.tokens,
        seconds=round(seconds, 2),
        tokens_per_s=round(metrics.tokens / seconds, 1),
        first_loss=losses[0] if losses else None,
        final_loss=losses[-1] if losses else None,
        peak_memory_bytes=peak_memory(job.device),
        saves=schedule.saves,
        save_seconds=round(schedule.seconds_in_saves, 3),
        save_share=round(schedule.save_share(), 4),
        threads=torch.get_num_threads(),
        mean_training_loss=losses_by_epoch(lines, job.plan.epochs),
        held_out=HeldOutPairs.from_json(held_out_figures(lines, held_out)) if held_out else None,
    )


def _train(job: TrainJob, trainer: Any, metrics: Metrics, checkpoint: Path | None, state_bytes: float) -> None:
    """Train until the last step, a signal, or the budget's cap.

    Raises:
        CapError, KeyboardInterrupt, Terminated: stopped; the last whole step is saved.
    """
    from noesis.training.state.resumable import StopTraining

    plan = job.plan
    with metrics.progress, deferred() as interrupt:
        trainer.schedule = SaveSchedule(
            job.config.training.saving,
            on_gpu=job.device.kind == "cuda",
            step_seconds=plan.tokens_per_epoch / plan.rows * plan.setup.sequences_per_step / plan.tokens_per_s,
            state_bytes=state_bytes,
            steps=plan.steps,
            processes=trainer.accelerator.num_processes,
            budget=job.budget,
            interrupt=interrupt,
        )
        gc.freeze()  # what is there stays: to look through it all again and again takes half a second each time
        try:
            trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
        except (StopTraining, Overdue):
            interrupt.rest()
            trainer.save_last_step()
            say(
                _(
                    "  stopped after step {global_step} of {max_steps}, which is saved",
                    global_step=trainer.state.global_step,
                    max_steps=trainer.state.max_steps,
                )
            )
            if trainer.schedule.interrupted:
                interrupt.leave()
            if Nodes.here().count > 1 and not trainer.schedule.near_cap():
                raise TrainingError(
                    _(
                        "another machine of this training was stopped; the last whole step is saved, and the same "
                        "command continues from there"
                    )
                ) from None
            spent = "" if job.budget is None else job.budget.describe()
            raise CapError(
                _(
                    "stopped at the agreed cap: {spent}; "
                    "the same command with a higher --max-usd or --max-minutes resumes from there",
                    spent=spent,
                )
            ) from None
        finally:
            gc.unfreeze()


def _require_space(job: TrainJob, state_bytes: float) -> None:
    """Refuse to start where the disk can't hold an adapter an epoch and three states, one of which is being written.

    Raises:
        NoesisError: naming the folder and what is free there.
    """
    adapters = job.plan.adapter_parameters * BYTES_PER_WEIGHT * job.plan.epochs
    require_space(job.checkpoints, adapters + 3 * state_bytes + 20e6, "training's checkpoints")


def _load_tokenizer(model_folder: Path) -> Any:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(model_folder, trust_remote_code=False, local_files_only=True)
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer
