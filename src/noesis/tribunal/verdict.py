"""Verdict or Unscored: what a judge said of an answer, or why it said nothing. A failed judge is a stored non-result, never a 0."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True)
class ItemScore:
    """One item of a rubric.

    score: 0, 1 or 2, after the evidence was checked (no span where one is required: 0)
    given: what the judge gave
    span_found: whether `span` stands in the answer
    """

    id: str
    score: int
    given: int
    span: str
    span_found: bool


@dataclass(frozen=True)
class Verdict:
    """A judge's verdict on one answer."""

    case: str
    judge: str
    model: str
    rubric_sha256: str
    items: tuple[ItemScore, ...]
    veto: str | None
    reasoning: str
    prompt_tokens: int = 0
    completion_tokens: int = 0
    usd: float = 0.0

    @property
    def score(self) -> float:
        """Share of the points, 0..1."""
        return sum(item.score for item in self.items) / (2 * len(self.items))

    def to_json(self) -> dict[str, Any]:
        return {"status": "scored", "score": round(self.score, 4), **asdict(self)}


@dataclass(frozen=True)
class Unscored:
    """A judge that gave no verdict on an answer, and why."""

    case: str
    judge: str
    model: str
    rubric_sha256: str
    reason: str

    def to_json(self) -> dict[str, Any]:
        return {"status": "unscored", **asdict(self)}


def verdict_from_json(row: dict[str, Any]) -> Verdict | Unscored:
    """What `as_json` wrote, as it was.

    Raises:
        KeyError, TypeError: the row is not of that kind.
    """
    fields = {key: value for key, value in row.items() if key not in ("status", "score", "items")}
    if row["status"] == "unscored":
        return Unscored(**fields)
    return Verdict(items=tuple(ItemScore(**item) for item in row["items"]), **fields)
