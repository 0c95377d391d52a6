"""A reward model by Bradley and Terry: the better answer of a pair is to get the higher of two scalars.

For a pair whose chosen answer is the better one with probability p, rewards r and margin m = r_chosen − r_rejected:

    p · −log σ(m) + (1 − p) · −log σ(−m)  +  centring · (r_chosen + r_rejected)²

A reward is a linear function of the hidden states after the last norm: of the last token's, or of their mean over the
answer's tokens (https://arxiv.org/abs/2203.02155; the centring term is https://arxiv.org/abs/2312.09244's). The head
starts at 0, so that training begins from indifference and not from a random preference.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from transformers import Trainer

from noesis.llm.token_rows import IGNORED, TokenPair
from noesis.planning.setup import Setup
from noesis.training.backends.build_model import build_model
from noesis.training.backends.pair_trainer import HELD_OUT_FIGURES, PairTrainer
from noesis.training.backends.preference_loss import Sequences, group_pairs, preference_loss, reward_sums
from noesis.training.backends.run_trainer import TrainerParts
from noesis.training.backends.stepwise import PendingStep, Tensor
from noesis.training.backends.trainer_arguments import trainer_arguments
from noesis.training.job import RewardHead, TrainJob
from noesis.training.packing import pack

STEP_FIGURES = ["preference_loss", "centring", "reward_accuracy", "reward_margin", "reward_chosen", "reward_rejected"]


class RewardTrainer(PairTrainer, Trainer):  # type: ignore[misc]
    """`attach` gives it the pairs that are only measured, and how rewards are read from hidden states."""

    def attach(self, held_out: Sequence[TokenPair], head: RewardHead) -> None:
        self.held_out, self.head = held_out, head

    def training_step(self, model: Any, inputs: Any, num_items_in_batch: Any = None) -> Tensor:
        self.stop_if_asked(between_steps=True)
        indices: list[int] = inputs["indices"]
        pairs = [self.rows[i] for i in indices]
        engine = self.model.engine
        engine.training = True
        engine.begin_step()
        groups, losses, figures = group_pairs(pairs, self.setup), [], []
        with self.interruptible():
            for group in groups:
                reward = rewards(self.model, [row for i in group for row in pairs[i].sequences], self.head).view(-1, 2)
                p = torch.tensor([pairs[i].p for i in group], device=self.device)
                each = preference_loss(reward[:, 0], reward[:, 1], p)
                centring = self.head.centring * reward.sum(1).square().sum() / len(pairs)
                loss = each.sum() / len(pairs) + centring
                loss.backward()
                losses.append(loss.detach())
                means = reward_sums(reward.detach()) / len(pairs)
                figures.append(torch.stack([each.detach().sum() / len(pairs), centring.detach(), *means]))
                self.stop_if_asked()
        group_losses = torch.stack(losses)
        total = group_losses.sum()
        self.current = PendingStep(
            torch.cat([total[None], total[None], group_losses, torch.stack(figures).sum(0)]),
            None,
            [[indices[i] for i in group] for group in groups],
            sum(pair.tokens for pair in pairs),
            STEP_FIGURES,
        )
        return total

    def measure_held_out(self) -> dict[str, float]:
        if not self.held_out:
            return {}
        found = held_out_rewards(self.model, self.held_out, self.setup, self.head, stop=self.schedule)
        if found is None:
            return {}
        p = torch.tensor([pair.p for pair in self.held_out])
        loss = float(preference_loss(found[:, 0], found[:, 1], p).mean())
        accuracy, margin, _, _ = (reward_sums(found) / len(found)).tolist()
        return dict(zip(HELD_OUT_FIGURES, (accuracy, margin, loss), strict=True))


def rewards(model: Any, sequences: Sequences, head: RewardHead) -> Tensor:
    """The reward of each sequence, whose labels say which tokens are the answer's: (sequences,) float32."""
    states = model.engine.states(pack(sequences, []))
    lengths = [len(ids) for ids, _ in sequences]
    pooled = []
    for part, (_, labels) in zip(states[: sum(lengths)].split(lengths), sequences, strict=True):
        first = next(i for i, label in enumerate(labels) if label != IGNORED)
        pooled.append(part[-1].float() if head.pool == "last" else part[first:].float().mean(0))
    found: Tensor = model.reward_head(torch.stack(pooled))[:, 0]
    return found


def held_out_rewards(
    model: Any, pairs: Sequence[TokenPair], setup: Setup, head: RewardHead, *, stop: Any
) -> Tensor | None:
    """(pairs, 2) rewards of chosen and rejected, without dropout and gradient; None after a signal."""
    found = torch.zeros(len(pairs), 2)
    model.engine.training = False
    model.engine.begin_step()
    with torch.no_grad():
        for group in group_pairs(pairs, setup):
            if stop.interrupted:
                return None
            found[group] = rewards(model, [row for i in group for row in pairs[i].sequences], head).view(-1, 2).cpu()
    return found


def build_reward_trainer(job: TrainJob, parts: TrainerParts) -> RewardTrainer:
    """The trainer with its model; the head is one of the model's modules, so that it is trained, saved and resumed."""
    if job.reward is None:
        raise TypeError("a job that names no reward head trains a model that writes")
    torch.manual_seed(job.config.training.seed)
    model = build_model(job)
    head = torch.nn.Linear(model.config.hidden_size, 1, bias=False, device=model.engine.device, dtype=torch.float32)
    torch.nn.init.zeros_(head.weight)
    model.reward_head = head
    trainer = RewardTrainer(
        model=model,
        args=trainer_arguments(job, learning_rate=job.config.training.dpo.learning_rate),
        train_dataset=range(len(job.pairs.train)),  # `WholeStepTrainer` feeds itself
        processing_class=parts.tokenizer,
        callbacks=[parts.callback],
        rows=list(job.pairs.train),
        setup=job.plan.setup,
        metrics=parts.metrics,
    )
    trainer.attach(job.pairs.held_out, job.reward)
    return trainer
