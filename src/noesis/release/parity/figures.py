"""Distance between two models: KL divergence and top-1 agreement at every position, agreement of greedy answers."""

from __future__ import annotations

import math
from typing import Any

from noesis.core.text import common_prefix
from noesis.release.parity.certificate import AnswerAgreement, Divergence, Tolerance

# Below this the rewritten KL loses precision, and the textbook form is used.
LARGEST_DIFFERENCE = 40.0


class DivergenceMeter:
    """Accumulates the Divergence of one model from its reference, row by row."""

    def __init__(self) -> None:
        self.kl: list[float] = []  # nats, one per position
        self.same_top1 = 0
        self.max_difference = 0.0
        self.finite = True

    def add(self, reference: Any, logits: Any) -> None:
        """Count one row.

        Args:
            reference: (length, vocabulary) float32.
            logits: (length, at least vocabulary) float32; padding beyond the vocabulary is ignored.
        """
        import torch

        if not len(reference):
            return
        ours, theirs = torch.from_numpy(reference), torch.from_numpy(logits[:, : reference.shape[1]])
        if not torch.isfinite(theirs).all():
            self.finite = False
            return
        p, difference = torch.softmax(ours, -1), ours - theirs
        # With d centred so that Σ p d = 0, KL = log Σ p e^-d. Float32 keeps small values in this form; the difference
        # of two logarithms would lose them.
        centred = difference - (p * difference).sum(-1, keepdim=True)
        kl = torch.log1p((p * torch.expm1(-centred.clamp(min=-LARGEST_DIFFERENCE))).sum(-1))
        extreme = centred.amin(-1) < -LARGEST_DIFFERENCE
        kl[extreme] = torch.logsumexp(torch.log_softmax(ours[extreme], -1) - centred[extreme], -1)
        self.kl += kl.clamp(min=0).tolist()
        self.same_top1 += int((ours.argmax(-1) == theirs.argmax(-1)).sum())
        self.max_difference = max(self.max_difference, float(difference.abs().max()))

    def result(self) -> Divergence:
        """The figures so far; None in each where a logit was not finite, or nothing was added."""
        if not self.finite or not self.kl:
            return Divergence(None, None, None, None)
        positions = len(self.kl)
        return Divergence(
            kl_mean=math.fsum(self.kl) / positions,
            kl_max=max(self.kl),
            top1=round(self.same_top1 / positions, 5),
            max_logit_difference=self.max_difference,
        )


def within_tolerance(divergence: Divergence, tolerance: Tolerance, answers: AnswerAgreement | None = None) -> bool:
    """Whether the figures stay within a tolerance; figures that are not finite never do."""
    if divergence.kl_mean is None or divergence.top1 is None:
        return False
    if divergence.kl_mean > tolerance.kl_mean or divergence.top1 < tolerance.top1:
        return False
    return answers is None or not answers.prompts or answers.shared >= tolerance.answers


def answer_agreement(reference: list[list[int]], other: list[list[int]]) -> AnswerAgreement:
    """Compare greedy answers, given as token ids, prompt by prompt."""
    shares = []
    for ours, theirs in zip(reference, other, strict=True):
        longest = max(len(ours), len(theirs))
        shares.append(common_prefix(ours, theirs) / longest if longest else 1.0)
    return AnswerAgreement(
        prompts=len(shares),
        tokens=sum(map(len, reference)),
        identical=sum(share == 1.0 for share in shares),
        shared=round(sum(shares) / len(shares), 4) if shares else 1.0,
    )
