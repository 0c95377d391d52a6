"""Trains one job: chooses the backend, and falls back to smaller plans when the GPU runs out of memory."""

from __future__ import annotations

import gc
from dataclasses import replace

from noesis.core.console import say
from noesis.core.errors import TrainingError
from noesis.core.i18n import _
from noesis.core.libraries import quiet_libraries
from noesis.planning.plan import next_smaller_plan
from noesis.training.backends.distill.backend import Distill
from noesis.training.backends.preference import PreferenceBackend
from noesis.training.backends.sft import Sft
from noesis.training.backends.torchrun import Torchrun
from noesis.training.backends.unsloth import Unsloth
from noesis.training.job import Backend, TrainJob, TrainResult
from noesis.training.reward.backend import RewardBackend
from noesis.training.seeds.backend import Seeds

BACKENDS: tuple[Backend, ...] = (Seeds(), RewardBackend(), PreferenceBackend(), Distill(), Unsloth(), Torchrun(), Sft())


def choose_backend(job: TrainJob) -> Backend:
    """The first of `BACKENDS` that takes the job."""
    return next(backend for backend in BACKENDS if backend.refusal_reason(job) is None)


def train(job: TrainJob) -> TrainResult:
    """Train and leave `checkpoints/epoch_0 …`; resumes from the newest intact state in `checkpoints/resume/`.

    Raises:
        TrainingError: a loss that is not finite (nothing of that step was applied), or too little memory for this plan
            and every smaller one.
        CapError: another step would exceed the budget; the last one is saved.
        KeyboardInterrupt, Terminated: a stop was requested; the last whole step is saved.
    """
    quiet_libraries()  # before anything imports bitsandbytes: the backends import transformers when they train
    result, smaller = _attempt(job), None
    while result is None and job.plan.setup.gpus <= 1 and (smaller := next_smaller_plan(job.plan)) is not None:
        say(
            _(
                "  out of memory: resuming from the last saved step with {precision}, "
                "gradient checkpointing {gradient_checkpointing}, "
                "rows of {pack_length:,} tokens",
                precision=smaller.precision,
                gradient_checkpointing=smaller.setup.gradient_checkpointing,
                pack_length=smaller.setup.pack_length,
            )
        )
        job = replace(job, plan=smaller)
        result = _attempt(job)
    if result is not None:
        return result if smaller is None else replace(result, smaller_plan=smaller)
    raise TrainingError(
        _(
            "the GPU ran out of memory, also with the smallest plan: in training_config.yaml set "
            "per_device_train_batch_size: 1 and gradient_accumulation_steps: {sequences_per_step}, "
            "lower max_length, or choose a smaller --model or a larger GPU",
            sequences_per_step=job.plan.setup.sequences_per_step,
        )
    )


def _attempt(job: TrainJob) -> TrainResult | None:
    """One try with the job's plan; None: the GPU ran out of memory."""
    import torch

    try:
        return choose_backend(job).train(job)
    except torch.cuda.OutOfMemoryError:
        pass  # handled outside of this block: until then the traceback keeps the model alive
    gc.collect()
    torch.cuda.empty_cache()
    return None
