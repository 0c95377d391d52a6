"""A trainer that takes a whole optimizer step at a time and never waits for the GPU.

The loss and the gradient's norm of a step are read while the next one computes. A step whose gradient is not finite is
skipped by the optimizer on the GPU itself (`found_inf`), and training stops when the numbers arrive, before the next
update.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch.utils.data import DataLoader

from noesis.core.console import command
from noesis.core.errors import TrainingError
from noesis.core.i18n import _
from noesis.planning.setup import Setup
from noesis.training.recorder import Metrics
from noesis.training.state.resumable import Resumable

Tensor = Any


class StepSampler:
    """Batch sampler: indices of each step's sequences, in an order that depends on seed and epoch only."""

    def __init__(self, count: int, per_step: int, seed: int) -> None:
        self.count, self.per_step, self.seed, self.epoch = count, per_step, seed, 0

    def __len__(self) -> int:
        return (self.count + self.per_step - 1) // self.per_step

    def __iter__(self) -> Iterator[list[int]]:
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + self.epoch)
        order = torch.randperm(self.count, generator=generator).tolist()
        return (order[i : i + self.per_step] for i in range(0, self.count, self.per_step))


@dataclass
class PendingStep:
    """A step whose figures may still be on the GPU.

    figures: (2 + rows + extra names,) float32: loss, gradient norm, loss of each row, then what `extra` names
    ready: an event at the step's end; None on a CPU
    members: indices of each row's sequences
    tokens: of the step, padding not counted
    copied: an event that fires when `figures` are in main memory; None on a CPU
    """

    figures: Tensor
    ready: Any
    members: list[list[int]]
    tokens: int
    extra: list[str] = field(default_factory=list)
    copied: Any = None
    step: int = 0
    epoch: float = 0.0
    lr: float = 0.0


class WholeStepTrainer(Resumable):
    """Mixed in before a `transformers.Trainer`: `training_step` takes a whole step, leaves its figures in `current`."""

    writes_metrics = True
    args: Any
    state: Any
    model: Any
    accelerator: Any
    optimizer: Any
    lr_scheduler: Any

    def __init__(
        self, *args: Any, rows: list[Any], setup: Setup, metrics: Metrics, sharded: bool = False, **kwargs: Any
    ) -> None:
        super().__init__(*args, **kwargs)
        self.rows, self.setup, self.metrics, self.sharded = rows, setup, metrics, sharded
        self.sampler = StepSampler(len(rows), setup.sequences_per_step, self.args.seed)
        self.trained = [p for p in self.model.parameters() if p.requires_grad]
        if (
            self.accelerator.num_processes == 1
        ):  # a model has some 1,500 modules, and going through them takes as long as
            self.model.zero_grad = self._zero_grad  # a small model's layers: nothing of a step does
        self.current: PendingStep | None = None  # of this step, before the optimizer's
        self.pending: PendingStep | None = None  # of the last one
        self.device: Any = self.accelerator.device
        self.first_event: Any = None  # an event on the GPU, which the steps' times count from

    def get_train_dataloader(self) -> Any:
        """Every process sees the whole step and takes its share of it, so a step is the same on any number of GPUs."""
        return DataLoader(
            range(len(self.rows)), batch_sampler=self.sampler, collate_fn=lambda indices: {"indices": list(indices)}
        )

    def begin_epoch(self, epoch: int) -> None:
        self.sampler.epoch = epoch
        if self.first_event is None and self.device.type == "cuda":
            torch.cuda.synchronize()
            self.first_event = torch.cuda.Event(enable_timing=True)
            self.first_event.record()

    def floating_point_ops(self, inputs: Any) -> int:
        return 0

    def _clip_grad_norm(self, model: Any) -> Tensor:
        self.finish_pending_step()
        current, self.current = self.current, None
        if current is None:
            raise RuntimeError("training_step left no figures in `current`")
        norm = self.clip(current, self.trained)
        self.hand_over([current])
        self.pending = current
        return norm

    def clip(self, current: PendingStep, parameters: list[Tensor]) -> Tensor:
        """Clip the gradients of a step, and put their norm into its figures."""
        norm = torch.nn.utils.clip_grad_norm_(parameters, self.args.max_grad_norm)
        current.figures[1] = norm
        return norm

    def hand_over(self, steps: list[PendingStep]) -> None:
        """Send the figures on their way to main memory, and have the optimizer skip what is not finite.

        Raises:
            TrainingError: they are there already and not finite.
        """
        optimizer: Any = getattr(self.optimizer, "optimizer", self.optimizer)
        on_gpu = steps[0].figures.is_cuda
        if on_gpu:
            ready = torch.cuda.Event(enable_timing=True)
            ready.record()
        fused = on_gpu and optimizer.param_groups[0].get("fused")
        if fused:
            finite = torch.stack([torch.isfinite(step.figures[:2]).all() for step in steps]).all()
            optimizer.found_inf = (~finite).float()
        for step in steps:
            step.ready = ready if on_gpu else None
            if fused:
                in_main_memory = torch.empty(step.figures.shape, dtype=torch.float32, pin_memory=True)
                in_main_memory.copy_(step.figures, non_blocking=True)
                step.copied = torch.cuda.Event()
                step.copied.record()
                step.figures = in_main_memory
            else:
                step.figures = step.figures.cpu()
                self._require_finite(step)
            step.step, step.lr = self.state.global_step + 1, float(self.lr_scheduler.get_last_lr()[0])
            step.epoch = step.step / len(self.sampler)

    def _zero_grad(self, set_to_none: bool = True) -> None:
        for parameter in self.trained:
            parameter.grad = None

    def _get_grad_norm(self, model: Any, grad_norm: Any = None) -> Any:
        return grad_norm  # a tensor: reading it would wait for the GPU

    def finish_pending_step(self) -> None:
        """Write the last step's metrics.

        Raises:
            TrainingError: they are not finite; that step was not applied.
        """
        pending, self.pending = self.pending, None
        if pending is not None:
            self.record(pending, self.metrics)

    def record(self, pending: PendingStep, metrics: Metrics) -> None:
        """Write the metrics of one step.

        Raises:
            TrainingError: they are not finite.
        """
        if pending.copied is not None:
            pending.copied.synchronize()
        self._require_finite(pending)
        loss, norm = (float(x) for x in pending.figures[:2])
        seconds = self.first_event.elapsed_time(pending.ready) / 1000 if pending.ready is not None else None
        named = zip(pending.extra, pending.figures[2 + len(pending.members) :].tolist(), strict=True)
        extra = dict(named) | self.measure_after_step(pending.step)
        if self.accelerator.is_main_process:
            metrics.write(
                seconds=seconds,
                step=pending.step,
                steps=self.state.max_steps,
                epoch=pending.epoch,
                loss=loss,
                lr=pending.lr,
                grad_norm=norm,
                tokens=pending.tokens,
                extra=extra,
            )

    def measure_after_step(self, step: int) -> dict[str, float]:
        """More figures for the metrics of a step that was applied, measured with the model as it is now."""
        return {}

    def locate(self, members: list[int]) -> str:
        """Where the user finds the rows of these indices."""
        return _("on lines {lines} of the run's data/train.jsonl", lines=", ".join(str(m + 1) for m in members))

    def _require_finite(self, pending: PendingStep) -> None:
        if bool(torch.isfinite(pending.figures[:2]).all()):
            return
        losses = pending.figures[2 : 2 + len(pending.members)]
        bad = [
            m
            for loss, members in zip(losses, pending.members, strict=True)
            if not torch.isfinite(loss)
            for m in members
        ]
        suspects = sorted(bad or [m for members in pending.members for m in members])
        loss, norm = (float(x) for x in pending.figures[:2])
        raise TrainingError(
            _(
                "the loss is {loss} and the gradient's norm {norm} at step {step}; "
                "nothing of this step was applied. Its examples are those {locate}: "
                "look at them with  {command}, or lower learning_rate in training_config.yaml",
                loss=loss,
                norm=norm,
                step=pending.step or self.state.global_step + 1,
                locate=self.locate(suspects),
                command=command("data", "inspect"),
            )
        )
