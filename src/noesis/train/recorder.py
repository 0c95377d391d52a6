"""What a run leaves behind while it trains: metrics.jsonl, a progress line, a complete adapter after each epoch."""

from __future__ import annotations

import json
import math
import shutil
import sys
import time
from pathlib import Path
from typing import Any

from noesis.console import Progress
from noesis.device import Device
from noesis.files import replace_folder, sync_file, sync_tree, write_jsonl
from noesis.train.budget import Budget
from noesis.train.plan import Plan


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
            control.should_save = self.trainer.pace.due(state.global_step)

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


def save_adapter(model: Any, tokenizer: Any, target: Path) -> None:
    """A complete PEFT adapter with tokenizer, whole or not at all."""
    part = target.with_name(f".{target.name}.part")
    shutil.rmtree(part, ignore_errors=True)
    getattr(model, "module", model).save_pretrained(part, safe_serialization=True)
    tokenizer.save_pretrained(part)
    (part / "README.md").unlink(missing_ok=True)  # PEFT's card template; the run has its own
    _forget_places(part / "adapter_config.json")
    sync_tree(part)
    replace_folder(part, target)


def _forget_places(file: Path) -> None:
    """The base by its folder's name: where that lies on this machine, under whose home, is nobody's business."""
    settings = json.loads(file.read_text(encoding="utf-8"))
    settings["base_model_name_or_path"] = Path(str(settings.get("base_model_name_or_path"))).name
    file.write_text(json.dumps(settings, indent=2, sort_keys=True), encoding="utf-8")


def losses_by_epoch(lines: list[dict[str, Any]], epochs: int) -> dict[str, float | None]:
    """The mean training loss of each epoch; None for one without a step."""
    losses = {}
    for epoch in range(epochs):
        of_epoch = [line["loss"] for line in lines if epoch < line["epoch"] <= epoch + 1]
        losses[f"epoch_{epoch}"] = round(sum(of_epoch) / len(of_epoch), 6) if of_epoch else None
    return losses


def held_out_figures(lines: list[dict[str, Any]], pairs: int) -> dict[str, Any]:
    """Preference training's figures on the held-out pairs after each epoch, from its metrics."""
    names = ("held_out_reward_accuracy", "held_out_reward_margin", "held_out_loss")
    found = [
        {name.removeprefix("held_out_"): round(line[name], 6) for name in names} for line in lines if names[0] in line
    ]
    return {"pairs": pairs, "by_epoch": found}
