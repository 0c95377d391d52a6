"""QLoRA by TRL's SFTTrainer: rows with labels in, one adapter an epoch out, resumable at any step that was saved.

The trainer is given token rows (`input_ids`, `labels`), so what is trained on is exactly what `noesis data inspect` shows.
"""

from __future__ import annotations

import json
import math
import os
import shutil
import time
from pathlib import Path
from typing import Any

from noesis.config import Config
from noesis.console import Progress, say
from noesis.constitution.conversation import Encoded
from noesis.device import Device
from noesis.errors import TrainingError
from noesis.files import require_space, sync_folder
from noesis.quiet import quiet_libraries
from noesis.train.base import arithmetic, load_base, lora
from noesis.train.loss import answer_loss
from noesis.train.plan import Plan

SAVE_SECONDS = 40.0  # about this often the trainer's state is saved


def train(folder: Path, rows: list[Encoded], config: Config, plan: Plan, device: Device, *, checkpoints: Path, metrics: Path) -> dict[str, Any]:
    """Train and leave `checkpoints/epoch_0 …`; goes on from `checkpoints/resume/` if an earlier attempt left something there.

    Returns:
        figures of the run: steps, tokens, seconds, tokens/s, final loss, peak memory.

    Raises:
        TrainingError: a loss that is not finite; nothing of that step was applied.
    """
    quiet_libraries()  # before anything imports bitsandbytes
    from datasets import Dataset
    from transformers import AutoTokenizer, PrinterCallback

    from noesis.train.dropout import use_byte_dropout

    # adapters of each epoch in 4 bytes a weight, and two saved states with Adam's moments
    require_space(checkpoints, plan.adapter_parameters * 4 * (plan.epochs + 2 * 3) + 20e6, "training's checkpoints")
    dataset = Dataset.from_list([{"input_ids": row.input_ids, "labels": row.labels} for row in rows])
    base = load_base(folder, config, device, longest=plan.longest_row)
    tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False, local_files_only=True)
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    recorder = _recorder(checkpoints, metrics, tokenizer, plan, device, sum(len(row.input_ids) for row in rows))
    trainer = _trainer_class(config, device)(
        model=base,
        args=_arguments(config, plan, device, checkpoints / "resume"),
        train_dataset=dataset,
        processing_class=tokenizer,
        peft_config=lora(config),
        callbacks=[recorder],
    )
    trainer.remove_callback(PrinterCallback)
    recorder.trainer = trainer
    # TRL casts the adapter on a quantised base to bfloat16, in which steps of 2e-4 round away; the update is kept in float32.
    for parameter in trainer.model.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.float()
    if device.kind == "cpu":
        use_byte_dropout(trainer.model)
    last = last_saved(checkpoints / "resume")
    if last is not None:
        say(f"  going on from step {last.name.removeprefix('checkpoint-')}")
    started = time.monotonic()
    with recorder.progress:
        trainer.train(resume_from_checkpoint=str(last) if last else None)
    seconds = time.monotonic() - started
    shutil.rmtree(checkpoints / "resume", ignore_errors=True)
    losses = [line["loss"] for line in read_metrics(metrics)]
    return {
        "steps": trainer.state.global_step,
        "epochs": config.training.num_train_epochs,
        "tokens": recorder.tokens_here,
        "seconds": round(seconds, 2),
        "tokens_per_s": round(recorder.tokens_here / seconds, 1),
        "first_loss": losses[0],
        "final_loss": losses[-1],
        "peak_memory_bytes": peak_memory(device),
    }


def last_saved(folder: Path) -> Path | None:
    """The newest whole trainer state under `folder` (`trainer_state.json` is the last file that a save writes)."""
    whole = [p for p in folder.glob("checkpoint-[0-9]*") if (p / "trainer_state.json").is_file()]
    return max(whole, key=lambda p: int(p.name.removeprefix("checkpoint-")), default=None)


def read_metrics(file: Path) -> list[dict[str, Any]]:
    """The lines of metrics.jsonl, one a step; a step that was repeated after an interruption counts once, its last time."""
    if not file.is_file():
        return []
    lines = {}
    for text in file.read_text(encoding="utf-8").splitlines():
        try:
            line = json.loads(text)
        except ValueError:
            continue  # a line cut off when the process was killed
        lines[line["step"]] = line
    return [lines[step] for step in sorted(lines)]


def peak_memory(device: Device) -> int:
    """Most memory in use so far, bytes: of the card, or of this process."""
    if device.kind == "cuda":
        import torch

        return int(torch.cuda.max_memory_allocated())
    import sys

    import psutil

    memory = psutil.Process().memory_info()
    if (windows := getattr(memory, "peak_wset", None)) is not None:
        return int(windows)
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return int(peak if sys.platform == "darwin" else peak * 1024)


def _arguments(config: Config, plan: Plan, device: Device, folder: Path) -> Any:
    from trl import SFTConfig

    t = config.training
    step_seconds = plan.tokens_per_epoch / plan.rows * plan.micro_batch * plan.accumulation / plan.tokens_per_s
    return SFTConfig(
        output_dir=str(folder),
        num_train_epochs=t.num_train_epochs,
        learning_rate=t.learning_rate,
        lr_scheduler_type=t.lr_scheduler_type,
        warmup_steps=round(t.warmup_ratio * plan.steps),  # rounded up, a run of a few steps would spend its first at rate 0
        per_device_train_batch_size=plan.micro_batch,
        gradient_accumulation_steps=plan.accumulation,
        weight_decay=t.weight_decay,
        max_grad_norm=t.max_grad_norm,
        seed=t.seed,
        data_seed=t.seed,
        max_length=None,  # nothing is ever cut: longer rows were refused
        bf16=device.kind == "cuda" and device.bf16,
        use_cpu=device.kind == "cpu",
        gradient_checkpointing=device.kind == "cuda",
        logging_steps=1,
        save_strategy="steps",
        save_steps=max(1, round(SAVE_SECONDS / step_seconds)),
        save_total_limit=2,
        report_to=[],
        disable_tqdm=True,
        dataloader_pin_memory=device.kind == "cuda",
    )


def _trainer_class(config: Config, device: Device) -> Any:
    """SFTTrainer with the loss of the trained tokens only, which stops before a loss that is not finite is applied."""
    import torch
    from trl import SFTTrainer

    class Trainer(SFTTrainer):  # type: ignore[misc]
        tokens_seen = 0  # of the rows trained on in this process, padding not counted

        def compute_loss(self, model: Any, inputs: Any, return_outputs: bool = False, num_items_in_batch: Any = None) -> Any:
            self.tokens_seen += int(inputs["attention_mask"].sum())
            adapted = self.accelerator.unwrap_model(model)
            with arithmetic(adapted, config, device):
                return answer_loss(adapted.get_base_model(), inputs, num_items_in_batch)

        def training_step(self, model: Any, inputs: Any, *args: Any, **kwargs: Any) -> Any:
            loss = super().training_step(model, inputs, *args, **kwargs)
            if not torch.isfinite(loss):
                raise TrainingError(
                    f"the loss is {float(loss)} at step {self.state.global_step + 1}; nothing of this step was applied. "
                    "Lower learning_rate in training_config.yaml, or look for odd examples with  noesis data validate"
                )
            return loss

    return Trainer


def _recorder(checkpoints: Path, metrics: Path, tokenizer: Any, plan: Plan, device: Device, tokens_per_epoch: int) -> Any:
    """Callback that writes metrics.jsonl, shows progress, and saves a complete adapter after each epoch."""
    from transformers import TrainerCallback

    class Recorder(TrainerCallback):  # type: ignore[misc]
        def __init__(self) -> None:
            self.progress = Progress("train", tokens_per_epoch * plan.epochs, "tok", every_s=15)
            self.trainer: Any = None
            self.tokens_here = 0  # since this process began
            self.earlier = 0  # before that, from the step count
            self.started = 0.0

        def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            self.earlier = round(tokens_per_epoch * plan.epochs * state.global_step / max(state.max_steps, 1))
            self.progress.total -= self.earlier
            self.progress.started = self.started = time.monotonic()

        def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **kwargs: Any) -> None:
            if logs is None or "loss" not in logs:
                return
            fresh = self.trainer.tokens_seen - self.tokens_here
            self.tokens_here += fresh
            line = {
                "step": state.global_step,
                "epoch": round(state.epoch, 4),
                "loss": float(logs["loss"]),
                "lr": float(logs["learning_rate"]),
                "grad_norm": float(logs["grad_norm"]),
                "tokens": self.earlier + self.tokens_here,
                "tokens_per_s": round(self.tokens_here / (time.monotonic() - self.started), 1),
                "peak_memory_bytes": peak_memory(device),
                "usd": 0.0,
            }
            metrics.parent.mkdir(parents=True, exist_ok=True)
            with open(metrics, "a", encoding="utf-8") as f:
                f.write(json.dumps(line, allow_nan=False) + "\n")
            self.progress.advance(fresh, f"step {state.global_step}/{state.max_steps} · loss {line['loss']:.3f}")

        def on_epoch_end(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
            save_adapter(model, tokenizer, checkpoints / f"epoch_{math.ceil(state.epoch - 1e-6) - 1}")

    return Recorder()


def save_adapter(model: Any, tokenizer: Any, target: Path) -> None:
    """A complete PEFT adapter with tokenizer, whole or not at all."""
    part = target.with_name(f".{target.name}.part")
    shutil.rmtree(part, ignore_errors=True)
    model.save_pretrained(part, safe_serialization=True)
    tokenizer.save_pretrained(part)
    (part / "README.md").unlink(missing_ok=True)  # PEFT's card template; the run has its own
    if target.exists():
        shutil.rmtree(target)
    os.replace(part, target)
    sync_folder(target.parent)
