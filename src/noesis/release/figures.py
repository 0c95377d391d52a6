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


class Figures:
    """Running figures of one model against its reference."""

    def __init__(self) -> None:
        self.kl: list[float] = []
        self.same = 0
        self.largest = 0.0
        self.finite = True

    def add(self, reference: Any, logits: Any) -> None:
        """Count one row; both (length, vocabulary) float32."""
        import numpy as np

        logits = logits[:, : reference.shape[1]]
        if not np.isfinite(logits).all():
            self.finite = False
            return
        p, q = _log_softmax(reference), _log_softmax(logits)
        self.kl += [max(0.0, float(k)) for k in (np.exp(p) * (p - q)).sum(axis=-1)]
        self.same += int((reference.argmax(-1) == logits.argmax(-1)).sum())
        self.largest = max(self.largest, float(np.abs(reference - logits).max()))

    def as_json(self) -> dict[str, Any]:
        """Mean and largest KL (nats), share of equal first choices, largest difference of a logit; None where nothing finite was computed."""
        if not self.finite or not self.kl:
            return {"kl_mean": None, "kl_max": None, "top1": None, "max_logit_difference": None}
        mean, top1 = math.fsum(self.kl) / len(self.kl), self.same / len(self.kl)
        return {"kl_mean": mean, "kl_max": max(self.kl), "top1": round(top1, 5), "max_logit_difference": self.largest}


def within(figures: dict[str, Any], tolerance: Tolerance, answers: dict[str, Any] | None = None) -> bool:
    """Whether figures keep to a tolerance."""
    if figures["kl_mean"] is None or figures["kl_mean"] > tolerance.kl_mean or figures["top1"] < tolerance.top1:
        return False
    return answers is None or not answers["prompts"] or answers["shared"] >= tolerance.answers


def agreement(reference: list[list[int]], other: list[list[int]]) -> dict[str, Any]:
    """How far greedy answers agree: those equal to the last token, and the mean share of an answer before the first other token."""
    shares = []
    for ours, theirs in zip(reference, other, strict=True):
        longest = max(len(ours), len(theirs))
        equal = next((i for i, (a, b) in enumerate(zip(ours, theirs, strict=False)) if a != b), min(len(ours), len(theirs)))
        shares.append(equal / longest if longest else 1.0)
    return {
        "prompts": len(shares),
        "tokens": sum(map(len, reference)),
        "identical": sum(share == 1.0 for share in shares),
        "shared": round(sum(shares) / len(shares), 4) if shares else 1.0,
    }


def _log_softmax(logits: Any) -> Any:
    import numpy as np

    shifted = logits.astype(np.float64) - logits.max(axis=-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True))
