"""The figures of a comparison: Kullback-Leibler divergence and first choices at every position, token ids, greedy answers."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Tolerance:
    """What a sound export keeps within."""

    kl_mean: float  # nats
    top1: float  # share of positions with the same first choice
    answers: float = 0.0  # mean share of a greedy answer before the first other token

    def as_json(self) -> dict[str, float]:
        return {"kl_mean": self.kl_mean, "top1": self.top1, "answers": self.answers}


class DivergenceMeter:
    """Running figures of one model against its reference."""

    def __init__(self) -> None:
        self.kl: list[float] = []
        self.same = 0
        self.largest = 0.0
        self.finite = True

    def add(self, reference: Any, logits: Any) -> None:
        """Count one row; both (length, vocabulary) float32."""
        import torch

        if not len(reference):
            return
        ours, theirs = torch.from_numpy(reference), torch.from_numpy(logits[:, : reference.shape[1]])
        if not torch.isfinite(theirs).all():
            self.finite = False
            return
        p, difference = torch.softmax(ours, -1), ours - theirs
        # KL = log Σ p e^-d once Σ p d = 0: in this form float32 keeps the small values that a difference of two logarithms would lose
        centred = difference - (p * difference).sum(-1, keepdim=True)
        kl = torch.log1p((p * torch.expm1(-centred.clamp(min=-40))).sum(-1))
        far = centred.amin(-1) < -40
        kl[far] = torch.logsumexp(torch.log_softmax(ours[far], -1) - centred[far], -1)
        self.kl += kl.clamp(min=0).tolist()
        self.same += int((ours.argmax(-1) == theirs.argmax(-1)).sum())
        self.largest = max(self.largest, float(difference.abs().max()))

    def as_json(self) -> dict[str, Any]:
        """Mean and largest KL (nats), share of equal first choices, largest difference of a logit; None where nothing finite was computed."""
        if not self.finite or not self.kl:
            return {"kl_mean": None, "kl_max": None, "top1": None, "max_logit_difference": None}
        mean, top1 = math.fsum(self.kl) / len(self.kl), self.same / len(self.kl)
        return {"kl_mean": mean, "kl_max": max(self.kl), "top1": round(top1, 5), "max_logit_difference": self.largest}


def within_tolerance(figures: dict[str, Any], tolerance: Tolerance, answers: dict[str, Any] | None = None) -> bool:
    """Whether figures keep to a tolerance."""
    if figures["kl_mean"] is None or figures["kl_mean"] > tolerance.kl_mean or figures["top1"] < tolerance.top1:
        return False
    return answers is None or not answers["prompts"] or answers["shared"] >= tolerance.answers


def answer_agreement(reference: list[list[int]], other: list[list[int]]) -> dict[str, Any]:
    """How far greedy answers agree: those equal to the last token, and the mean share of an answer before the first other token."""
    shares = []
    for ours, theirs in zip(reference, other, strict=True):
        longest = max(len(ours), len(theirs))
        equal = next(
            (i for i, (a, b) in enumerate(zip(ours, theirs, strict=False)) if a != b), min(len(ours), len(theirs))
        )
        shares.append(equal / longest if longest else 1.0)
    return {
        "prompts": len(shares),
        "tokens": sum(map(len, reference)),
        "identical": sum(share == 1.0 for share in shares),
        "shared": round(sum(shares) / len(shares), 4) if shares else 1.0,
    }
