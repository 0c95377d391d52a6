"""SFT on the engine: a step is packed into rows, each run forward and backward."""

from __future__ import annotations

import os
from contextlib import nullcontext
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from trl import SFTTrainer

from noesis.core.config import Config
from noesis.core.device import Device
from noesis.llm.token_rows import IGNORED, TokenRow
from noesis.planning.plan import Plan
from noesis.training.backends.stepwise import PendingStep, Tensor, WholeStepTrainer
from noesis.training.backends.trl_arguments import arguments
from noesis.training.base_model import lora
from noesis.training.packing import rows_of_step
from noesis.training.recorder import Metrics


class EngineTrainer(WholeStepTrainer, SFTTrainer):  # type: ignore[misc]
    """`model` is one of `engine.model.build`."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.engine = self.model.engine

    def training_step(self, model: Any, inputs: Any, num_items_in_batch: Any = None) -> Tensor:
        self.stop_if_asked(between_steps=True)
        model.train()
        indices: list[int] = inputs["indices"]
        sequences = [(self.rows[i].input_ids, self.rows[i].labels) for i in indices]
        cards, card = self.accelerator.num_processes, self.accelerator.process_index
        setup = self.setup
        packed = rows_of_step(
            sequences,
            indices,
            cards=cards,
            card=card,
            pack_length=setup.pack_length if setup.packing else 0,
            micro_batch=setup.micro_batch,
            level=self.sharded,
        )
        trained = sum(label != IGNORED for _, labels in sequences for label in labels[1:])
        divisor = torch.tensor(float(trained), device=self.engine.device)
        self.engine.begin_step()
        losses = []
        with self.interruptible():
            for i, row in enumerate(packed):
                last = i == len(packed) - 1
                with nullcontext() if cards == 1 or last else model.no_sync():
                    loss = model(row, divisor)
                    (
                        loss * cards if cards > 1 else loss
                    ).backward()  # several cards take the mean of their gradients, the step wants the sum
                losses.append(loss.detach())
                self.stop_if_asked()
        parts = torch.stack(losses)
        total = parts.sum()
        if cards > 1:
            torch.distributed.all_reduce(total)
        self.current = PendingStep(
            torch.cat([total[None], total[None], parts]),
            None,
            [row.members for row in packed],
            sum(len(ids) for ids, _ in sequences),
        )
        return total


def _why_not_the_engine(folder: Path, config: Config, plan: Plan, device: Device) -> str | None:
    """Why this run takes the plain path (transformers' own layers), or None."""
    if plan.setup.precision == "nf4" and config.lora.quantization.bnb_4bit_quant_type != "nf4":
        return f"bnb_4bit_quant_type in lora_config.yaml is {config.lora.quantization.bnb_4bit_quant_type}"
    if device.kind == "cuda" and plan.setup.compute_dtype != "bfloat16":
        return f"it computes in bfloat16, this plan in {plan.setup.compute_dtype}"
    if device.kind == "cuda" and find_spec("triton") is None:
        return "the package triton is not installed"
    from noesis.training.engine.model import supported

    return supported(folder, config.lora.target_modules, kernels=device.kind == "cuda")


def _engine_trainer(
    folder: Path,
    rows: list[TokenRow],
    config: Config,
    plan: Plan,
    device: Device,
    tokenizer: Any,
    callback: Any,
    lines: Metrics,
    state: Path,
) -> Any:
    import torch
    from datasets import Dataset
    from trl import SFTConfig

    from noesis.training.backends.engine_sft import EngineTrainer
    from noesis.training.engine.model import build

    card = int(os.environ.get("LOCAL_RANK", "0"))
    if device.kind == "cuda":
        torch.cuda.set_device(card)
    torch.manual_seed(config.training.seed)
    made = arguments(
        SFTConfig, config, plan, device, state, engine=True, whole_steps=True
    )  # first: with several cards it joins their group
    smallest = plan.setup.precision == "nf4" and plan.setup.gradient_checkpointing == "full"
    where = f"cuda:{card}" if device.kind == "cuda" else "cpu"
    model = build(
        folder,
        plan.setup,
        lora(config),
        where,
        offload=smallest,
        sharded=plan.sharded,
        nested=config.lora.quantization.bnb_4bit_use_double_quant,
    )
    return EngineTrainer(
        model=model,
        args=made,
        train_dataset=Dataset.from_list(
            [{"input_ids": rows[0].input_ids, "labels": rows[0].labels}]
        ),  # the engine feeds itself
        processing_class=tokenizer,
        callbacks=[callback],
        rows=rows,
        setup=plan.setup,
        metrics=lines,
        sharded=plan.sharded,
    )
