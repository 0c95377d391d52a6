"""Which examples say the same: equal texts, near-duplicates, and families filled from one template; in linear time.

Near-duplicates: MinHash digests in 21 bands of 3 columns; rows that agree in a band are compared by their whole
digests. All but one pair in a thousand are found where 8% of the words are replaced, few at 30%, and no paraphrase.

Template families: a template's own words recur in every row, while what fills it varies. Of each text's first 3-grams,
only those that are about as frequent in the set as its most frequent ones count; texts whose counted 3-grams are the
same form a family.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from noesis.core.i18n import _
from noesis.dataset.checks.fingerprint import PERMUTATIONS
from noesis.dataset.checks.scan import Column, Table

NEAR = 0.40  # estimated Jaccard similarity of two texts' 3-grams from which they are near-duplicates
BAND = 3
FAMILY = 5  # rows
KEPT_GRAMS, KEPT_SHARE = 4, 0.4  # of a text's beginning that must be template for it to count
BUCKETS = 2**22  # of the count of 3-grams


@dataclass(frozen=True)
class Cluster:
    """Rows that are alike in `field`.

    kind: "same" (read alike), "near" (near-duplicates) or "template" (one skeleton, filled differently)
    rows: indices into the table, ascending, at least two
    """

    kind: str
    field: str
    rows: Column

    def __str__(self) -> str:
        what = {
            "same": _("the same {field}", field=self.field),
            "near": _("nearly the same {field}", field=self.field),
            "template": _("{field} from one template", field=self.field),
        }
        return _("{rows:,} rows with {what}", rows=len(self.rows), what=what[self.kind])


def find_clusters(table: Table) -> list[Cluster]:
    """All clusters, the largest first. A row can be in several."""
    found: list[Cluster] = []
    for name, key, digest, grams in (
        ("prompt", table.prompt_key, table.prompt_digest, table.prompt_grams),
        ("answer", table.answer_key, table.answer_digest, table.answer_grams),
    ):
        _, first, inverse = np.unique(key, return_index=True, return_inverse=True)
        found += (Cluster("same", name, rows) for rows in _members(inverse))
        # Equal texts stand for each other from here on, so that a text repeated 100,000 times costs no more than once.
        distinct = np.sort(first)
        for kind, groups in (("near", _near(digest[distinct])), ("template", _families(grams[distinct]))):
            member = np.full(len(first), -1, np.int64)
            for number, rows in enumerate(groups):
                member[inverse[distinct[rows]]] = number
            labels = member[inverse]
            inside = np.flatnonzero(labels >= 0)
            found += (Cluster(kind, name, inside[rows]) for rows in _members(labels[inside]))
    return sorted(found, key=lambda c: (-len(c.rows), c.field, c.kind, int(c.rows[0])))


def group(table: Table, clusters: list[Cluster]) -> Column:
    """(rows,) a number for each row: the least row that it must stay together with.

    The members of a cluster stay together, and so do an id's translations.
    """
    left = [cluster.rows for cluster in clusters]
    first = [np.full(len(cluster.rows), cluster.rows[0]) for cluster in clusters]
    number: dict[str, int] = {}
    left.append(np.arange(len(table)))
    first.append(np.array([number.setdefault(name, i) for i, name in enumerate(table.ids)], np.int64))
    return components(len(table), np.concatenate(left), np.concatenate(first))


def components(count: int, a: Column, b: Column) -> Column:
    """(count,) the least member of each node's connected component, for edges a[i] – b[i]."""
    label = np.arange(count)
    while True:
        least = np.minimum(label[a], label[b])
        before = label.copy()
        np.minimum.at(label, a, least)
        np.minimum.at(label, b, least)
        np.minimum.at(label, before[a], least)  # hook the old roots too, so that long chains take few rounds
        np.minimum.at(label, before[b], least)
        label = label[label]
        if np.array_equal(label, before):
            return label


def _members(labels: Column) -> Iterator[Column]:
    """The rows of each label that two or more rows have."""
    order = np.argsort(labels, kind="stable")
    borders = np.flatnonzero(np.diff(labels[order])) + 1
    for rows in np.split(order, borders):
        if len(rows) > 1:
            yield rows


def _near(digest: Column) -> Iterator[Column]:
    """Groups of near-duplicate rows: (rows, columns) digests in, indices out."""
    left, right = [], []
    for columns in bands():
        band = mix(digest[:, columns])
        order = np.argsort(band, kind="stable")  # stable: the same groups on every CPU
        same = band[order[1:]] == band[order[:-1]]
        # Neighbours in the sorted band, and each with the first of its run.
        run = (
            np.maximum.accumulate(np.where(np.concatenate(([True], ~same)), np.arange(len(order)), 0))
            if len(order)
            else order
        )
        for other in (order[:-1][same], order[run[1:][same]]):
            left.append(order[1:][same])
            right.append(other)
    pairs = np.unique(np.stack([np.concatenate(left), np.concatenate(right)], axis=1), axis=0)
    alike = np.zeros(len(pairs), bool)
    for start in range(0, len(pairs), 100_000):
        a, b = pairs[start : start + 100_000].T
        alike[start : start + 100_000] = (digest[a] == digest[b]).mean(axis=1) >= NEAR
    pairs = pairs[alike & (pairs[:, 0] != pairs[:, 1])]
    yield from _members(components(len(digest), pairs[:, 0], pairs[:, 1]))


def bands() -> list[slice]:
    """Columns of a digest that are compared together: near-duplicates agree in one of them at least."""
    return [slice(start, start + BAND) for start in range(0, PERMUTATIONS, BAND)]


def mix(columns: Column) -> Column:
    """(rows, n) numbers → (rows,) one hash of each row."""
    mixed = np.zeros(len(columns), np.uint64)
    for column in columns.T:
        mixed = (mixed ^ column) * np.uint64(0x9E3779B97F4A7C15)
        mixed ^= mixed >> np.uint64(29)
    return mixed


def _families(grams: Column) -> Iterator[Column]:
    """Groups of rows that share a skeleton: (rows, n) 3-grams of the beginnings in, 0 where there is none."""
    count = np.zeros(BUCKETS, np.int32)
    for start in range(0, len(grams), 50_000):
        part = grams[start : start + 50_000]
        count += np.bincount((part[part > 0] % BUCKETS).astype(np.int64), minlength=BUCKETS).astype(np.int32)
    skeleton = np.zeros(len(grams), np.uint64)
    for start in range(0, len(grams), 50_000):
        part = grams[start : start + 50_000]
        present = part > 0
        frequency = np.where(present, count[part % BUCKETS], 0)
        length = present.sum(axis=1)
        # The frequency that the most frequent 40% of the text's 3-grams have at least.
        ranked = np.sort(frequency, axis=1)[:, ::-1]
        typical = np.take_along_axis(ranked, np.maximum((length * KEPT_SHARE).astype(np.int64) - 1, 0)[:, None], axis=1)
        kept = present & (frequency * 2 >= typical) & (frequency >= FAMILY)
        enough = (kept.sum(axis=1) >= KEPT_GRAMS) & (kept.sum(axis=1) >= KEPT_SHARE * length)
        mixed = (part.astype(np.uint64) + np.uint64(1)) * np.uint64(0x9E3779B97F4A7C15)
        mixed ^= mixed >> np.uint64(29)
        skeleton[start : start + 50_000] = np.where(
            enough, np.where(kept, mixed, np.uint64(0)).sum(axis=1, dtype=np.uint64) | np.uint64(1), np.uint64(0)
        )
    rows = np.flatnonzero(skeleton)
    for members in _members(skeleton[rows]):
        if len(members) >= FAMILY:
            yield rows[members]
