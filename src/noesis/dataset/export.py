"""`noesis data export`: write `train.jsonl`, `eval.jsonl` and `statistics.json`.

The files are byte-identical for the same input and configuration. Nothing is dropped unless `--dedupe` asks for it, and
then `dropped.jsonl` names each row and the one that is kept instead.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from noesis.constitution.document import Constitution
from noesis.core.config import Config
from noesis.core.console import command, say
from noesis.core.errors import DataError, UsageError
from noesis.core.files import atomic, require_output, write_json, write_jsonl
from noesis.core.i18n import _, ngettext
from noesis.dataset.checks.contamination import refuse_known_questions
from noesis.dataset.checks.length import TokenCounter, find_token_counter
from noesis.dataset.checks.near_duplicates import Cluster, find_clusters, group
from noesis.dataset.checks.rows import RowReader
from noesis.dataset.checks.scan import Column, Table
from noesis.dataset.checks.validate import Report, validate
from noesis.dataset.checks.whole_set import leaks
from noesis.dataset.source_files import is_hand_written
from noesis.dataset.split import in_order, split
from noesis.dataset.statistics import ExportStatistics, describe_files


@dataclass(frozen=True)
class Dropped:
    """A row that `--dedupe` leaves out, and the id of the one that is kept instead."""

    id: str
    file: str
    line: int
    kept: str
    reason: str

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def check_sources(
    sources: list[Path],
    constitution: Constitution,
    config: Config,
    *,
    counter: TokenCounter | None,
    keep_examples: bool = False,
) -> Report:
    """Validate `sources`; every line must be fit to train on.

    Args:
        counter: measures rows in tokens; None: nothing is measured.
        keep_examples: keep the parsed examples in the report's table.

    Raises:
        DataError: the first errors by file and line. Nothing is dropped silently.
    """
    report = validate(
        sources, constitution, config.training.data.categories, counter=counter, keep_examples=keep_examples
    )
    raise_on_errors(report, _("nothing was exported"))
    if not len(report.table):
        raise DataError(_("no examples in {sources}", sources=", ".join(str(s) for s in sources)))
    return report


def raise_on_errors(report: Report, consequence: str) -> None:
    """Raise DataError if the report has an error."""
    errors = report.total("error")
    if errors:
        shown = [str(problem) for problem in report.errors[:5]]
        more = (
            [_("… and {errors:,} more: {command}", errors=errors - 5, command=command("data", "validate"))]
            if errors > 5
            else []
        )
        raise DataError(
            _(
                "{errors} in the examples; {consequence}:",
                errors=ngettext("{count:,} error", "{count:,} errors", errors),
                consequence=consequence,
            ),
            *shown,
            *more,
        )


def export(
    sources: list[Path],
    out: Path,
    constitution: Constitution,
    config: Config,
    *,
    dedupe: bool = False,
    tribunal: Path | None = None,
) -> ExportStatistics:
    """Check, split and write; returns the statistics, which are counted in the files as written.

    Args:
        dedupe: keep one row of each cluster of rows that say the same.
        tribunal: folder with the Tribunal's questions; none of them may be trained on.

    Raises:
        DataError: an error in a line, a question of the Tribunal, or too few different examples.
    """
    if is_hand_written(out):
        raise UsageError(_("--out {out} is among the hand-written examples: name another folder", out=out))
    for name in ("train.jsonl", "eval.jsonl", "dropped.jsonl", "statistics.json"):
        require_output(out / name, "--out", inputs=sources)
    counter = find_token_counter(config, constitution)
    report = check_sources(sources, constitution, config, counter=counter)
    table = report.table
    dropped: list[Dropped] = []
    if tribunal is not None:
        refuse_known_questions(table, report.files, tribunal)
    clusters = report.clusters
    if dedupe:
        keep, dropped = one_of_each(report)
        table = table.keep(keep)
        clusters = find_clusters(table)
    held_out = held_out_rows(table, clusters, config)
    order = in_order(table)
    with RowReader(report.files) as reader:
        for name, rows in (("train", order[~held_out[order]]), ("eval", order[held_out[order]])):
            with atomic(out / f"{name}.jsonl", "wb") as f:
                for row in rows.tolist():
                    f.write(reader.line(table, row) + b"\n")
    if dedupe:
        write_jsonl(out / "dropped.jsonl", [row.to_json() for row in dropped])
        say(
            _(
                "  {dropped:,} rows that repeat another one were dropped: {out}",
                dropped=len(dropped),
                out=out / "dropped.jsonl",
            )
        )
    statistics = describe_files(out, constitution, config, counter)
    statistics = replace(statistics, duplicates=_duplicates(clusters, len(dropped)))
    write_json(out / "statistics.json", statistics.to_json())
    return statistics


def held_out_rows(table: Table, clusters: list[Cluster], config: Config) -> Column:
    """(rows,) mask of what is held out; the rows of a cluster stay together.

    Raises:
        DataError: too few different examples; or two rows that say the same on both sides, which no split may cause.
    """
    held_out = split(
        table, group(table, clusters), eval_examples=config.training.data.eval_examples, seed=config.training.seed
    )
    pairs = [f"{table.ids[a]} ~ {table.ids[b]} ({cluster})" for a, b, cluster in leaks(clusters, held_out)]
    if pairs:
        raise DataError(
            _("the split leaks {pairs} held-out row(s) into training: ", pairs=len(pairs)) + "; ".join(pairs[:5])
        )
    return held_out


def one_of_each(report: Report) -> tuple[Column, list[Dropped]]:
    """(rows,) mask that keeps the first row of each cluster, in the export's order; and the rows that it drops."""
    table = report.table
    place = np.empty(len(table), np.int64)
    place[in_order(table)] = np.arange(len(table))
    keep = np.ones(len(table), bool)
    dropped = []
    for cluster in report.clusters:
        for language in np.unique(table.language[cluster.rows]):
            rows = cluster.rows[(table.language[cluster.rows] == language) & keep[cluster.rows]]
            rows = rows[np.argsort(place[rows])]
            for row in rows[1:]:
                keep[row] = False
                file, line = str(report.files[table.file[row]]), int(table.line[row])
                reason = f"{cluster.kind} {cluster.field}"
                dropped.append(Dropped(table.ids[row], file, line, table.ids[rows[0]], reason))
    return keep, dropped


def _duplicates(clusters: list[Cluster], dropped: int) -> dict[str, int]:
    """How many rows are in clusters of each kind, all of them on one side of the split."""
    counts: Counter[str] = Counter()
    for cluster in clusters:
        counts[f"rows_{cluster.kind}_{cluster.field}"] += len(cluster.rows)
    return {**dict(sorted(counts.items())), "dropped": dropped}
