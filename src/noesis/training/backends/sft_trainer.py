"""SFT: each step's sequences are packed into rows, and each row is run forward and backward."""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any

import torch
from transformers import Trainer

from noesis.llm.token_rows import IGNORED
from noesis.training.anchors import anchors_of
from noesis.training.backends.build_model import build_model
from noesis.training.backends.run_trainer import TrainerParts
from noesis.training.backends.stepwise import PendingStep, Tensor, WholeStepTrainer
from noesis.training.backends.trainer_arguments import trainer_arguments
from noesis.training.distributed import local_rank
from noesis.training.job import TrainJob
from noesis.training.packing import rows_of_step


class SftTrainer(WholeStepTrainer, Trainer):  # type: ignore[misc]
    """A trainer whose `model` is one of `build_model`."""

    def __init__(self, *args: Any, kl_weight: float = 0.0, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.engine = self.model.engine
        self.kl_weight = kl_weight

    def training_step(self, model: Any, inputs: Any, num_items_in_batch: Any = None) -> Tensor:
        self.stop_if_asked(between_steps=True)
        indices: list[int] = inputs["indices"]
        sequences = [(self.rows[i].input_ids, self.rows[i].labels) for i in indices]
        world_size = self.accelerator.num_processes
        packed = rows_of_step(
            sequences,
            indices,
            world_size=world_size,
            rank=self.accelerator.process_index,
            pack_length=self.setup.pack_length if self.setup.packing else 0,
            micro_batch=self.setup.micro_batch,
            equal_rows=self.sharded,
        )
        trained = sum(label != IGNORED for _, labels in sequences for label in labels[1:])
        divisor = torch.tensor(float(trained), device=self.engine.device)
        self.engine.begin_step()
        losses, kept = [], torch.zeros((), device=self.engine.device)
        with self.interruptible():
            for i, row in enumerate(packed):
                is_last = i == len(packed) - 1
                with nullcontext() if world_size == 1 or is_last else model.no_sync():
                    anchors = anchors_of(row, self.rows, self.kl_weight)
                    loss = model(row, divisor, anchors)
                    # DistributedDataParallel averages the gradients of its processes, the step wants their sum
                    (loss * world_size if world_size > 1 else loss).backward()
                losses.append(loss.detach())
                if anchors is not None:
                    kept = kept + self.engine.divergence.detach()
                self.stop_if_asked()
        row_losses = torch.stack(losses)
        total = row_losses.sum()
        if world_size > 1:
            torch.distributed.all_reduce(total)
            torch.distributed.all_reduce(kept)
        # nats a token of the anchored rows, by which the model is off the base
        anchored = sum(self.rows[i].predicted for i in indices if self.rows[i].anchored)
        extra = {"kl": kept * trained / anchored} if anchored else {}
        self.current = PendingStep(
            torch.cat([total[None], total[None], row_losses, *(value[None] for value in extra.values())]),
            None,
            [row.members for row in packed],
            sum(len(ids) for ids, _ in sequences),
            list(extra),
        )
        return total


def build_sft_trainer(job: TrainJob, parts: TrainerParts) -> SftTrainer:
    """The trainer with its model loaded on this process's device."""
    if job.device.kind == "cuda":
        torch.cuda.set_device(local_rank())
    torch.manual_seed(job.config.training.seed)
    # before the model: under torchrun, this joins the process group
    arguments = trainer_arguments(job)
    return SftTrainer(
        model=build_model(job),
        args=arguments,
        train_dataset=range(len(job.rows)),  # `WholeStepTrainer` feeds itself
        processing_class=parts.tokenizer,
        callbacks=[parts.callback],
        rows=job.rows,
        setup=job.plan.setup,
        metrics=parts.metrics,
        sharded=job.plan.sharded,
        kl_weight=job.config.training.replay.kl_weight,
    )
