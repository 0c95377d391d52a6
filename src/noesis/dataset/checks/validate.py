"""`noesis data validate [PATHS]`: every line checked, then the set as a whole. Errors are what must not be trained on.

Users' own files with the nine required fields load as they are.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from noesis.constitution.document import Constitution
from noesis.dataset.checks.length import TokenCounter, too_long
from noesis.dataset.checks.line import Finding, Rules
from noesis.dataset.checks.near_duplicates import Cluster, find_clusters
from noesis.dataset.checks.scan import DIFFICULTIES, LANGUAGES, STANCES, Table, join, scan
from noesis.dataset.checks.whole_set import check_whole_set
from noesis.dataset.jsonl import LineReader, find_files

SHOWN = 20  # problems of one kind whose place and words are kept; of the others, the number is


@dataclass(frozen=True)
class Problem:
    """Something wrong with one line, or with the set (then `line` is that of an example, or 0)."""

    file: str
    line: int
    code: str
    message: str
    severity: str = "error"

    def __str__(self) -> str:
        place = f"{self.file}:{self.line}: " if self.line else ""
        return f"{place}{self.severity}: {self.message} [{self.code}]"


@dataclass
class Report:
    """What validation found."""

    files: list[Path]
    table: Table  # the rows without an error
    rows: int = 0
    problems: list[Problem] = field(default_factory=list)  # at most SHOWN of a kind, in order of place
    found: Counter[tuple[str, str]] = field(default_factory=Counter)  # all of them, by (severity, code)
    clusters: list[Cluster] = field(default_factory=list)
    window: str = ""  # what was or was not measured in tokens

    @property
    def errors(self) -> list[Problem]:
        return [p for p in self.problems if p.severity == "error"]

    @property
    def warnings(self) -> list[Problem]:
        return [p for p in self.problems if p.severity == "warning"]

    def total(self, severity: str) -> int:
        """How many errors or warnings there are, shown or not."""
        return sum(n for (kind, _), n in self.found.items() if kind == severity)

    @property
    def records(self) -> list[dict[str, Any]]:
        """The rows without an error, read again: for data that fits into memory."""
        t = self.table
        with LineReader(self.files) as reader:
            return [reader.record(f, o, n) for f, o, n in zip(t.file, t.offset, t.length, strict=True)]

    def counts(self) -> dict[str, dict[str, int]]:
        """Rows by language, category, difficulty, stance."""
        t = self.table
        columns = {
            "language": (t.language, LANGUAGES),
            "category": (t.category, t.categories),
            "difficulty": (t.difficulty, DIFFICULTIES),
            "stance": (t.stance, STANCES),
        }
        return {
            name: {labels[i]: int(n) for i, n in enumerate(np.bincount(column)) if n}
            for name, (column, labels) in columns.items()
        }

    def summary(self) -> dict[str, Any]:
        """The report as JSON would hold it."""
        return {
            "files": [str(file) for file in self.files],
            "rows": self.rows,
            "valid": len(self.table),
            "errors": self.total("error"),
            "warnings": self.total("warning"),
            "found": {f"{severity}:{code}": count for (severity, code), count in sorted(self.found.items())},
            "problems": [vars(p) for p in self.problems],
            "counts": self.counts(),
            "clusters": [self.cluster_summary(c) for c in self.clusters[:100]],
            "window": self.window,
        }

    def cluster_summary(self, cluster: Cluster) -> dict[str, Any]:
        t = self.table
        sample = [
            {"id": t.ids[i], "file": str(self.files[t.file[i]]), "line": int(t.line[i])} for i in cluster.rows[:3]
        ]
        return {"kind": cluster.kind, "field": cluster.field, "rows": len(cluster.rows), "sample": sample}


def validate(
    paths: list[Path],
    constitution: Constitution,
    categories: tuple[str, ...],
    *,
    ruler: TokenCounter | None = None,
    whole: bool = True,
) -> Report:
    """Check every line of every file, then the set.

    Args:
        categories: the known ones; another is a warning, since categories are configuration. () accepts any.
        ruler: measures rows in tokens; None: nothing is measured.
        whole: also look at the set (likeness, balance, leaks between files), and for language, accents and personal data.
    """
    files = find_files(paths)
    special = ruler.special_tokens if ruler else None
    rules = Rules(tuple(sorted(constitution.value_ids)), constitution.principle_ids, categories, special, doubts=whole)
    report = _check_lines(files, rules)
    _check_ids(report)
    with LineReader(files) as reader:
        if ruler is not None:
            _check_window(report, ruler, reader)
        if whole:
            report.clusters = find_clusters(report.table)
            for row, finding in check_whole_set(report.table, report.clusters, files, rules.values, reader):
                _add(report, finding, row)
    report.problems.sort(key=lambda p: (p.line == 0, p.file, p.line))
    return report


def _check_lines(files: list[Path], rules: Rules) -> Report:
    tables, report = [], Report(files, _EMPTY)
    first_line: Counter[Path] = Counter()
    for part in scan(files, rules):
        base = first_line[part.piece.file] + 1
        first_line[part.piece.file] += part.lines
        part.table.line += base
        tables.append(part.table)
        report.rows += part.rows
        shown: Counter[str] = Counter()
        for line, finding in part.findings:
            shown[finding.code] += 1
            _add(report, finding, place=(str(part.piece.file), base + line))
        for (code, warning), count in part.counts.items():
            report.found["warning" if warning else "error", code] += count - shown[code]
    report.table = join(tables) if tables else _EMPTY
    return report


def _check_ids(report: Report) -> None:
    """An id is unique within its language; the later row is the error."""
    table = report.table
    first: dict[tuple[str, int], int] = {}
    good = np.ones(len(table), bool)
    for row, key in enumerate(zip(table.ids, table.language.tolist(), strict=True)):
        if first.setdefault(key, row) != row:
            there = first[key]
            place = f"{report.files[table.file[there]]}:{table.line[there]}"
            _add(
                report,
                Finding("duplicate-id", f"the id {key[0][:80]!r} ({LANGUAGES[key[1]]}) was already used at {place}"),
                row,
            )
            good[row] = False
    if not good.all():
        report.table = table.keep(good)


def _check_window(report: Report, ruler: TokenCounter, reader: LineReader) -> None:
    good = np.ones(len(report.table), bool)
    for row, message in too_long(ruler, report.table, reader):
        _add(report, Finding("window", message), row)
        good[row] = False
    report.window = (
        f"every row fits into {ruler.max_length} tokens of {ruler.model}"
        if good.all()
        else f"{(~good).sum()} rows do not fit {ruler.model}"
    )
    if not good.all():
        report.table = report.table.keep(good)


def _add(report: Report, finding: Finding, row: int | None = None, place: tuple[str, int] | None = None) -> None:
    """Note a finding at a row of the table, at a place, or of the set."""
    severity = "warning" if finding.warning else "error"
    report.found[severity, finding.code] += 1
    if report.found[severity, finding.code] <= SHOWN:
        if row is not None:
            place = (str(report.files[report.table.file[row]]), int(report.table.line[row]))
        report.problems.append(Problem(*(place or ("", 0)), finding.code, finding.message, severity))


_EMPTY = Table.empty()
