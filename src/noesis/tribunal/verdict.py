"""A judge's result on one answer: a Verdict, or Unscored with the reason. A failed judge is never a 0."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True)
class ItemScore:
    """One item of a rubric.

    score: 0, 1 or 2, after the evidence was checked (0 where a required span is not in the answer)
    given: the score as the judge gave it
    span: the quotation that the judge gave as evidence
    span_found: whether `span` is in the answer
    """

    id: str
    score: int
    given: int
    span: str
    span_found: bool


@dataclass(frozen=True)
class Verdict:
    """One judge's scores for one answer; tokens and USD are those of all replies it took.

    scalar: the score of a reward model, 0..1, which scores no items; None: the items give it
    """

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
    scalar: float | None = None

    @property
    def score(self) -> float:
        """Share of the points, 0..1."""
        if self.scalar is not None:
            return self.scalar
        return sum(item.score for item in self.items) / (2 * len(self.items))

    def to_json(self) -> dict[str, Any]:
        fields = asdict(self)
        if self.scalar is None:
            del fields["scalar"]
        return {"status": "scored", "score": round(self.score, 4), **fields}


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
    """The verdict that `to_json` wrote.

    Raises:
        KeyError, TypeError: the row is not one.
    """
    fields = {key: value for key, value in row.items() if key not in ("status", "score", "items")}
    if row["status"] == "unscored":
        return Unscored(**fields)
    return Verdict(items=tuple(ItemScore(**item) for item in row["items"]), **fields)
