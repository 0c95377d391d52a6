"""SFTTrainer on the engine (DPOTrainer: preference.py): a step is one batch, packed into rows, each run forward and backward; nothing waits
for the card.

The loss and the gradient's norm of a step are read while the next one computes. A step whose gradient is not finite is skipped by the
optimizer on the card itself (`found_inf`), and training stops when the number arrives, before the next update.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch.utils.data import DataLoader

from noesis.core.errors import TrainingError
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

    def __iter__(self) -> Any:
        order = torch.randperm(
            self.count, generator=torch.Generator().manual_seed(self.seed * 1_000_003 + self.epoch)
        ).tolist()
        return (order[i : i + self.per_step] for i in range(0, self.count, self.per_step))


@dataclass
class PendingStep:
    """A step whose figures are still on their way from the card."""

    figures: Tensor  # (2 + rows + others,): loss, gradient norm, loss of each row, what `others` names
    ready: Any  # an event at the step's end, or None on a processor
    members: list[list[int]]
    tokens: int
    others: list[str] = field(default_factory=list)
    copied: Any = None  # an event when `figures` are in main memory
    step: int = 0
    epoch: float = 0.0
    lr: float = 0.0


class WholeStepTrainer(Resumable):
    """Mixed in before a trainer of TRL whose `training_step` takes a whole step and leaves its figures in `current`."""

    writes_itself = True
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
        self.steps = StepSampler(len(rows), setup.sequences_per_step, self.args.seed)
        self.current: PendingStep | None = None  # of this step, before the optimizer's
        self.pending: PendingStep | None = None  # of the last one
        self.device: Any = self.accelerator.device
        self.began: Any = None  # an event on the card: the clock of the steps

    def get_train_dataloader(self) -> Any:
        """Every card sees every step whole and takes its share in `training_step`: so a step is the same on any number of cards."""
        return DataLoader(
            range(len(self.rows)), batch_sampler=self.steps, collate_fn=lambda indices: {"indices": list(indices)}
        )

    def begin_epoch(self, epoch: int) -> None:
        self.steps.epoch = epoch
        if self.began is None and self.device.type == "cuda":
            torch.cuda.synchronize()
            self.began = torch.cuda.Event(enable_timing=True)
            self.began.record()

    def floating_point_ops(self, inputs: Any) -> int:
        return 0

    def _clip_grad_norm(self, model: Any) -> Tensor:
        self.settle()
        norm = super()._clip_grad_norm(model)  # type: ignore[misc]
        current = self.current
        assert current is not None
        current.figures[1] = norm
        optimizer: Any = getattr(self.optimizer, "optimizer", self.optimizer)
        if norm.is_cuda:
            current.ready = torch.cuda.Event(enable_timing=True)
            current.ready.record()
        if norm.is_cuda and optimizer.param_groups[0].get("fused"):
            optimizer.found_inf = (~torch.isfinite(current.figures[:2]).all()).float()
            host = torch.empty(current.figures.shape, dtype=torch.float32, pin_memory=True)
            host.copy_(current.figures, non_blocking=True)
            current.copied = torch.cuda.Event()
            current.copied.record()
            current.figures = host
        else:
            current.figures = current.figures.cpu()
            self._require_finite(current)
        current.step, current.lr = self.state.global_step + 1, float(self.lr_scheduler.get_last_lr()[0])
        current.epoch = current.step / len(self.steps)
        self.pending, self.current = current, None
        return norm

    def _get_grad_norm(self, model: Any, grad_norm: Any = None) -> Any:
        return grad_norm  # a tensor: reading it would wait for the card

    def settle(self) -> None:
        """Write the last step's figures.

        Raises:
            TrainingError: they are not finite; that step was not applied.
        """
        pending, self.pending = self.pending, None
        if pending is None:
            return
        if pending.copied is not None:
            pending.copied.synchronize()
        self._require_finite(pending)
        loss, norm = (float(x) for x in pending.figures[:2])
        seconds = self.began.elapsed_time(pending.ready) / 1000 if pending.ready is not None else None
        others = dict(
            zip(pending.others, pending.figures[2 + len(pending.members) :].tolist(), strict=True)
        ) | self.after_step(pending.step)
        if self.accelerator.is_main_process:
            self.metrics.write(
                seconds=seconds,
                step=pending.step,
                steps=self.state.max_steps,
                epoch=pending.epoch,
                loss=loss,
                lr=pending.lr,
                grad_norm=norm,
                tokens=pending.tokens,
                others=others,
            )

    def after_step(self, step: int) -> dict[str, float]:
        """More figures for the line of a step that was applied, measured with the model as it is now."""
        return {}

    def place(self, members: list[int]) -> str:
        """Where the user finds the rows of these indices."""
        return f"on lines {', '.join(str(m + 1) for m in members)} of the run's data/train.jsonl"

    def _require_finite(self, pending: PendingStep) -> None:
        if bool(torch.isfinite(pending.figures[:2]).all()):
            return
        losses = pending.figures[2 : 2 + len(pending.members)]
        bad = [
            m
            for value, members in zip(losses, pending.members, strict=True)
            if not torch.isfinite(value)
            for m in members
        ]
        named = sorted(bad or [m for members in pending.members for m in members])
        loss, norm = (float(x) for x in pending.figures[:2])
        raise TrainingError(
            f"the loss is {loss} and the gradient's norm {norm} at step {pending.step or self.state.global_step + 1}; nothing of this step was applied. "
            f"Its examples are those {self.place(named)}: look at them with  noesis data inspect, "
            "or lower learning_rate in training_config.yaml"
        )
