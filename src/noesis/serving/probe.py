"""Does an endpoint answer as this run's model? `noesis connect RUN --probe` compares greedy tokens and probabilities.

Endpoint and reference get the same conversations at temperature 0. Up to and including the first position where their
tokens differ, both continue the same text, and the log-probabilities that they give to the reference's token are
compared. The base is measured as well where it is at hand, to recognise an endpoint that serves the base by mistake.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from noesis.core.i18n import _
from noesis.core.messages import Message
from noesis.core.text import common_prefix
from noesis.llm.clients.chat_client import Completion, LLMClient

TOKENS = 24  # of each answer
TOP_LOGPROBS = 5
FLOOR = -9.0  # log-probability of a token that the endpoint does not list
TOLERANCE = 0.15  # mean |Δ log-probability|; see docs/integrate.md for what was measured
MIN_SAME_TEXT = 0.5  # share of characters, where the endpoint gives no probabilities


@dataclass(frozen=True)
class AnswerDistance:
    """Distance between two sets of answers."""

    positions: int  # tokens compared; 0 where there are no probabilities
    mean: float  # |Δ log-probability| of the reference's tokens; infinite where positions is 0
    same: float  # share of the answers' characters before the first difference


def ask_endpoint(client: LLMClient, conversations: Sequence[list[Message]], **more: Any) -> list[Completion]:
    """A greedy answer to each conversation, with log-probabilities."""
    return [
        client.complete(c, temperature=0, max_tokens=TOKENS, logprobs=True, top_logprobs=TOP_LOGPROBS, **more)
        for c in conversations
    ]


def answer_distance(reference: Sequence[Completion], found: Sequence[Completion]) -> AnswerDistance:
    """Compare an endpoint's answers (`found`) with the reference's to the same conversations."""
    deltas, same, length = [], 0, 0
    for r, f in zip(reference, found, strict=True):
        for ours, theirs in zip(r.logprobs, f.logprobs, strict=False):
            listed = {_bytes(t): float(t["logprob"]) for t in [*(theirs.get("top_logprobs") or []), theirs]}
            deltas.append(abs(max(float(ours["logprob"]), FLOOR) - max(listed.get(_bytes(ours), FLOOR), FLOOR)))
            if _bytes(ours) != _bytes(theirs):
                break
        same += common_prefix(r.text, f.text)
        length += max(len(r.text), len(f.text))
    return AnswerDistance(
        len(deltas), sum(deltas) / len(deltas) if deltas else math.inf, same / length if length else 0.0
    )


def same_model_verdict(tuned: AnswerDistance, base: AnswerDistance | None) -> tuple[bool, str]:
    """(whether the endpoint serves the tuned model, why)."""
    if not tuned.positions:
        near = tuned.same >= MIN_SAME_TEXT and (base is None or tuned.same > base.same)
        share = _("{same:.0%} of the greedy text is the same", same=tuned.same)
        return near, _("the endpoint gives no log-probabilities; {share} (weaker evidence)", share=share)
    figures = _(
        "mean difference of log-probabilities {mean:.4f} at {positions} positions (at most {tolerance})",
        mean=tuned.mean,
        positions=tuned.positions,
        tolerance=TOLERANCE,
    )
    if tuned.mean > TOLERANCE:
        return False, figures
    if base is not None and base.positions and base.mean <= tuned.mean:
        return False, _("{figures}; the base, at {mean:.4f}, is nearer", figures=figures, mean=base.mean)
    return True, figures + (
        _("; the base is at {mean:.4f}", mean=base.mean) if base is not None and base.positions else ""
    )


def _bytes(entry: dict[str, Any]) -> bytes:
    """A token as bytes; from its text where the endpoint gives no bytes."""
    given = entry.get("bytes")
    return bytes(given) if isinstance(given, list) else str(entry.get("token", "")).encode()
