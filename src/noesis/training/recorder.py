"""What a run leaves behind while it trains: metrics.jsonl, a progress line, a complete adapter after each epoch."""

from __future__ import annotations

import json
import math
import sys
import time
from pathlib import Path
from typing import Any

from noesis.core.console import Progress
from noesis.core.device import Device
from noesis.core.files import sync_file, write_jsonl
from noesis.planning.budget import Budget
from noesis.planning.plan import Plan
from noesis.run.metrics import read_metrics
from noesis.training.state.adapter import save_adapter


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
    """Appends a line a step, and moves the progress bar. Lines of steps after `step`, where training goes on from, are dropped: they come again."""

    def __init__(
        self,
        file: Path,
        plan: Plan,
        device: Device,
        tokens_per_epoch: int,
        *,
        step: int = 0,
        budget: Budget | None = None,
    ) -> None:
        self.file, self.device, self.budget = file, device, budget
        self.kept = [line for line in read_metrics(file) if line["step"] <= step]
        self.total = tokens_per_epoch * plan.epochs
        self.progress = Progress("train", self.total, "tok", every_s=15)
        self.tokens_here = 0  # since this process began
        self.earlier = 0  # before that, from the step count
        self.started = time.monotonic()

    def begin(self, done: float) -> None:
        """Training starts, with this share of it done before."""
        self.file.parent.mkdir(parents=True, exist_ok=True)
        if self.file.is_file():
            write_jsonl(self.file, self.kept)
        self.earlier = int(self.kept[-1]["tokens"]) if self.kept else round(self.total * done)
        self.progress.total -= self.earlier
        self.progress.started = self.started = time.monotonic()

    def write(
        self,
        *,
        step: int,
        steps: int,
        epoch: float,
        loss: float,
        lr: float,
        grad_norm: float,
        tokens: int,
        seconds: float | None = None,
        others: dict[str, float] | None = None,
    ) -> None:
        """One step; tokens: of this step, padding not counted; seconds: from the beginning to its end, by the card's clock if it has one.

        Args:
            others: figures that only some kinds of training have.
        """
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
            "usd": round(self.budget.usd(), 6) if self.budget else 0.0,
        } | (others or {})
        with open(self.file, "a", encoding="utf-8") as f:
            f.write(json.dumps(line, allow_nan=False) + "\n")
        self.progress.advance(tokens, f"step {step}/{steps} · loss {loss:.3f}{self._cost(steps - step)}")

    def sync(self) -> None:
        """Flush the lines so far to the disk: those of a saved step must not be younger than it."""
        if self.file.is_file():
            sync_file(self.file)

    def _cost(self, steps_left: int) -> str:
        here = (time.monotonic() - self.started) / max(self.progress.done, 1)
        return (
            self.budget.projected(here * (self.progress.total - self.progress.done) if steps_left else 0.0)
            if self.budget
            else ""
        )


def recorder(checkpoints: Path, metrics: Metrics, tokenizer: Any) -> Any:
    """The trainer's callback. Its attribute `trainer` is set once the trainer exists."""
    from transformers import TrainerCallback

    class Recorder(TrainerCallback):  # type: ignore[misc]
        trainer: Any = None

        def on_train_begin(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
            self.trainer.pace.begin()
            if state.is_world_process_zero:
                metrics.begin(state.global_step / max(state.max_steps, 1))
                self.repair(state, model)
                self.trainer.begun()

        def repair(self, state: Any, model: Any) -> None:
            """Write the adapter of an epoch that was saved and killed before its adapter was written."""
            per_epoch = state.max_steps // state.num_train_epochs
            done, rest = divmod(state.global_step, per_epoch)
            target = checkpoints / f"epoch_{done - 1}"
            if done and not rest and not target.is_dir():
                save_adapter(model, tokenizer, target)

        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            self.trainer.step_ended()
            control.should_save = self.trainer.pace.should_save(state.global_step)

        def on_log(
            self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **kwargs: Any
        ) -> None:
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

        def on_epoch_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            self.trainer.begin_epoch(int((state.epoch or 0) + 1e-6))

        def on_epoch_end(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
            self.trainer.settle()
            if state.is_world_process_zero:
                save_adapter(model, tokenizer, checkpoints / f"epoch_{math.ceil(state.epoch - 1e-6) - 1}")

    return Recorder()
