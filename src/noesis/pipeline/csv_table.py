"""Tables as CSV, for notebooks and spreadsheets: RFC 4180, UTF-8, a header line.

Text comes from datasets and models. A spreadsheet computes a cell that begins like a formula, so such a text gets an
apostrophe before it (https://owasp.org/www-community/attacks/CSV_Injection); numbers stay as they are.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from pathlib import Path

from noesis.core.console import printable
from noesis.core.files import write_text

Cell = str | int | float | bool | None
Rows = Sequence[Mapping[str, Cell]]
FORMULA = ("=", "+", "-", "@", "\t", "\n", "|", "%")


def csv_text(rows: Rows) -> str:
    """The rows under the names of their keys, in order of first appearance; what a row lacks, or is None, is empty."""
    names = list(dict.fromkeys(name for row in rows for name in row))
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(names)
    writer.writerows([_cell(row.get(name)) for name in names] for row in rows)
    return out.getvalue()


def write_csv(path: Path, rows: Rows) -> None:
    """Write a table, whole or not at all."""
    write_text(path, csv_text(rows))


def _cell(value: Cell) -> str | int | float:
    if value is None:
        return ""
    if isinstance(value, bool):
        return int(value)
    if isinstance(value, str):
        text = printable(value)
        return f"'{text}" if text.startswith(FORMULA) else text
    return value
