"""The settings of a run and of its plan as the arguments of a trainer of TRL."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from noesis.core.config import Config
from noesis.core.device import Device
from noesis.planning.plan import Plan


def arguments(
    kind: Any,
    config: Config,
    plan: Plan,
    device: Device,
    folder: Path,
    *,
    engine: bool,
    whole_steps: bool,
    learning_rate: float | None = None,
    **more: Any,
) -> Any:
    """An object of class `kind`, `trl.SFTConfig` or `trl.DPOConfig`.

    Args:
        folder: where states are saved.
        engine: the engine computes: it keeps and recomputes as planned, and its types are explicit.
        whole_steps: the trainer is given a step's sequences at once and makes rows of them itself.
        learning_rate: default: the one of training_config.yaml for SFT.
        more: what only this kind knows.
    """
    t, setup, cuda = config.training, plan.setup, device.kind == "cuda"
    batch = max(1, setup.sequences_per_step // max(setup.gpus, 1)) if whole_steps else setup.micro_batch
    made = kind(
        output_dir=str(folder),
        num_train_epochs=plan.epochs,
        learning_rate=t.learning_rate if learning_rate is None else learning_rate,
        lr_scheduler_type=t.lr_scheduler_type,
        warmup_steps=round(
            t.warmup_ratio * plan.steps
        ),  # rounded up, a run of a few steps would spend its first at rate 0
        per_device_train_batch_size=batch,
        gradient_accumulation_steps=1 if whole_steps else setup.sequences_per_step // batch,
        weight_decay=t.weight_decay,
        max_grad_norm=t.max_grad_norm,
        seed=t.seed,
        data_seed=t.seed,
        optim={"adamw": "adamw_torch_fused", "adamw_8bit": "adamw_8bit"}[setup.optimizer],
        max_length=None,  # nothing is ever cut: longer rows were refused
        bf16=cuda and device.bf16 and not engine,
        use_cpu=not cuda,
        gradient_checkpointing=not engine and setup.gradient_checkpointing != "none",
        logging_steps=10**9 if whole_steps else 1,
        logging_nan_inf_filter=False,
        save_strategy="no",  # `Pace` says when
        report_to=[],
        disable_tqdm=True,
        dataloader_pin_memory=cuda,
        **more,
    )
    if cuda and not is_worker():
        made._n_gpu = 1  # transformers would spread one process over every card that it sees
    return made


def is_worker() -> bool:
    """Whether this process is one of torchrun's."""
    return "LOCAL_RANK" in os.environ
