"""SFT on the layers of transformers, by TRL's SFTTrainer."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from noesis.core.config import Config
from noesis.core.device import Device
from noesis.core.errors import TrainingError
from noesis.llm.token_rows import TokenRow
from noesis.planning.plan import Plan
from noesis.training.backends.trl_arguments import arguments
from noesis.training.base_model import arithmetic, load_base, lora
from noesis.training.loss import answer_loss
from noesis.training.recorder import Metrics


def _plain_trainer(
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
    from datasets import Dataset
    from trl import SFTConfig

    from noesis.training.dropout import use_byte_dropout

    trainer = _trainer_class(config, device)(
        model=load_base(folder, config, device, longest=plan.longest_row),
        args=arguments(SFTConfig, config, plan, device, state, engine=False, whole_steps=False),
        train_dataset=Dataset.from_list([{"input_ids": row.input_ids, "labels": row.labels} for row in rows]),
        processing_class=tokenizer,
        peft_config=lora(config),
        callbacks=[callback],
    )
    # TRL casts the adapter on a quantised base to bfloat16, in which steps of 2e-4 round away; the update is kept in float32.
    for parameter in trainer.model.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.float()
    if device.kind == "cpu":
        use_byte_dropout(trainer.model)
    return trainer


def _trainer_class(config: Config, device: Device) -> Any:
    """SFTTrainer with the loss of the trained tokens only, which stops before a loss that is not finite is applied."""
    import torch
    from trl import SFTTrainer

    from noesis.training.state.resumable import Resumable

    class Trainer(Resumable, SFTTrainer):  # type: ignore[misc]
        writes_itself = False
        micro_batches_done = 0  # of the step under way
        tokens_seen = 0  # of the rows trained on in this process, padding not counted

        def begin_epoch(self, epoch: int) -> None:
            """The sampler of transformers knows by itself."""

        def settle(self) -> None:
            """Every step's figures are read at once."""

        def compute_loss(
            self, model: Any, inputs: Any, return_outputs: bool = False, num_items_in_batch: Any = None
        ) -> Any:
            self.tokens_seen += int(inputs["attention_mask"].sum())
            adapted = self.accelerator.unwrap_model(model)
            with arithmetic(adapted, config, device):
                return answer_loss(adapted.get_base_model(), inputs, num_items_in_batch)

        def training_step(self, model: Any, inputs: Any, *args: Any, **kwargs: Any) -> Any:
            self.stop_if_asked(between_steps=self.micro_batches_done == 0)
            with self.interruptible():
                loss = super().training_step(model, inputs, *args, **kwargs)
            if not torch.isfinite(loss):
                raise TrainingError(
                    f"the loss is {float(loss)} at step {self.state.global_step + 1}; nothing of this step was applied. "
                    "Lower learning_rate in training_config.yaml, or look for odd examples with  noesis data validate"
                )
            self.stop_if_asked()
            self.micro_batches_done += 1
            return loss

        def step_ended(self) -> None:
            self.micro_batches_done = 0
            super().step_ended()

    return Trainer
