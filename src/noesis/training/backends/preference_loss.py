"""The loss of preference training (DPO, https://arxiv.org/abs/2305.18290), and how answers are scored for it.

For a pair whose chosen answer is the better one with probability p, and Δ the log-odds by which the model prefers it
beyond the reference:

    p · −log σ(β Δ) + (1 − p) · −log σ(−β Δ)  +  nll_weight · the chosen answer's own loss a token
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch.nn.functional import logsigmoid

from noesis.core.console import Progress
from noesis.llm.token_rows import IGNORED, TokenPair
from noesis.planning.setup import Setup
from noesis.training.packing import group_into_rows, pack

Tensor = Any
Sequences = list[tuple[list[int], list[int]]]  # (input_ids, labels) of each
PairLosses = list[list[float]]  # (pairs, 2): summed negative log-likelihoods of chosen and rejected


class Scorer:
    """Computes how unlikely the model finds answers, several of them in one packed row."""

    def __init__(self, engine: Any) -> None:
        self.engine = engine
        engine.training = False  # dropout would be noise in the difference of two log-probabilities

    def begin_step(self) -> None:
        """Called when the adapter may have changed."""
        self.engine.begin_step()

    def losses(self, sequences: Sequences) -> Tensor:
        """Summed negative log-likelihood of each sequence's labelled tokens: (sequences,) float32, with gradient."""
        counts = [sum(label != IGNORED for label in labels[1:]) for _, labels in sequences]
        by_token = self.engine.token_losses(pack(sequences, []))
        return torch.stack([part.sum() for part in by_token.split(counts)])


def rewards(losses: Tensor, reference: Tensor, beta: float) -> Tensor:
    """β (log π − log π_ref) from two tensors of summed negative log-likelihoods."""
    return beta * (reference - losses)


def preference_loss(chosen: Tensor, rejected: Tensor, p: Tensor) -> Tensor:
    """Loss of each pair: (pairs,). chosen, rejected: rewards; p: probability that the chosen one is the better."""
    margin = chosen - rejected
    return -p * logsigmoid(margin) - (1 - p) * logsigmoid(-margin)


def reward_sums(reward: Tensor) -> Tensor:
    """(pairs, 2) rewards → (4,) sums over pairs: chosen above rejected, margin, chosen reward, rejected reward."""
    margin = reward[:, 0] - reward[:, 1]
    return torch.stack([(margin > 0).to(reward.dtype).sum(), margin.sum(), reward[:, 0].sum(), reward[:, 1].sum()])


def group_pairs(pairs: Sequence[TokenPair], setup: Setup) -> list[list[int]]:
    """Indices of the pairs that are computed together."""
    return group_into_rows(
        list(range(len(pairs))),
        [pair.tokens for pair in pairs],
        setup.pack_length if setup.packing else 0,
        setup.micro_batch,
    )


def pair_losses(
    scorer: Scorer,
    pairs: Sequence[TokenPair],
    setup: Setup,
    *,
    stop: Callable[[], bool],
    progress: Progress | None = None,
) -> PairLosses | None:
    """Losses of the pairs in their order, without gradient; None if `stop()` came true."""
    found: PairLosses = [[]] * len(pairs)
    scorer.begin_step()
    with torch.no_grad():
        for group in group_pairs(pairs, setup):
            if stop():
                return None
            losses = scorer.losses([row for i in group for row in pairs[i].sequences]).view(-1, 2).tolist()
            for i, two in zip(group, losses, strict=True):
                found[i] = two
            if progress is not None:
                progress.advance(sum(pairs[i].tokens for i in group))
    return found
