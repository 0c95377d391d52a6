"""Preference training by TRL's DPOTrainer (Rafailov et al., arXiv 2305.18290) on pairs of token rows: `noesis train --method dpo|sft+dpo`.

For a pair whose first answer is the better one with probability p, and Δ how much further than the reference the model tells them apart:

    p · −log σ(β Δ) + (1 − p) · −log σ(−β Δ)  +  nll_weight · the chosen answer's own loss a token

The rewards β (log π − log π_ref) need the reference's log-probabilities, which never change: they are computed once, before the first
step, by the model as it stands then, and kept beside the saved states. No second model or adapter is held.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import torch
from torch.nn.functional import logsigmoid
from trl import DPOConfig, DPOTrainer

from noesis.core.config import Config
from noesis.core.console import Progress
from noesis.core.device import Device
from noesis.core.errors import CapError
from noesis.core.files import write_jsonl
from noesis.llm.token_rows import TokenPair
from noesis.planning.budget import Budget
from noesis.planning.plan import Plan
from noesis.planning.setup import Setup
from noesis.training.backends.stepwise import PendingStep, WholeStepTrainer
from noesis.training.backends.trl_arguments import arguments
from noesis.training.base_model import arithmetic, load_base, lora
from noesis.training.job import PreferencePairs
from noesis.training.packing import grouped, pack
from noesis.training.recorder import Metrics
from noesis.training.state.reference_cache import load_reference, save_reference

Tensor = Any
Sequences = list[tuple[list[int], list[int]]]
OTHERS = ["preference_loss", "nll", "reward_accuracy", "reward_margin", "reward_chosen", "reward_rejected"]
HELD_OUT = ("held_out_reward_accuracy", "held_out_reward_margin", "held_out_loss")


class Scorer(Protocol):
    """Finds how unlikely answers are."""

    def begin_step(self) -> None:
        """The adapter may have changed."""

    def losses(self, sequences: Sequences) -> Tensor:
        """Summed negative log-likelihood of each sequence's labelled tokens: (sequences,) float32, with gradient."""


class EngineScorer:
    """By the engine: the sequences in one packed row."""

    def __init__(self, engine: Any) -> None:
        self.engine = engine
        engine.training = False  # dropout would be noise in the difference of two log-probabilities

    def begin_step(self) -> None:
        self.engine.begin_step()

    def losses(self, sequences: Sequences) -> Tensor:
        counts = [sum(label >= 0 for label in labels[1:]) for _, labels in sequences]
        by_token = self.engine.token_losses(pack(sequences, []))
        return torch.stack([part.sum() for part in by_token.split(counts)])


class PlainScorer:
    """By transformers' own layers and TRL's output layer: the sequences padded to the longest."""

    def __init__(self, model: Any, config: Config, device: Device, pad: int) -> None:
        self.model, self.config, self.device, self.pad = model, config, device, pad

    def begin_step(self) -> None:
        """Nothing is kept from step to step."""

    def losses(self, sequences: Sequences) -> Tensor:
        longest = max(len(ids) for ids, _ in sequences)

        def filled(rows: list[list[int]], filler: int) -> Tensor:
            return torch.tensor([row + [filler] * (longest - len(row)) for row in rows], device=self.model.device)

        ids, labels = [ids for ids, _ in sequences], [labels for _, labels in sequences]
        inputs = {
            "input_ids": filled(ids, self.pad),
            "attention_mask": filled([[1] * len(row) for row in ids], 0),
            "labels": filled(labels, -100),
        }
        with arithmetic(self.model, self.config, self.device):
            return -self.model(**inputs, use_cache=False, fused_lm_head=True).log_probs.float().sum(1)


def rewards(losses: Tensor, reference: Tensor, beta: float) -> Tensor:
    """β (log π − log π_ref) from two tensors of summed negative log-likelihoods."""
    return beta * (reference - losses)


def preference_loss(chosen: Tensor, rejected: Tensor, p: Tensor) -> Tensor:
    """Loss of each pair: (pairs,). chosen, rejected: rewards; p: how likely the chosen one is the better."""
    margin = chosen - rejected
    return -p * logsigmoid(margin) - (1 - p) * logsigmoid(-margin)


class PreferenceTrainer(WholeStepTrainer, DPOTrainer):  # type: ignore[misc]
    """DPOTrainer whose loss knows soft labels, on pairs that are tokens already. `attach` gives it its scorer and its reference."""

    rows: list[TokenPair]

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        if "ref" in self.model.peft_config:  # TRL's copy of the adapter; the reference's numbers are known
            self.model.delete_adapter("ref")

    def _prepare_dataset(self, dataset: Any, *args: Any, **kwargs: Any) -> Any:
        return dataset

    def attach(
        self, scorer: Scorer, config: Config, held_out: Sequence[TokenPair], reference: list[list[float]]
    ) -> None:
        """reference: (pairs and held-out pairs, 2), summed negative log-likelihoods of chosen and rejected."""
        self.scorer, self.dpo, self.held_out = scorer, config.training.dpo, held_out
        self.reference = torch.tensor(reference, dtype=torch.float32, device=self.device)

    def training_step(self, model: Any, inputs: Any, num_items_in_batch: Any = None) -> Tensor:
        self.stop_if_asked(between_steps=True)
        model.train()
        indices: list[int] = inputs["indices"]
        pairs = [self.rows[i] for i in indices]
        certainty = torch.tensor(
            [2 * pair.p - 1 for pair in pairs], device=self.device
        )  # of an answer that is no better nothing is imitated
        tokens = sum(pair.chosen.trained for pair in pairs)
        self.scorer.begin_step()
        groups, losses, figures = groups_of(pairs, self.setup), [], []
        with self.interruptible():
            for group in groups:
                members = [indices[i] for i in group]
                found = self.scorer.losses([row for i in group for row in pairs[i].sequences]).view(-1, 2)
                reward = rewards(found, self.reference[members], self.beta)
                p = torch.tensor([pairs[i].p for i in group], device=self.device)
                each = preference_loss(reward[:, 0], reward[:, 1], p)
                nll = (certainty[group] * found[:, 0]).sum() / tokens
                loss = each.sum() / len(pairs) + self.dpo.nll_weight * nll
                loss.backward()
                losses.append(loss.detach())
                figures.append(
                    torch.stack(
                        [each.detach().sum() / len(pairs), nll.detach(), *(_told(reward.detach()) / len(pairs))]
                    )
                )
                self.stop_if_asked()
        parts = torch.stack(losses)
        total = parts.sum()
        named = [[indices[i] for i in group] for group in groups]
        values = torch.cat([total[None], total[None], parts, torch.stack(figures).sum(0)])
        self.current = PendingStep(values, None, named, sum(pair.tokens for pair in pairs), OTHERS)
        return total

    def after_step(self, step: int) -> dict[str, float]:
        return self.measure() if step % len(self.steps) == 0 else {}

    def begun(self) -> None:
        """Measure after all what a signal kept from being measured at the end of an epoch."""
        lines = self.metrics.kept
        if lines and lines[-1]["step"] % len(self.steps) == 0 and HELD_OUT[0] not in lines[-1]:
            lines[-1] |= self.measure()
            write_jsonl(self.metrics.file, lines)

    def measure(self) -> dict[str, float]:
        """Rewards of the held-out pairs, and mean loss a token of their chosen answers; nothing if there are none, or after a signal."""
        if not self.held_out:
            return {}
        found = losses_of(self.scorer, self.held_out, self.setup, stop=lambda: self.pace.interrupted)
        if found is None:
            return {}
        reward = rewards(torch.tensor(found), self.reference[-len(self.held_out) :].cpu(), self.beta)
        accuracy, margin, _, _ = (_told(reward) / len(reward)).tolist()
        loss = sum(chosen for chosen, _ in found) / sum(pair.chosen.trained for pair in self.held_out)
        return dict(zip(HELD_OUT, (accuracy, margin, loss), strict=True))

    def place(self, members: list[int]) -> str:
        return ", ".join(self.rows[m].name for m in members)


def _told(reward: Tensor) -> Tensor:
    """(4,) sums over pairs of: chosen above rejected, margin, the chosen answer's reward, the rejected one's."""
    margin = reward[:, 0] - reward[:, 1]
    return torch.stack([(margin > 0).to(reward.dtype).sum(), margin.sum(), reward[:, 0].sum(), reward[:, 1].sum()])


def groups_of(pairs: Sequence[TokenPair], setup: Setup) -> list[list[int]]:
    """Indices of the pairs that are computed together."""
    return grouped(
        list(range(len(pairs))),
        [pair.tokens for pair in pairs],
        setup.pack_length if setup.packing else 0,
        setup.micro_batch,
    )


def losses_of(
    scorer: Scorer, pairs: Sequence[TokenPair], setup: Setup, *, stop: Any = None, progress: Progress | None = None
) -> list[list[float]] | None:
    """Summed negative log-likelihoods of chosen and rejected, in the pairs' order; None if `stop()` came true."""
    found: list[list[float]] = [[]] * len(pairs)
    scorer.begin_step()
    with torch.no_grad():
        for group in groups_of(pairs, setup):
            if stop is not None and stop():
                return None
            values = scorer.losses([row for i in group for row in pairs[i].sequences]).view(-1, 2).tolist()
            for i, value in zip(group, values, strict=True):
                found[i] = value
            if progress is not None:
                progress.advance(sum(pairs[i].tokens for i in group))
    return found


def reference_losses(scorer: Scorer, data: PreferencePairs, setup: Setup, budget: Budget | None) -> list[list[float]]:
    """What the model finds as it stands, of the pairs to train on and then of those held out.

    Raises:
        CapError: the agreed amount is spent.
    """
    pairs = [*data.train, *data.held_out]
    with Progress("reference", sum(pair.tokens for pair in pairs), "tok", every_s=15) as progress:
        found = losses_of(
            scorer, pairs, setup, stop=lambda: budget is not None and budget.left_seconds() <= 0, progress=progress
        )
    if found is None:
        assert budget is not None
        raise CapError(
            f"stopped at what was agreed, before the first step: {budget.describe()}; the same command with a higher cap begins again"
        )
    return found


def trainer_of(
    folder: Path,
    data: PreferencePairs,
    config: Config,
    plan: Plan,
    device: Device,
    tokenizer: Any,
    callback: Any,
    lines: Metrics,
    state: Path,
    *,
    engine: bool,
) -> PreferenceTrainer:
    """The trainer without its reference, on the engine or on transformers' own layers."""
    from datasets import Dataset
    from peft import get_peft_model

    from noesis.training.engine.model import build

    dpo, setup = config.training.dpo, plan.setup
    torch.manual_seed(config.training.seed)
    made = arguments(
        DPOConfig,
        config,
        plan,
        device,
        state,
        engine=engine,
        whole_steps=True,
        learning_rate=dpo.learning_rate,
        beta=dpo.beta,
    )
    if engine:
        smallest = setup.precision == "nf4" and setup.gradient_checkpointing == "full"
        nested = config.lora.quantization.bnb_4bit_use_double_quant
        model = build(
            folder, setup, lora(config), "cuda:0" if device.kind == "cuda" else "cpu", offload=smallest, nested=nested
        )
    else:
        model = get_peft_model(load_base(folder, config, device, longest=plan.longest_row), lora(config))
    trainer = PreferenceTrainer(
        model=model,
        args=made,
        train_dataset=Dataset.from_list(
            [{"prompt_ids": [0], "chosen_ids": [0], "rejected_ids": [0]}]
        ),  # `Stepwise` feeds the trainer itself
        processing_class=tokenizer,
        callbacks=[callback],
        rows=list(data.train),
        setup=setup,
        metrics=lines,
    )
    for parameter in trainer.model.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.float()  # TRL casts the adapter on a quantised base to bfloat16
    return trainer


def scorer_of(trainer: PreferenceTrainer, config: Config, device: Device, *, engine: bool) -> Scorer:
    """How `trainer`'s model is scored."""
    return (
        EngineScorer(trainer.model.engine)
        if engine
        else PlainScorer(trainer.model, config, device, int(trainer.processing_class.pad_token_id))
    )


def _preference_trainer(
    folder: Path,
    data: PreferencePairs,
    config: Config,
    plan: Plan,
    device: Device,
    tokenizer: Any,
    callback: Any,
    lines: Metrics,
    state: Path,
    *,
    engine: bool,
    start: Path | None,
    budget: Budget | None,
) -> Any:
    """A trainer with its reference, which a run that goes on finds beside its states; its adapter begins as `start`."""
    from noesis.training.state.adapter import load_adapter_into

    trainer = trainer_of(folder, data, config, plan, device, tokenizer, callback, lines, state, engine=engine)
    scorer = scorer_of(trainer, config, device, engine=engine)
    base = config.training.dpo.reference == "base"  # a new adapter adds nothing yet: as if it were switched off
    if start is not None and not base:
        load_adapter_into(trainer.model, start)
    file = state.with_name("reference.json")
    against = None if base else start
    found = load_reference(file, data, against, plan)
    if found is None:
        found = reference_losses(scorer, data, plan.setup, budget)
        save_reference(file, data, against, plan, found)
    if start is not None and base:
        load_adapter_into(trainer.model, start)
    trainer.attach(scorer, config, data.held_out, found)
    return trainer
