"""Self-distillation: the model answers without help, and the base that reads critique and revision scores each token.

On-policy, as in generalised knowledge distillation (https://arxiv.org/abs/2306.13649); a teacher that is the same model
with more to read, as in https://arxiv.org/abs/2601.19897. The teacher is the base with the adapter off, which does not
move while the model does. A step's answers depend on the seed, the step and the model alone, so that a run that was
stopped goes on exactly.
"""

from __future__ import annotations

from typing import Any

import torch
from transformers import Trainer

from noesis.core.config import Config
from noesis.llm.chat_template import end_of_turn
from noesis.llm.token_rows import IGNORED, DistillPrompt
from noesis.llm.tokenizer import load_tokenizer
from noesis.training.backends.build_model import build_model
from noesis.training.backends.run_trainer import TrainerParts
from noesis.training.backends.stepwise import PendingStep, Tensor, WholeStepTrainer
from noesis.training.backends.trainer_arguments import trainer_arguments
from noesis.training.job import TrainJob
from noesis.training.packing import group_into_rows, pack
from noesis.training.sampling import sample


class DistillTrainer(WholeStepTrainer, Trainer):  # type: ignore[misc]
    """Trains on prompts; `attach` gives it what it samples with."""

    rows: list[DistillPrompt]

    def attach(self, config: Config, stops: list[int]) -> None:
        """stops: ids of tokens that end an answer."""
        self.engine, self.distill, self.stops = self.model.engine, config.training.distill, stops

    def training_step(self, model: Any, inputs: Any, num_items_in_batch: Any = None) -> Tensor:
        self.stop_if_asked(between_steps=True)
        indices: list[int] = inputs["indices"]
        prompts = [self.rows[i] for i in indices]
        self.engine.begin_step()
        answers = sample(
            self.engine,
            [prompt.student for prompt in prompts],
            max_new_tokens=self.distill.max_new_tokens,
            temperature=self.distill.temperature,
            stops=self.stops,
            seed=self.args.seed * 1_000_003 + self.state.global_step,
        )
        self.stop_if_asked()
        student = [_row(prompt.student, answer) for prompt, answer in zip(prompts, answers, strict=True)]
        teacher = [_row(prompt.teacher, answer) for prompt, answer in zip(prompts, answers, strict=True)]
        groups = group_into_rows(
            list(range(len(prompts))),
            [len(ids) for ids, _ in student],
            self.setup.pack_length if self.setup.packing else 0,
            self.setup.micro_batch,
        )
        sampled = sum(map(len, answers))
        divisor, losses = torch.tensor(float(sampled), device=self.engine.device), []
        with self.interruptible():
            for group in groups:
                states = self.engine.base_states(pack([teacher[i] for i in group], []))
                row = pack([student[i] for i in group], [indices[i] for i in group])
                loss = self.engine.divergence_from(row, states, divisor, self.distill.beta)
                loss.backward()
                losses.append(loss.detach())
                self.stop_if_asked()
        group_losses = torch.stack(losses)
        total = group_losses.sum()
        length = torch.tensor([sampled / len(answers)], device=total.device)
        self.current = PendingStep(
            torch.cat([total[None], total[None], group_losses, length]),
            None,
            [[indices[i] for i in group] for group in groups],
            sum(len(ids) for ids, _ in student),
            ["answer_tokens"],
        )
        return total


def build_distill_trainer(job: TrainJob, parts: TrainerParts) -> DistillTrainer:
    """The trainer with its model loaded."""
    torch.manual_seed(job.config.training.seed)
    trainer = DistillTrainer(
        model=build_model(job),
        args=trainer_arguments(job),
        train_dataset=range(len(job.prompts)),  # `WholeStepTrainer` feeds itself
        processing_class=parts.tokenizer,
        callbacks=[parts.callback],
        rows=job.prompts,
        setup=job.plan.setup,
        metrics=parts.metrics,
    )
    tokenizer = load_tokenizer(job.model_folder)
    stops = {end_of_turn(tokenizer), tokenizer.eos_token_id}
    trainer.attach(job.config, sorted(i for i in stops if i is not None))
    return trainer


def _row(prompt: list[int], answer: list[int]) -> tuple[list[int], list[int]]:
    """(input_ids, labels) with the answer trained."""
    return prompt + answer, [IGNORED] * len(prompt) + answer
