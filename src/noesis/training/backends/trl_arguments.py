"""A job's settings as the arguments of a trainer of TRL (https://huggingface.co/docs/trl/sft_trainer)."""

from __future__ import annotations

from typing import Any

from noesis.training.distributed import is_worker
from noesis.training.job import TrainJob

OPTIMIZERS = {"adamw": "adamw_torch_fused", "adamw_8bit": "adamw_8bit"}


def shared_arguments(job: TrainJob) -> dict[str, Any]:
    """The arguments that are the same for every backend, Unsloth's process included."""
    t, plan = job.config.training, job.plan
    return {
        "num_train_epochs": plan.epochs,
        "learning_rate": t.learning_rate,
        "lr_scheduler_type": t.lr_scheduler_type,
        # rounded, not rounded up: a run of a few steps would spend its first at rate 0
        "warmup_steps": round(t.warmup_ratio * plan.steps),
        "weight_decay": t.weight_decay,
        "max_grad_norm": t.max_grad_norm,
        "seed": t.seed,
        "data_seed": t.seed,
        "optim": OPTIMIZERS[plan.setup.optimizer],
    }


def trl_arguments(kind: Any, job: TrainJob, *, engine: bool, whole_steps: bool, **more: Any) -> Any:
    """An object of class `kind`, `trl.SFTConfig` or `trl.DPOConfig`.

    Args:
        engine: the engine computes: it keeps and recomputes as planned, and its types are explicit.
        whole_steps: the trainer is given a step's sequences at once and makes rows of them itself.
        more: arguments that only this kind has, or that override the shared ones.
    """
    setup, device, cuda = job.plan.setup, job.device, job.device.kind == "cuda"
    batch = max(1, setup.sequences_per_step // max(setup.gpus, 1)) if whole_steps else setup.micro_batch
    arguments: dict[str, Any] = shared_arguments(job) | {
        "output_dir": str(job.resume_folder),
        "per_device_train_batch_size": batch,
        "gradient_accumulation_steps": 1 if whole_steps else setup.sequences_per_step // batch,
        "max_length": None,  # nothing is ever truncated: longer rows were refused
        "bf16": cuda and device.bf16 and not engine,
        "use_cpu": not cuda,
        "gradient_checkpointing": not engine and setup.gradient_checkpointing != "none",
        "logging_steps": 10**9 if whole_steps else 1,
        "logging_nan_inf_filter": False,
        "save_strategy": "no",  # `SaveSchedule` says when
        "report_to": [],
        "disable_tqdm": True,
        "dataloader_pin_memory": cuda,
    }
    made = kind(**(arguments | more))
    if cuda and not is_worker():
        made._n_gpu = 1  # transformers would spread one process over every GPU that it sees
    return made
