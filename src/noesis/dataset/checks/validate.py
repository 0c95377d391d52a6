"""`noesis data validate [PATHS]`: checks every line, then the set as a whole. An error is what must not be trained on.

Users' own files with the nine required fields load as they are.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from noesis.constitution.document import Constitution
from noesis.core.i18n import _, ngettext
from noesis.core.jsonl import id_key, same_id
from noesis.dataset.checks.length import TokenCounter, too_long
from noesis.dataset.checks.line import Finding, Rules
from noesis.dataset.checks.near_duplicates import Cluster, find_clusters
from noesis.dataset.checks.rows import RowReader
from noesis.dataset.checks.scan import DIFFICULTIES, LANGUAGES, STANCES, Table, join, scan
from noesis.dataset.checks.whole_set import check_whole_set
from noesis.dataset.source_files import find_files

SHOWN = 20  # problems of one kind whose place and message are kept; the others are counted


@dataclass(frozen=True)
class Problem:
    """Something wrong with one line, or with the set; `line` is then that of an example, or 0."""

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
    """What validation found.

    table: the rows without an error, with their examples where `validate` was to keep them
    rows: lines that are not blank
    problems: at most SHOWN of a kind, in order of place
    found: the number of all problems, by (severity, code)
    window: whether the rows fit the model's window; empty where it was not measured
    """

    files: list[Path]
    table: Table
    rows: int = 0
    problems: list[Problem] = field(default_factory=list)
    found: Counter[tuple[str, str]] = field(default_factory=Counter)
    clusters: list[Cluster] = field(default_factory=list)
    window: str = ""

    @property
    def errors(self) -> list[Problem]:
        return [p for p in self.problems if p.severity == "error"]

    @property
    def warnings(self) -> list[Problem]:
        return [p for p in self.problems if p.severity == "warning"]

    def total(self, severity: str) -> int:
        """How many errors or warnings there are, shown or not."""
        return sum(n for (kind, _), n in self.found.items() if kind == severity)

    def describe(self) -> str:
        """One line for the terminal: how many examples in how many files, with how many problems."""
        errors = self.total("error")
        return _(
            "{examples} in {files}: {errors}, {warnings}",
            examples=ngettext("{count:,} example", "{count:,} examples", self.rows),
            files=ngettext("{count:,} file", "{count:,} files", len(self.files)),
            errors=ngettext("{count:,} error", "{count:,} errors", errors) if errors else _("no errors"),
            warnings=ngettext("{count:,} warning", "{count:,} warnings", self.total("warning")),
        )

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

    def to_json(self) -> dict[str, Any]:
        """The report as JSON."""
        return {
            "files": [str(file) for file in self.files],
            "rows": self.rows,
            "valid": len(self.table),
            "errors": self.total("error"),
            "warnings": self.total("warning"),
            "found": {f"{severity}:{code}": count for (severity, code), count in sorted(self.found.items())},
            "problems": [vars(p) for p in self.problems],
            "counts": self.counts(),
            "clusters": [self._cluster_json(c) for c in self.clusters[:100]],
            "window": self.window,
        }

    def _cluster_json(self, cluster: Cluster) -> dict[str, Any]:
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
    counter: TokenCounter | None = None,
    whole: bool = True,
    keep_examples: bool = False,
) -> Report:
    """Check every line of every file, then the set.

    Args:
        categories: the known ones; another is a warning, since categories are configuration. () accepts any.
        counter: measures rows in tokens; None: nothing is measured.
        whole: also check the set (duplicates, balance, leaks between files), language, accents and personal data.
        keep_examples: keep the parsed examples in the report's table, for data that fits into memory.
    """
    files = find_files(paths)
    special = counter.special_tokens if counter else None
    rules = Rules(tuple(sorted(constitution.value_ids)), constitution.principle_ids, categories, special, doubts=whole)
    report = _check_lines(files, rules, keep_examples)
    _check_ids(report)
    with RowReader(files) as reader:
        if counter is not None:
            _check_window(report, counter, reader)
        if whole:
            report.clusters = find_clusters(report.table)
            for row, finding in check_whole_set(report.table, report.clusters, files, rules.values, reader):
                _add(report, finding, row)
    report.problems.sort(key=lambda p: (p.line == 0, p.file, p.line))
    return report


def _check_lines(files: list[Path], rules: Rules, keep_examples: bool) -> Report:
    tables, report = [], Report(files, _EMPTY)
    lines_before: Counter[Path] = Counter()
    for result in scan(files, rules, keep_examples=keep_examples):
        file = result.chunk.file
        result.table.line += lines_before[file]
        tables.append(result.table)
        report.rows += result.rows
        shown: Counter[tuple[str, bool]] = Counter()
        for line, finding in result.findings:
            shown[finding.code, finding.warning] += 1
            _add(report, finding, place=(str(file), lines_before[file] + line))
        for (code, warning), number in result.counts.items():
            report.found["warning" if warning else "error", code] += number - shown[code, warning]
        lines_before[file] += result.lines
    report.table = join(tables) if tables else _EMPTY
    return report


def _check_ids(report: Report) -> None:
    """An id is unique within its language, as a reader sees it; the later row is the error."""
    table = report.table
    first: dict[tuple[str, int], int] = {}
    good = np.ones(len(table), bool)
    for row, (name, language) in enumerate(zip(table.ids, table.language.tolist(), strict=True)):
        other = first.setdefault((id_key(name), language), row)
        if other != row:
            place = f"{report.files[table.file[other]]}:{table.line[other]}"
            message = _(
                "the id {name!r} ({languages}) {same_id} {place}",
                name=name[:80],
                languages=LANGUAGES[language],
                same_id=same_id(table.ids[other], name),
                place=place,
            )
            _add(report, Finding("duplicate-id", message), row)
            good[row] = False
    if not good.all():
        report.table = table.keep(good)


def _check_window(report: Report, counter: TokenCounter, reader: RowReader) -> None:
    if not len(report.table):
        report.window = _("no valid row whose length could be checked")
        return
    good = np.ones(len(report.table), bool)
    for row, message in too_long(counter, report.table, reader):
        _add(report, Finding("window", message), row)
        good[row] = False
    report.window = (
        _("every row fits into {max_length} tokens of {model}", max_length=counter.max_length, model=counter.model)
        if good.all()
        else _("{sum} rows do not fit {model}", sum=(~good).sum(), model=counter.model)
    )
    if not good.all():
        report.table = report.table.keep(good)


def _add(report: Report, finding: Finding, row: int | None = None, place: tuple[str, int] | None = None) -> None:
    """Add a finding about a row of the table, a place, or the set."""
    severity = "warning" if finding.warning else "error"
    report.found[severity, finding.code] += 1
    if report.found[severity, finding.code] <= SHOWN:
        if row is not None:
            place = (str(report.files[report.table.file[row]]), int(report.table.line[row]))
        report.problems.append(Problem(*(place or ("", 0)), finding.code, finding.message, severity))


_EMPTY = Table.empty()
