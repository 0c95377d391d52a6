"""SFT on the layers of transformers, by TRL's SFTTrainer: for what the engine does not know."""

from __future__ import annotations

from typing import Any

from noesis.core.config import Config
from noesis.core.console import command, say
from noesis.core.device import Device
from noesis.core.errors import TrainingError
from noesis.training.backends.engine_sft import engine_refusal
from noesis.training.backends.trl_arguments import trl_arguments
from noesis.training.backends.trl_run import TrainerParts, run_trainer
from noesis.training.base_model import compute_context, keep_adapter_in_float32, load_base, lora_config
from noesis.training.job import TrainJob, TrainResult
from noesis.training.loss import answer_loss


class TransformersSft:
    """Takes every SFT job: whatever transformers can load."""

    name = "transformers"

    def refusal_reason(self, job: TrainJob) -> str | None:
        return None

    def train(self, job: TrainJob) -> TrainResult:
        say_not_on_engine(job)
        return run_trainer(job, build_transformers_trainer)


def say_not_on_engine(job: TrainJob) -> None:
    """Say why a GPU is used more slowly than it could be."""
    if job.device.kind == "cuda" and (reason := engine_refusal(job)) is not None:
        say(f"  trained on transformers' layers, which is slower than the engine: {reason}")


def build_transformers_trainer(job: TrainJob, parts: TrainerParts) -> Any:
    """The trainer with its model loaded."""
    from datasets import Dataset
    from trl import SFTConfig

    from noesis.training.dropout import use_byte_dropout

    trainer = _trainer_class(job.config, job.device)(
        model=load_base(job.model_folder, job.config, job.device, longest=job.plan.longest_row),
        args=trl_arguments(SFTConfig, job, engine=False, whole_steps=False),
        train_dataset=Dataset.from_list([{"input_ids": row.input_ids, "labels": row.labels} for row in job.rows]),
        processing_class=parts.tokenizer,
        peft_config=lora_config(job.config, job.model_folder),
        callbacks=[parts.callback],
    )
    keep_adapter_in_float32(trainer.model)
    if job.device.kind == "cpu":
        use_byte_dropout(trainer.model)
    return trainer


def _trainer_class(config: Config, device: Device) -> Any:
    """SFTTrainer with the loss of the trained tokens only; it stops before a loss that is not finite is applied."""
    import torch
    from trl import SFTTrainer

    from noesis.training.state.resumable import Resumable

    class Trainer(Resumable, SFTTrainer):  # type: ignore[misc]
        micro_batches_done = 0  # of the step under way
        tokens_seen = 0  # of the rows trained on in this process, padding not counted

        def compute_loss(
            self, model: Any, inputs: Any, return_outputs: bool = False, num_items_in_batch: Any = None
        ) -> Any:
            self.tokens_seen += int(inputs["attention_mask"].sum())
            adapted = self.accelerator.unwrap_model(model)
            with compute_context(adapted, config, device):
                return answer_loss(adapted.get_base_model(), inputs, num_items_in_batch)

        def training_step(self, model: Any, inputs: Any, *args: Any, **kwargs: Any) -> Any:
            self.stop_if_asked(between_steps=self.micro_batches_done == 0)
            with self.interruptible():
                loss = super().training_step(model, inputs, *args, **kwargs)
            if not torch.isfinite(loss):
                raise TrainingError(
                    f"the loss is {float(loss)} at step {self.state.global_step + 1}; "
                    "nothing of this step was applied. Lower learning_rate in training_config.yaml, "
                    f"or look for odd examples with  {command('data', 'validate')}"
                )
            self.stop_if_asked()
            self.micro_batches_done += 1
            return loss

        def step_ended(self) -> None:
            self.micro_batches_done = 0
            super().step_ended()

    return Trainer
