"""SFTTrainer on the engine: each step's sequences are packed into rows, and each row is run forward and backward."""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any

import torch
from trl import SFTTrainer

from noesis.llm.token_rows import IGNORED
from noesis.training.backends.stepwise import PendingStep, Tensor, WholeStepTrainer
from noesis.training.backends.trl_arguments import trl_arguments
from noesis.training.backends.trl_run import TrainerParts
from noesis.training.base_model import lora_config
from noesis.training.distributed import local_rank
from noesis.training.job import TrainJob
from noesis.training.packing import rows_of_step


class EngineTrainer(WholeStepTrainer, SFTTrainer):  # type: ignore[misc]
    """SFTTrainer whose `model` is one of `engine.model.build`."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.engine = self.model.engine

    def training_step(self, model: Any, inputs: Any, num_items_in_batch: Any = None) -> Tensor:
        self.stop_if_asked(between_steps=True)
        model.train()
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
        losses = []
        with self.interruptible():
            for i, row in enumerate(packed):
                is_last = i == len(packed) - 1
                with nullcontext() if world_size == 1 or is_last else model.no_sync():
                    loss = model(row, divisor)
                    # DistributedDataParallel averages the gradients of its processes, the step wants their sum
                    (loss * world_size if world_size > 1 else loss).backward()
                losses.append(loss.detach())
                self.stop_if_asked()
        row_losses = torch.stack(losses)
        total = row_losses.sum()
        if world_size > 1:
            torch.distributed.all_reduce(total)
        self.current = PendingStep(
            torch.cat([total[None], total[None], row_losses]),
            None,
            [row.members for row in packed],
            sum(len(ids) for ids, _ in sequences),
        )
        return total


def build_engine_trainer(job: TrainJob, parts: TrainerParts) -> EngineTrainer:
    """The trainer with its model loaded on this process's device."""
    from datasets import Dataset
    from trl import SFTConfig

    from noesis.training.engine.model import build

    config, plan, rows, cuda = job.config, job.plan, job.rows, job.device.kind == "cuda"
    if cuda:
        torch.cuda.set_device(local_rank())
    torch.manual_seed(config.training.seed)
    # before the model: under torchrun, this joins the process group
    arguments = trl_arguments(SFTConfig, job, engine=True, whole_steps=True)
    model = build(
        job.model_folder,
        plan.setup,
        lora_config(config, job.model_folder),
        f"cuda:{local_rank()}" if cuda else "cpu",
        sharded=plan.sharded,
        double_quant=config.lora.quantization.bnb_4bit_use_double_quant,
    )
    return EngineTrainer(
        model=model,
        args=arguments,
        # a placeholder: `WholeStepTrainer` feeds itself from `rows`
        train_dataset=Dataset.from_list([{"input_ids": rows[0].input_ids, "labels": rows[0].labels}]),
        processing_class=parts.tokenizer,
        callbacks=[parts.callback],
        rows=rows,
        setup=plan.setup,
        metrics=parts.metrics,
        sharded=plan.sharded,
    )
