"""DPO with soft labels; the loss is in preference_loss.py.

The rewards β (log π − log π_ref) need the reference's log-probabilities, which never change: they are computed once,
before the first step, by the model as it is then, and stored next to the saved states. No second model or adapter is in
memory.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from transformers import Trainer

from noesis.core.config import Config
from noesis.core.console import Progress
from noesis.core.errors import CapError
from noesis.core.i18n import _
from noesis.llm.token_rows import TokenPair
from noesis.planning.budget import Budget
from noesis.planning.setup import Setup
from noesis.training.backends.build_model import build_model
from noesis.training.backends.pair_trainer import HELD_OUT_FIGURES, PairTrainer
from noesis.training.backends.preference_loss import (
    PairLosses,
    Scorer,
    group_pairs,
    pair_losses,
    preference_loss,
    reward_sums,
    rewards,
)
from noesis.training.backends.run_trainer import TrainerParts
from noesis.training.backends.stepwise import PendingStep, Tensor
from noesis.training.backends.trainer_arguments import trainer_arguments
from noesis.training.job import PreferencePairs, TrainJob
from noesis.training.state.adapter import load_adapter_into
from noesis.training.state.reference_cache import ReferenceCache

STEP_FIGURES = ["preference_loss", "nll", "reward_accuracy", "reward_margin", "reward_chosen", "reward_rejected"]


class PreferenceTrainer(PairTrainer, Trainer):  # type: ignore[misc]
    """`attach` gives it its scorer and its reference."""

    def attach(self, scorer: Scorer, config: Config, held_out: Sequence[TokenPair], reference: PairLosses) -> None:
        """reference: (pairs and held-out pairs, 2), summed negative log-likelihoods of chosen and rejected."""
        self.scorer, self.dpo, self.held_out = scorer, config.training.dpo, held_out
        self.reference = torch.tensor(reference, dtype=torch.float32, device=self.device)

    def training_step(self, model: Any, inputs: Any, num_items_in_batch: Any = None) -> Tensor:
        self.stop_if_asked(between_steps=True)
        indices: list[int] = inputs["indices"]
        pairs = [self.rows[i] for i in indices]
        # the weight of imitating the chosen answer: 0 where it is as likely as not the worse one
        certainty = torch.tensor([2 * pair.p - 1 for pair in pairs], device=self.device)
        tokens = sum(pair.chosen.trained for pair in pairs)
        self.scorer.begin_step()
        groups, losses, figures = group_pairs(pairs, self.setup), [], []
        with self.interruptible():
            for group in groups:
                members = [indices[i] for i in group]
                found = self.scorer.losses([row for i in group for row in pairs[i].sequences]).view(-1, 2)
                reward = rewards(found, self.reference[members], self.dpo.beta)
                p = torch.tensor([pairs[i].p for i in group], device=self.device)
                each = preference_loss(reward[:, 0], reward[:, 1], p)
                nll = (certainty[group] * found[:, 0]).sum() / tokens
                loss = each.sum() / len(pairs) + self.dpo.nll_weight * nll
                loss.backward()
                losses.append(loss.detach())
                means = reward_sums(reward.detach()) / len(pairs)
                figures.append(torch.stack([each.detach().sum() / len(pairs), nll.detach(), *means]))
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
        """Figures of the held-out pairs: `HELD_OUT_FIGURES`; empty without such pairs, or after a signal."""
        if not self.held_out:
            return {}
        found = pair_losses(self.scorer, self.held_out, self.setup, stop=lambda: self.schedule.interrupted)
        if found is None:
            return {}
        reward = rewards(torch.tensor(found), self.reference[-len(self.held_out) :].cpu(), self.dpo.beta)
        accuracy, margin, _, _ = (reward_sums(reward) / len(reward)).tolist()
        loss = sum(chosen for chosen, _ in found) / sum(pair.chosen.trained for pair in self.held_out)
        return dict(zip(HELD_OUT_FIGURES, (accuracy, margin, loss), strict=True))


def build_with_reference(job: TrainJob, parts: TrainerParts) -> PreferenceTrainer:
    """A trainer with its reference, which a resumed run finds on disk; its adapter starts as the job's parent."""
    trainer = build_preference_trainer(job, parts)
    scorer = Scorer(trainer.model.engine)
    against_base = job.config.training.dpo.reference == "base"  # a new adapter adds nothing yet: as if it were off
    if job.parent is not None and not against_base:
        load_adapter_into(trainer.model, job.parent)
    cache = ReferenceCache(job, adapter=None if against_base else job.parent)
    reference = cache.load()
    if reference is None:
        reference = reference_losses(scorer, job.pairs, job.plan.setup, job.budget)
        cache.save(reference)
    if job.parent is not None and against_base:
        load_adapter_into(trainer.model, job.parent)
    trainer.attach(scorer, job.config, job.pairs.held_out, reference)
    return trainer


def build_preference_trainer(job: TrainJob, parts: TrainerParts) -> PreferenceTrainer:
    """The trainer without its reference."""
    torch.manual_seed(job.config.training.seed)
    return PreferenceTrainer(
        model=build_model(job),
        args=trainer_arguments(job, learning_rate=job.config.training.dpo.learning_rate),
        train_dataset=range(len(job.pairs.train)),  # `WholeStepTrainer` feeds itself
        processing_class=parts.tokenizer,
        callbacks=[parts.callback],
        rows=list(job.pairs.train),
        setup=job.plan.setup,
        metrics=parts.metrics,
    )


def reference_losses(scorer: Scorer, data: PreferencePairs, setup: Setup, budget: Budget | None) -> PairLosses:
    """Losses under the current model: of the training pairs, then of the held-out pairs.

    Raises:
        CapError: the budget is spent.
    """
    pairs = [*data.train, *data.held_out]
    with Progress(_("reference"), sum(pair.tokens for pair in pairs), "tok", every_s=15) as progress:
        found = pair_losses(
            scorer, pairs, setup, stop=lambda: budget is not None and budget.left_seconds() <= 0, progress=progress
        )
    if found is None:
        spent = "" if budget is None else budget.describe()
        raise CapError(
            _(
                "stopped at the agreed cap, before the first step: {spent}; "
                "the same command with a higher cap starts again",
                spent=spent,
            )
        )
    return found
