"""What only the whole set shows: repetition, leaks between files, overused closings, lopsided values and categories."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from noesis.core.i18n import _
from noesis.core.text import closing
from noesis.dataset.checks.line import Finding
from noesis.dataset.checks.near_duplicates import Cluster
from noesis.dataset.checks.rows import RowReader
from noesis.dataset.checks.scan import LANGUAGES, Table

HELD_OUT_NAMES = {"eval", "test", "valid", "validation", "dev", "held_out"}
SMALL = 24  # rows below which balance is not checked
LISTED = 20  # clusters


def check_whole_set(
    table: Table, clusters: list[Cluster], files: list[Path], values: tuple[str, ...], reader: RowReader
) -> Iterator[tuple[int | None, Finding]]:
    """(row that shows it or None, finding) for each thing that is wrong with the set."""
    yield from _leaks(table, clusters, files)
    yield from _repetition(table, clusters)
    yield from _closings(table, reader)
    if len(table) >= SMALL:
        yield from _balance(table, values)


def leaks(clusters: list[Cluster], held_out: np.ndarray) -> Iterator[tuple[int, int, Cluster]]:  # type: ignore[type-arg]
    """(held-out row, training row, cluster) for each held-out row that says what a training row says.

    A common template alone is no leak.

    Args:
        held_out: (rows,) mask.
    """
    seen = set()
    for cluster in clusters:
        if cluster.kind != "template":
            inside = cluster.rows[held_out[cluster.rows]]
            outside = cluster.rows[~held_out[cluster.rows]]
            for row in inside if len(outside) else ():
                if row not in seen:
                    seen.add(row)
                    yield int(row), int(outside[0]), cluster


def _leaks(table: Table, clusters: list[Cluster], files: list[Path]) -> Iterator[tuple[int, Finding]]:
    held_out = (
        np.array([file.stem in HELD_OUT_NAMES for file in files])[table.file] if len(table) else np.zeros(0, bool)
    )
    if held_out.all() or not held_out.any():
        return
    for row, other, cluster in leaks(clusters, held_out):
        similarity = _("the same") if cluster.kind == "same" else _("nearly the same")
        where = f"{files[table.file[other]]}:{table.line[other]} ({table.ids[other][:80]})"
        yield (
            row,
            Finding(
                "leak",
                _(
                    "held out, but {similarity} {field} is trained on at {where}",
                    similarity=similarity,
                    field=cluster.field,
                    where=where,
                ),
            ),
        )


def _repetition(table: Table, clusters: list[Cluster]) -> Iterator[tuple[int | None, Finding]]:
    distinct = len(np.unique(table.answer_key))
    if len(table) >= SMALL and distinct < 0.5 * len(table):
        yield (
            None,
            Finding(
                "few-answers",
                _(
                    "{table:,} rows, {distinct:,} distinct answers: this trains repetition",
                    table=len(table),
                    distinct=distinct,
                ),
                warning=True,
            ),
        )
    codes = {"same": "duplicates", "near": "near-duplicates", "template": "template"}
    reported: set[int] = set()
    for cluster in clusters[: 10 * LISTED]:
        rows = set(cluster.rows.tolist())
        if len(rows - reported) < 2:
            continue  # the same rows again, alike in another way
        reported |= rows
        sample = ", ".join(table.ids[i][:60] for i in cluster.rows[:3])
        more = ", …" if len(rows) > 3 else ""
        yield int(cluster.rows[0]), Finding(codes[cluster.kind], f"{cluster}: {sample}{more}", warning=True)


def _closings(table: Table, reader: RowReader) -> Iterator[tuple[int, Finding]]:
    """A closing that many different answers share."""
    _ignored, distinct = np.unique(table.answer_key, return_index=True)
    rows = distinct[table.closing_key[distinct] != 0]
    _ignored, first, counts = np.unique(table.closing_key[rows], return_index=True, return_counts=True)
    limit = max(3, 0.005 * len(table))
    for i in np.argsort(-counts)[:LISTED]:
        if counts[i] > limit:
            row = rows[first[i]]
            words = closing(reader.example(table, int(row)).response_revised)
            yield (
                int(row),
                Finding(
                    "closing",
                    _(
                        "{counts:,} answers end alike: {words!r}: the model will end all its answers like this",
                        counts=counts[i],
                        words=words[:100],
                    ),
                    warning=True,
                ),
            )


def _balance(table: Table, values: tuple[str, ...]) -> Iterator[tuple[None, Finding]]:
    total = len(table)
    for i, value in enumerate(values):
        count = int(((table.values >> np.uint64(i)) & np.uint64(1)).sum())
        if count < 0.02 * total:
            yield (
                None,
                Finding(
                    "balance",
                    _(
                        "the value {value!r} is applied in {count:,} of {total:,} rows",
                        value=value,
                        count=count,
                        total=total,
                    ),
                    warning=True,
                ),
            )
    for language in np.unique(table.language):
        names, counts = np.unique(table.category[table.language == language], return_counts=True)
        if counts.max() >= 10 * counts.min():
            most, least = (table.categories[names[i]] for i in (counts.argmax(), counts.argmin()))
            message = _(
                "{languages}: the category {most!r} has {max:,} rows, {least!r} {min:,}",
                languages=LANGUAGES[language],
                most=most,
                max=counts.max(),
                least=least,
                min=counts.min(),
            )
            yield None, Finding("balance", message, warning=True)
