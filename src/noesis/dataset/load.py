"""Examples as lists of records, for training and judging: from the hand-written sources, or from files that were exported before."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from noesis.constitution.document import Constitution
from noesis.core.config import Config
from noesis.core.console import say
from noesis.core.errors import DataError, UsageError
from noesis.dataset.checks.scan import Column
from noesis.dataset.checks.validate import Report, validate
from noesis.dataset.export import check_sources, held_out_rows, raise_on_errors
from noesis.dataset.split import in_order

Records = list[dict[str, Any]]


def split_sources(sources: list[Path], constitution: Constitution, config: Config) -> tuple[Records, Records]:
    """Check the examples and split them: (train, held out), as `noesis data export` would write them.

    Raises:
        DataError: an error in a line, or too little that differs.
    """
    report = check_sources(sources, constitution, config)
    say(f"  {report.rows:,} examples in {len(report.files)} files: no errors, {report.total('warning'):,} warnings")
    held_out = held_out_rows(report.table, report.clusters, config)
    order = in_order(report.table)
    return _records(report, order[~held_out[order]]), _records(report, order[held_out[order]])


def read_exports(folder: Path, constitution: Constitution) -> tuple[Records, Records]:
    """`train.jsonl` and `eval.jsonl` of a folder: (train, held out).

    Raises:
        UsageError: one of them is not there.
        DataError: a line that must not be trained on, an empty file, or a held-out row that says what a training row says.
    """
    parts = {name: _existing(folder / f"{name}.jsonl") for name in ("train", "eval")}
    report = validate(list(parts.values()), constitution, categories=())
    raise_on_errors(report, "nothing was trained")
    rows = [_records(report, (report.table.file == i).nonzero()[0]) for i in range(2)]
    for file, found in zip(parts.values(), rows, strict=True):
        if not found:
            raise DataError(f"{file} holds no example")
    return rows[0], rows[1]


def read_examples(file: Path, constitution: Constitution) -> Records:
    """The records of one file, each line checked again: a file on a volume may have been edited since its export.

    Raises:
        UsageError: the file is not there.
        DataError: a line that must not be trained on, or no line at all.
    """
    report = validate([_existing(file)], constitution, categories=(), whole=False)
    raise_on_errors(report, "nothing was read")
    if not len(report.table):
        raise DataError(f"{file} holds no example")
    return report.records


def evenly_spread(records: Records, count: int) -> Records:
    """`count` of `records`, evenly spread over them (they are sorted by category)."""
    count = min(count, len(records))
    return [records[i * len(records) // count] for i in range(count)]


def _existing(file: Path) -> Path:
    if not file.is_file():
        raise UsageError(f"{file} is missing (Dataset not found): write it with  python scripts/export_for_modal.py")
    return file


def _records(report: Report, rows: Column) -> Records:
    return Report(report.files, report.table.keep(rows)).records
