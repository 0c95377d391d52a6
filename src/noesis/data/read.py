"""Read exported files back: `train.jsonl`, `eval.jsonl`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from noesis.constitution.document import Constitution
from noesis.data.validate import validate
from noesis.errors import DataError, UsageError


def read_examples(file: Path, constitution: Constitution) -> list[dict[str, Any]]:
    """The records of one file, checked again: a file on a volume may have been edited since its export.

    Raises:
        UsageError: the file is not there.
        DataError: a line that must not be trained on, or no line at all.
    """
    if not file.is_file():
        raise UsageError(f"{file} is missing (Dataset not found): write it with  python scripts/export_for_modal.py")
    report = validate([file], constitution, categories=())
    if report.errors:
        raise DataError(f"{report.errors[0]}" + (f" (and {len(report.errors) - 1} more)" if len(report.errors) > 1 else ""))
    if not report.records:
        raise DataError(f"{file} holds no example")
    return report.records
