"""A job's settings as the arguments of a trainer of transformers."""

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


def trainer_arguments(job: TrainJob, **more: Any) -> Any:
    """The `transformers.TrainingArguments` of a trainer that takes whole steps and makes rows of them itself.

    Args:
        more: arguments that override the shared ones.
    """
    from transformers import TrainingArguments

    setup, cuda = job.plan.setup, job.device.kind == "cuda"
    arguments: dict[str, Any] = shared_arguments(job) | {
        "output_dir": str(job.resume_folder),
        "per_device_train_batch_size": max(1, setup.sequences_per_step // max(setup.gpus, 1)),
        "gradient_accumulation_steps": 1,
        "bf16": False,  # the model's types are explicit
        "use_cpu": not cuda,
        "gradient_checkpointing": False,  # the model recomputes as planned
        "logging_steps": 10**9,
        "logging_nan_inf_filter": False,
        "save_strategy": "no",  # `SaveSchedule` says when
        "report_to": [],
        "disable_tqdm": True,
        "dataloader_pin_memory": cuda,
        "ddp_find_unused_parameters": False,  # every weight of the adapter takes part in every row
    }
    made = TrainingArguments(**(arguments | more))
    if cuda and not is_worker():
        made._n_gpu = 1  # transformers would spread one process over every GPU that it sees
    return made
