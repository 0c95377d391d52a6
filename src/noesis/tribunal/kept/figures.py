"""Gained, kept and lost: what the base and the tuned model can do of the small tasks, item by item.

Intervals are Wilson's, p is McNemar's exact one. The share that was lost is of what the base could do: a base that does
no item right can lose nothing, and where it is no better than chance, what it seems to lose or gain is luck.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from noesis.core.i18n import N_
from noesis.core.typed import require_types
from noesis.tribunal.kept.form import Form
from noesis.tribunal.kept.items import KeptItem
from noesis.tribunal.statistics import Interval, mcnemar, wilson

PARTS = ("by_language", "by_kind", "by_tier")
INTERVALS = ("lost_95", "base_95", "tuned_95")


@dataclass(frozen=True)
class KeptGroup:
    """The same items by both models.

    chance: how many a model that knows nothing would have right
    lost_95: interval of the share lost of what the base did right; base_95, tuned_95: of the shares that are right
    p: that as many are lost as gained
    """

    items: int
    kept: int
    lost: int
    gained: int
    chance: float
    lost_95: Interval
    base_95: Interval
    tuned_95: Interval
    p: float

    @classmethod
    def of(cls, base: Sequence[bool], tuned: Sequence[bool], chances: Sequence[float]) -> KeptGroup:
        pairs = list(zip(base, tuned, strict=True))
        kept, lost = sum(b and t for b, t in pairs), sum(b and not t for b, t in pairs)
        gained = sum(t and not b for b, t in pairs)
        return cls(
            len(pairs),
            kept,
            lost,
            gained,
            round(sum(chances), 2),
            _rounded(wilson(lost, kept + lost)),
            _rounded(wilson(kept + lost, len(pairs))),
            _rounded(wilson(kept + gained, len(pairs))),
            round(mcnemar(lost, gained), 4),
        )

    @property
    def base(self) -> int:
        """Items that the base has right."""
        return self.kept + self.lost

    @property
    def tuned(self) -> int:
        """Items that the tuned model has right."""
        return self.kept + self.gained

    @property
    def caution(self) -> str:
        """Why nothing follows from these items; empty where something does."""
        if not self.base:
            return N_("the base can do none of these: nothing could be lost")
        if self.items and self.base_95[0] * self.items <= self.chance:
            return N_("the base is not beyond guessing here: what it lost or gained may be luck")
        return ""

    def to_json(self) -> dict[str, Any]:
        return asdict(self) | {name: list(getattr(self, name)) for name in INTERVALS}

    @classmethod
    def from_json(cls, stored: dict[str, Any]) -> KeptGroup:
        intervals: dict[str, Any] = {name: tuple(stored[name]) for name in INTERVALS}
        found = cls(**stored | intervals)
        require_types([found])
        return found


@dataclass(frozen=True)
class KeptFigures:
    """What training broke.

    items_sha256: hash of the items that were measured
    by_kind, by_tier, by_language: the same figures of a part of them
    by_seed: of all items, by each seed's adapter; empty where one seed was trained
    drift: KL(base ‖ tuned) in nats a token on the base's own short answers; None where it gave none
    form: length and repetition of both models' answers to held-out prompts; empty where there are none
    """

    items_sha256: str
    all: KeptGroup
    by_kind: dict[str, KeptGroup] = field(default_factory=dict)
    by_tier: dict[str, KeptGroup] = field(default_factory=dict)
    by_language: dict[str, KeptGroup] = field(default_factory=dict)
    drift: float | None = None
    form: dict[str, Form] = field(default_factory=dict)
    by_seed: dict[str, KeptGroup] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        found: dict[str, Any] = {"items_sha256": self.items_sha256, "all": self.all.to_json(), "drift": self.drift}
        for name in PARTS:
            found[name] = {key: group.to_json() for key, group in getattr(self, name).items()}
        found["form"] = {model: asdict(form) for model, form in self.form.items()}
        seeds = {seed: group.to_json() for seed, group in self.by_seed.items()}
        return found | ({"by_seed": seeds} if seeds else {})

    @classmethod
    def from_json(cls, stored: dict[str, Any]) -> KeptFigures:
        parts = {name: {k: KeptGroup.from_json(v) for k, v in stored[name].items()} for name in PARTS}
        form = {model: Form(**stored["form"][model]) for model in stored["form"]}
        return cls(
            stored["items_sha256"],
            KeptGroup.from_json(stored["all"]),
            **parts,
            drift=stored["drift"],
            form=form,
            by_seed={seed: KeptGroup.from_json(group) for seed, group in stored.get("by_seed", {}).items()},
        )


def kept_figures(
    items_sha256: str,
    items: Sequence[KeptItem],
    base: Sequence[bool],
    tuned: Sequence[bool],
    *,
    drift: Sequence[tuple[float, int]] = (),
    form: dict[str, Form] | None = None,
    seeds: Mapping[str, Sequence[bool]] | None = None,
) -> KeptFigures:
    """The figures of all items and of each language, kind and tier.

    Args:
        base, tuned: whether each item is right.
        drift: of the base's answers, (sum of KL in nats, tokens).
        seeds: whether each item is right by each seed's adapter.
    """
    chances = [item.chance for item in items]

    def group(places: Sequence[int]) -> KeptGroup:
        return KeptGroup.of([base[i] for i in places], [tuned[i] for i in places], [items[i].chance for i in places])

    def parts(key: str) -> dict[str, KeptGroup]:
        names = sorted({str(getattr(item, key)) for item in items})
        return {n: group([i for i, item in enumerate(items) if str(getattr(item, key)) == n]) for n in names}

    tokens = sum(count for _, count in drift)
    return KeptFigures(
        items_sha256,
        group(range(len(items))),
        parts("kind"),
        parts("tier"),
        parts("language"),
        round(sum(total for total, _ in drift) / tokens, 4) if tokens else None,
        form or {},
        {seed: KeptGroup.of(base, right, chances) for seed, right in (seeds or {}).items()},
    )


def _rounded(interval: Interval) -> Interval:
    return round(interval[0], 4), round(interval[1], 4)
