"""Preference accuracy and held-out loss, base against tuned, from the models' own probabilities.

Preference accuracy: how often a model finds the revised answer more likely, per token, than the weak one. Held-out loss: mean negative
log-likelihood a token of the revised answers. Neither is a judge: they say whether training took, not whether an answer is good.
"""

from __future__ import annotations

from typing import Any

from noesis.tribunal.statistics import wilson

Score = tuple[float, int]  # sum of natural-log probabilities of an answer's tokens, and how many they are


def compare(ids: list[str], base: dict[str, list[Score]], tuned: dict[str, list[Score]]) -> dict[str, Any]:
    """Figures of both models.

    Args:
        ids: one an example.
        base, tuned: scores of the answers `initial` and `revised`, in the order of `ids`.
    """
    return {
        "examples": len(ids),
        "base": _figures(base),
        "tuned": _figures(tuned),
        "by_example": [
            {"id": name, "base_margin": round(b, 4), "tuned_margin": round(t, 4)}
            for name, b, t in zip(ids, margins(base), margins(tuned), strict=True)
        ],
    }


def margins(scores: dict[str, list[Score]]) -> list[float]:
    """Mean log-probability a token of the revised answer minus that of the weak one, one an example; positive: prefers the revision."""
    return [r / n - i / m for (r, n), (i, m) in zip(scores["revised"], scores["initial"], strict=True)]


def _figures(scores: dict[str, list[Score]]) -> dict[str, Any]:
    values = margins(scores)
    preferred = sum(value > 0 for value in values)
    low, high = wilson(preferred, len(values))
    total, tokens = sum(s for s, _ in scores["revised"]), sum(n for _, n in scores["revised"])
    return {
        "held_out_loss": round(-total / tokens, 5),
        "preference_accuracy": round(preferred / len(values), 4),
        "preferred": preferred,
        "interval_95": [round(low, 4), round(high, 4)],
        "mean_margin": round(sum(values) / len(values), 5),
    }
