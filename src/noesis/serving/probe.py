"""Does an endpoint answer as this run's model? A chat, and a parity sample: the same greedy tokens with the same probabilities.

Both sides are asked the same conversations at temperature 0. As long as they chose the same tokens they stand before the same text, and
there the probability that each gives to the run's choice is compared; so it is at the first position where they part. The base is asked
as well, where it is at hand: an endpoint that serves the base by mistake is as far from it as the tuned model is.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from noesis.core.messages import Message
from noesis.llm.clients.chat_client import Completion, LLMClient

TOKENS = 24  # of each answer
TOP = 5
FLOOR = -9.0  # log-probability for a token that the endpoint does not list
TOLERANCE = 0.15  # mean |Δ log-probability|; see docs/integrate.md for what was measured
SHARE_WITHOUT = 0.5  # of the characters, where the endpoint gives no probabilities


@dataclass(frozen=True)
class AnswerDistance:
    """How far two sets of answers are apart.

    positions: tokens compared; 0 where there are no probabilities
    mean: |Δ log-probability| of the reference's choice; infinite where positions is 0
    same: share of the answers' characters before they part
    """

    positions: int
    mean: float
    same: float


def ask_endpoint(client: LLMClient, conversations: Sequence[list[Message]], **more: Any) -> list[Completion]:
    """A greedy answer to each."""
    return [
        client.complete(c, temperature=0, max_tokens=TOKENS, logprobs=True, top_logprobs=TOP, **more)
        for c in conversations
    ]


def answer_distance(reference: Sequence[Completion], found: Sequence[Completion]) -> AnswerDistance:
    """Compare answers to the same conversations."""
    deltas, same, length = [], 0, 0
    for r, f in zip(reference, found, strict=True):
        for mine, theirs in zip(r.logprobs, f.logprobs, strict=False):
            listed = {_bytes(t): float(t["logprob"]) for t in [*(theirs.get("top_logprobs") or []), theirs]}
            deltas.append(abs(max(float(mine["logprob"]), FLOOR) - max(listed.get(_bytes(mine), FLOOR), FLOOR)))
            if _bytes(mine) != _bytes(theirs):
                break
        same += next(
            (i for i, (a, b) in enumerate(zip(r.text, f.text, strict=False)) if a != b), min(len(r.text), len(f.text))
        )
        length += max(len(r.text), len(f.text))
    return AnswerDistance(
        len(deltas), sum(deltas) / len(deltas) if deltas else math.inf, same / length if length else 0.0
    )


def same_model_verdict(tuned: AnswerDistance, base: AnswerDistance | None) -> tuple[bool, str]:
    """Whether the endpoint is the tuned model, and why."""
    if not tuned.positions:
        near = tuned.same >= SHARE_WITHOUT and (base is None or tuned.same > base.same)
        return (
            near,
            f"the endpoint gives no log-probabilities; {tuned.same:.0%} of the greedy text is the same (a weaker proof)",
        )
    figures = (
        f"mean difference of log-probabilities {tuned.mean:.4f} at {tuned.positions} positions (at most {TOLERANCE})"
    )
    if tuned.mean > TOLERANCE:
        return False, figures
    if base is not None and base.positions and base.mean <= tuned.mean:
        return False, f"{figures}; the base, at {base.mean:.4f}, is nearer"
    return True, figures + (f"; the base is at {base.mean:.4f}" if base is not None and base.positions else "")


def _bytes(entry: dict[str, Any]) -> bytes:
    """A token as bytes; endpoints that give none are taken at their text."""
    given = entry.get("bytes")
    return bytes(given) if isinstance(given, list) else str(entry.get("token", "")).encode()
