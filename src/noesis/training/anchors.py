"""Which tokens of a packed row are held to the base's distribution: those of rows that are `anchored`. Torch-free."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from noesis.llm.token_rows import TokenRow
from noesis.training.packing import PackedRow, pack


@dataclass(frozen=True)
class Anchors:
    """The anchored sequences of a packed row.

    row: these sequences alone, which the base reads
    places: where their trained tokens stand among those of the whole row
    others: where the tokens that are trained on as they are stand
    weight: of a token's divergence from the base, beside the other tokens' cross-entropy
    """

    row: PackedRow
    places: list[int]
    others: list[int]
    weight: float


def anchors_of(packed: PackedRow, rows: Sequence[TokenRow], weight: float) -> Anchors | None:
    """The anchors of a row; None if it has none.

    Args:
        rows: the training set, which the row's members point into.
    """
    members = [m for m in packed.members if rows[m].anchored]
    if not members:
        return None
    places: list[int] = []
    others: list[int] = []
    for member in packed.members:
        start = len(places) + len(others)
        (places if rows[member].anchored else others).extend(range(start, start + rows[member].predicted))
    return Anchors(pack([(rows[m].input_ids, rows[m].labels) for m in members], members), places, others, weight)
