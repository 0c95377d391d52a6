"""Which examples are held out: the same for the same ids, seed and count, whatever the order of files.

Rows that say the same stay on one side (`near_duplicates.group`). At least one id of each category is held out where
the count allows. The rest is as near to proportional in difficulty and value as possible: greedily one id after the
other, each time of the kind that is most underrepresented.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import numpy as np

from noesis.core.console import command
from noesis.core.errors import DataError
from noesis.core.i18n import _, ngettext
from noesis.dataset.checks.scan import DIFFICULTIES, Column, Table

REFERENCE_SIZE = 124  # `data.eval_examples` is meant for this many; other sizes keep the proportion
MOST_HELD_OUT = 5  # one in so many ids, for the sake of having one of each category


@dataclass(frozen=True)
class _Units:
    """Groups of rows that are held out together or not at all.

    of_row: (rows,) the unit of each row; the other arrays have one entry for each unit
    ids: number of distinct ids
    first: the row that stands for the unit, the first in the export's order
    rank: a pseudorandom number from 0 to 1, by seed and id
    """

    of_row: Column
    ids: Column
    first: Column
    rank: Column


def in_order(table: Table) -> Column:
    """Row indices by category, id, language: the order of exported files."""
    keys = zip(
        (table.categories[c] for c in table.category),
        table.ids,
        table.language.tolist(),
        range(len(table)),
        strict=True,
    )
    return np.array([row for *_, row in sorted(keys)], np.int64)


def split(table: Table, groups: Column, *, eval_examples: int, seed: int) -> Column:
    """(rows,) mask of what is held out.

    Args:
        groups: (rows,) equal numbers for rows that must stay on one side.
        eval_examples: ids held out of 124; for n ids, round(n × eval_examples / 124). More, so that each category has
            one, while that is a fifth of all ids at most; never less than 1.

    Raises:
        DataError: fewer than two groups, so nothing could be held out without a leak.
    """
    units = _units(table, groups, seed)
    if len(units.ids) < 2:
        raise DataError(
            _(
                "{examples}, all of which say the same or are filled from one template: at least "
                "two different ones are needed, one to train on and one to hold out; "
                "see them with  {command}",
                examples=ngettext("{count:,} example", "{count:,} examples", len(table)),
                command=command("data", "validate"),
            )
        )
    total = int(units.ids.sum())
    one_each = min(len(np.unique(table.category)), total // MOST_HELD_OUT)
    wanted = max(1, one_each, round(total * eval_examples / REFERENCE_SIZE))
    return _choose(table, units, wanted)[units.of_row]


def describe_share(held_out: Column) -> str:
    """`held out 13 of 124 examples (10%)`."""
    count = int(held_out.sum())
    return _(
        "held out {count} of {examples} ({share:.0%})",
        count=count,
        examples=ngettext("{count:,} example", "{count:,} examples", len(held_out)),
        share=count / len(held_out),
    )


def _units(table: Table, groups: Column, seed: int) -> _Units:
    order = in_order(table)
    labels, first, of_row = np.unique(groups[order], return_index=True, return_inverse=True)
    unit = np.empty(len(table), np.int64)
    unit[order] = of_row
    per_id = list(
        {name: row for row, name in enumerate(table.ids)}.values()
    )  # translations share a group: any row of an id identifies its unit
    rank = np.array([_rank(seed, table.ids[row]) for row in order[first]])
    return _Units(unit, np.bincount(unit[per_id], minlength=len(labels)), order[first], rank)


def _choose(table: Table, units: _Units, wanted: int) -> Column:
    """(units,) mask, chosen greedily by kind (category, difficulty, values): the cost does not grow with the ids."""
    category, difficulty, values = table.category[units.first], table.difficulty[units.first], table.values[units.first]
    bits = max(int(values.max()).bit_length(), 1)
    has = (values[:, None] >> np.arange(bits, dtype=np.uint64) & np.uint64(1)).astype(np.int64)  # (units, values)
    level = np.eye(len(DIFFICULTIES), dtype=np.int64)[difficulty]  # (units, difficulties)
    traits = np.concatenate([level, has], axis=1)
    target = wanted * (traits * units.ids[:, None]).sum(axis=0) / units.ids.sum()
    due = _quotas(np.bincount(category, weights=units.ids, minlength=len(table.categories)), wanted)

    kinds, kind = np.unique(np.column_stack([category, traits]), axis=0, return_inverse=True)
    # Units of one kind in the order in which they are taken: small ones first, so that no large cluster is held out.
    order = np.lexsort((units.rank, units.ids, kind))
    begin = np.searchsorted(kind[order], np.arange(len(kinds)))
    end = np.append(begin[1:], len(order))
    of_category, kind_traits = kinds[:, 0], kinds[:, 1:]
    jitter = np.array([units.rank[order[b]] for b in begin])  # the seed decides between equals
    quota = due.copy()
    taken, mask = np.zeros(traits.shape[1]), np.zeros(len(kind), bool)
    while True:
        next_unit = order[np.minimum(begin, len(order) - 1)]
        possible = (begin < end) & (units.ids[next_unit] <= quota[of_category])
        if not possible.any():
            return _one_each(mask, category, units, due > 0)
        # What taking one more of this kind adds to the squared distance from the target.
        cost = kind_traits @ (2 * (taken - target) + 1) + 0.3 * jitter
        chosen = int(np.argmin(np.where(possible, cost, np.inf)))
        unit = next_unit[chosen]
        mask[unit] = True
        begin[chosen] += 1
        taken += traits[unit] * units.ids[unit]
        quota[of_category[chosen]] -= units.ids[unit]


def _quotas(sizes: Column, wanted: int) -> Column:
    """(categories,) ids to hold out: one each, the rest in proportion by largest remainder; never a whole category."""
    room = np.maximum(sizes - 1, 0) if (sizes > 1).any() else sizes
    quota = np.minimum(room, 1)
    if quota.sum() > wanted:  # fewer than categories: the largest have one
        quota[np.argsort(-sizes, kind="stable")[wanted:]] = 0
        return quota
    share = np.clip(sizes / sizes.sum() * wanted, quota, room)
    quota = np.maximum(np.floor(share), quota)
    for i in np.argsort(quota - share, kind="stable"):
        if quota.sum() < wanted and quota[i] < room[i]:
            quota[i] += 1
    while quota.sum() > wanted:
        quota[np.argmax(np.where(quota > 1, quota - share, -np.inf))] -= 1
    return np.asarray(quota)


def _one_each(mask: Column, category: Column, units: _Units, due: Column) -> Column:
    """Hold out the smallest unit of each category that is due one and has none because all its groups are large."""
    for name in np.flatnonzero(due):
        mine = np.flatnonzero(category == name)
        if len(mine) > 1 and not mask[mine].any():
            smallest = mine[np.lexsort((units.rank[mine], units.ids[mine]))[0]]
            mask[smallest] = units.ids[smallest] <= 0.5 * units.ids[mine].sum()
    if not mask.any():
        mask[np.argmin(units.ids)] = True
    return mask


def _rank(seed: int, text: str) -> float:
    """A reproducible pseudorandom number from 0 to 1."""
    return int.from_bytes(hashlib.sha256(f"{seed}:{text}".encode()).digest()[:6], "big") / 2**48
