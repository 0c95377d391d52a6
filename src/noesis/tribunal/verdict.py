"""A judge's result on one answer: a Verdict, or Unscored with the reason. A failed judge is never a 0."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Literal

Way = Literal["quoted", "read", "abstained"]


@dataclass(frozen=True)
class ItemScore:
    """One item of a rubric.

    score: 0 to 2; quoted: after the evidence was checked (0 where a required span is not in the answer); read: the
    expected value; abstained: none, and 0 here
    given: the score as the judge gave it; where it was read, the likeliest
    span: the quotation that the judge gave as evidence
    span_found: whether `span` is in the answer
    how: quoted, with evidence; read, from the probabilities of the next word; abstained, too little fell on 0, 1, 2
    read: the probabilities of 0, 1 and 2, where they were read, also of an item that was then quoted
    weight: what the item counts among those of its judge
    """

    id: str
    score: float
    given: int
    span: str
    span_found: bool
    how: Way = "quoted"
    read: tuple[float, float, float] | None = None
    weight: float = 1.0

    def to_json(self) -> dict[str, Any]:
        """As stored; what only reading adds is left out elsewhere."""
        stored = asdict(self)
        usual = {"how": "quoted", "read": None, "weight": 1.0}
        return {name: value for name, value in stored.items() if name not in usual or value != usual[name]}

    @classmethod
    def from_json(cls, stored: dict[str, Any]) -> ItemScore:
        read = stored.get("read")
        return cls(**{**stored, "read": None if read is None else tuple(read)})


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
        """Share of the points, 0..1, of the items that were scored."""
        if self.scalar is not None:
            return self.scalar
        counted = [item for item in self.items if item.how != "abstained"]
        return sum(item.weight * item.score for item in counted) / (2 * sum(item.weight for item in counted))

    @property
    def range(self) -> tuple[float, float]:
        """The score with each item that abstained at 0, and at 2."""
        if self.scalar is not None:
            return self.scalar, self.scalar
        total = 2 * sum(item.weight for item in self.items)
        low = sum(item.weight * item.score for item in self.items) / total
        return low, low + sum(2 * item.weight for item in self.items if item.how == "abstained") / total

    def to_json(self) -> dict[str, Any]:
        fields = asdict(self) | {"items": [item.to_json() for item in self.items]}
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
    return Verdict(items=tuple(ItemScore.from_json(item) for item in row["items"]), **fields)
