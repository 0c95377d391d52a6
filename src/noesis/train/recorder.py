"""What a run leaves behind while it trains: metrics.jsonl, a progress line, a complete adapter after each epoch."""

from __future__ import annotations

import json
import math
import os
import shutil
import sys
import time
from pathlib import Path
from typing import Any

from noesis.console import Progress
from noesis.device import Device
from noesis.files import sync_folder
from noesis.train.plan import Plan


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
    import psutil

    memory = psutil.Process().memory_info()
    if (windows := getattr(memory, "peak_wset", None)) is not None:
        return int(windows)
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return int(peak if sys.platform == "darwin" else peak * 1024)


class Metrics:
    """Appends a line a step, and moves the progress bar."""

    def __init__(self, file: Path, plan: Plan, device: Device, tokens_per_epoch: int) -> None:
        self.file, self.device = file, device
        self.total = tokens_per_epoch * plan.epochs
        self.progress = Progress("train", self.total, "tok", every_s=15)
        self.tokens_here = 0  # since this process began
        self.earlier = 0  # before that, from the step count
        self.started = time.monotonic()

    def begin(self, done: float) -> None:
        """Training starts, with this share of it done before."""
        self.earlier = round(self.total * done)
        self.progress.total -= self.earlier
        self.progress.started = self.started = time.monotonic()

    def write(self, *, step: int, steps: int, epoch: float, loss: float, lr: float, grad_norm: float, tokens: int, seconds: float | None = None) -> None:
        """One step; tokens: of this step, padding not counted; seconds: from the beginning to its end, by the card's clock if it has one."""
        self.tokens_here += tokens
        line = {
            "step": step,
            "epoch": round(epoch, 4),
            "loss": loss,
            "lr": lr,
            "grad_norm": grad_norm,
            "tokens": self.earlier + self.tokens_here,
            "tokens_per_s": round(self.tokens_here / max(seconds or time.monotonic() - self.started, 1e-9), 1),
            "peak_memory_bytes": peak_memory(self.device),
            "usd": 0.0,
        }
        self.file.parent.mkdir(parents=True, exist_ok=True)
        with open(self.file, "a", encoding="utf-8") as f:
            f.write(json.dumps(line, allow_nan=False) + "\n")
        self.progress.advance(tokens, f"step {step}/{steps} · loss {loss:.3f}")


def recorder(checkpoints: Path, metrics: Metrics, tokenizer: Any) -> Any:
    """The trainer's callback. Its attribute `trainer` is set once the trainer exists."""
    from transformers import TrainerCallback

    class Recorder(TrainerCallback):  # type: ignore[misc]
        trainer: Any = None

        def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            metrics.begin(state.global_step / max(state.max_steps, 1))

        def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **kwargs: Any) -> None:
            if logs is None or "loss" not in logs or self.trainer.writes_itself:
                return
            metrics.write(
                step=state.global_step,
                steps=state.max_steps,
                epoch=state.epoch,
                loss=float(logs["loss"]),
                lr=float(logs["learning_rate"]),
                grad_norm=float(logs["grad_norm"]),
                tokens=self.trainer.tokens_seen - metrics.tokens_here,
            )

        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            # After the very last step transformers would save optimizer and all, seconds before the epoch's adapter is saved anyway.
            if self.trainer.writes_itself and state.global_step >= state.max_steps:
                control.should_save = False

        def on_epoch_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            self.trainer.begin_epoch(int((state.epoch or 0) + 1e-6))

        def on_epoch_end(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
            self.trainer.settle()
            if state.is_world_process_zero:
                save_adapter(model, tokenizer, checkpoints / f"epoch_{math.ceil(state.epoch - 1e-6) - 1}")

    return Recorder()


def save_adapter(model: Any, tokenizer: Any, target: Path) -> None:
    """A complete PEFT adapter with tokenizer, whole or not at all."""
    part = target.with_name(f".{target.name}.part")
    shutil.rmtree(part, ignore_errors=True)
    getattr(model, "module", model).save_pretrained(part, safe_serialization=True)
    tokenizer.save_pretrained(part)
    (part / "README.md").unlink(missing_ok=True)  # PEFT's card template; the run has its own
    if target.exists():
        shutil.rmtree(target)
    os.replace(part, target)
    sync_folder(target.parent)
