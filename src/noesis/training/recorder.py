"""What a run leaves behind while it trains: metrics.jsonl, a progress line, a complete adapter after each epoch."""

from __future__ import annotations

import json
import math
import sys
import time
from pathlib import Path
from typing import Any

from noesis.core.console import Progress, duration, say
from noesis.core.device import Device
from noesis.core.files import append_line, sync_file, write_jsonl
from noesis.core.i18n import _
from noesis.planning.budget import Budget
from noesis.planning.plan import Plan
from noesis.run.metrics import read_metrics
from noesis.training.state.adapter import save_adapter
from noesis.training.tracking.trackers import Trackers

DEPARTURE = 0.25  # from the planned time, that is worth a word
DEPARTURE_SHARE, DEPARTURE_S = 0.1, 20.0  # of the tokens, and seconds after the first step, before it can be told


def peak_memory(device: Device) -> int:
    """Most memory in use so far, bytes: of the GPU, or of this process."""
    if device.kind == "cuda":
        import torch

        return int(torch.cuda.max_memory_allocated())
    import psutil

    memory = psutil.Process().memory_info()
    if (windows_peak := getattr(memory, "peak_wset", None)) is not None:
        return int(windows_peak)
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return int(peak if sys.platform == "darwin" else peak * 1024)


class Metrics:
    """Appends a line a step to metrics.jsonl and moves the progress bar.

    Args:
        step: the step that training resumes from; lines of later steps are dropped, since those steps are repeated.
        shown: say how far it is.

    Attributes:
        trackers: those that are told the same; None: none are.
    """

    trackers: Trackers | None = None

    def __init__(
        self,
        file: Path,
        plan: Plan,
        device: Device,
        tokens_per_epoch: int,
        *,
        step: int = 0,
        budget: Budget | None = None,
        shown: bool = True,
    ) -> None:
        self.shown = shown
        self.file, self.device, self.budget = file, device, budget
        self.earlier_lines = [line for line in read_metrics(file) if line["step"] <= step]
        self.total = tokens_per_epoch * plan.epochs
        self.progress = Progress("train", self.total, "tok", every_s=15)
        self.planned_rate = plan.tokens_per_s
        self.departure_said = False
        self.tokens = 0  # trained on by this process
        self.first = (0, 0.0)  # tokens and seconds of its first step, in which the kernels are compiled
        self.earlier_tokens = 0  # trained on before it
        self.started = time.monotonic()

    def begin(self, done: float) -> None:
        """Called when training starts; an earlier process finished the share `done` of it."""
        if self.file.is_file():
            write_jsonl(self.file, self.earlier_lines)
        last = self.earlier_lines[-1] if self.earlier_lines else None
        self.earlier_tokens = int(last["tokens"]) if last is not None else round(self.total * done)
        self.progress.total -= self.earlier_tokens
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
        extra: dict[str, float] | None = None,
    ) -> None:
        """Write one step.

        Args:
            tokens: of this step, padding not counted.
            seconds: from the first step to the end of this one, by the GPU's clock; None: by the process's.
            extra: figures that only some kinds of training have.
        """
        self.tokens += tokens
        seconds = max(seconds or time.monotonic() - self.started, 1e-9)
        if not self.first[0]:
            self.first = (self.tokens, seconds)
        line = {
            "step": step,
            "epoch": round(epoch, 4),
            "loss": loss,
            "lr": lr,
            "grad_norm": grad_norm,
            "tokens": self.earlier_tokens + self.tokens,
            "tokens_per_s": round(self.tokens / seconds, 1),
            "peak_memory_bytes": peak_memory(self.device),
            "usd": round(self.budget.usd(), 6) if self.budget else 0.0,
        } | (extra or {})
        append_line(self.file, json.dumps(line, allow_nan=False))
        if self.trackers is not None:
            self.trackers.log({name: value for name, value in line.items() if name != "step"}, step=step, epoch=epoch)
        if self.shown:
            self.progress.advance(
                tokens,
                _(
                    "step {step}/{steps} · loss {loss:.3f}{cost}",
                    step=step,
                    steps=steps,
                    loss=loss,
                    cost=self._cost(steps - step),
                ),
            )
            self._say_departure(seconds)

    def _say_departure(self, seconds: float) -> None:
        """Say once that training takes clearly longer or shorter than planned, as soon as that can be told."""
        tokens, first_s = self.tokens - self.first[0], self.first[1]
        measured_s = seconds - first_s  # not of a step or two: lines come in bursts
        due = tokens > 0 and self.tokens >= DEPARTURE_SHARE * self.progress.total and measured_s >= DEPARTURE_S
        if self.departure_said or not due:
            return
        rate = tokens / measured_s
        if abs(self.planned_rate / rate - 1) <= DEPARTURE:
            return
        self.departure_said = True
        expected = first_s + (self.progress.total - self.first[0]) / rate
        say(
            _(
                "  {rate:,.0f} tokens/s, where the plan said {planned_rate:,.0f}: training will take about "
                "{expected}, not {total}",
                rate=rate,
                planned_rate=self.planned_rate,
                expected=duration(expected),
                total=duration(self.progress.total / self.planned_rate),
            )
        )

    def sync(self) -> None:
        """Flush the lines to disk: a saved step must not be newer than its line."""
        if self.file.is_file():
            sync_file(self.file)

    def _cost(self, steps_left: int) -> str:
        if self.budget is None:
            return ""
        seconds_per_token = (time.monotonic() - self.started) / max(self.progress.done, 1)
        tokens_left = self.progress.total - self.progress.done if steps_left else 0
        return self.budget.projected(seconds_per_token * tokens_left)


def recorder(checkpoints: Path, metrics: Metrics, tokenizer: Any) -> Any:
    """The trainer's callback. Its attribute `trainer`, a `Resumable`, is set once the trainer exists."""
    from transformers import TrainerCallback

    class Recorder(TrainerCallback):  # type: ignore[misc]
        trainer: Any = None

        def on_train_begin(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
            self.trainer.schedule.begin()
            if state.is_world_process_zero:
                metrics.begin(state.global_step / max(state.max_steps, 1))
                self.save_missing_adapter(state, model)
                self.trainer.on_state_loaded()

        def save_missing_adapter(self, state: Any, model: Any) -> None:
            """Write the adapter of an epoch that an earlier process finished, but was killed before it wrote it."""
            per_epoch = state.max_steps // state.num_train_epochs
            epochs, steps = divmod(state.global_step, per_epoch)
            for trained, folder in self.trainer.adapters(model, checkpoints):
                target = folder / f"epoch_{epochs - 1}"
                if epochs and not steps and not target.is_dir():
                    save_adapter(trained, tokenizer, target)

        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            self.trainer.step_ended()
            control.should_save = self.trainer.schedule.should_save(state.global_step)

        def on_log(
            self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **kwargs: Any
        ) -> None:
            if logs is None or "loss" not in logs or self.trainer.writes_metrics:
                return
            metrics.write(
                step=state.global_step,
                steps=state.max_steps,
                epoch=state.epoch,
                loss=float(logs["loss"]),
                lr=float(logs["learning_rate"]),
                grad_norm=float(logs["grad_norm"]),
                tokens=self.trainer.tokens_seen - metrics.tokens,
            )

        def on_epoch_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            self.trainer.begin_epoch(int((state.epoch or 0) + 1e-6))

        def on_epoch_end(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
            self.trainer.finish_pending_step()
            if state.is_world_process_zero:
                for trained, folder in self.trainer.adapters(model, checkpoints):
                    save_adapter(trained, tokenizer, folder / f"epoch_{math.ceil(state.epoch - 1e-6) - 1}")

    return Recorder()
