"""The lines and examples behind the rows of a scanned table."""

from __future__ import annotations

from pathlib import Path

from noesis.core.jsonl import BYTE_ORDER_MARK, parse_object
from noesis.dataset.checks.scan import Table
from noesis.dataset.schema import Example


class RowReader:
    """Reads rows of a table; keeps the files open."""

    def __init__(self, files: list[Path]) -> None:
        self._handles = [open(file, "rb") for file in files]  # noqa: SIM115

    def __enter__(self) -> RowReader:
        return self

    def __exit__(self, *_: object) -> None:
        for handle in self._handles:
            handle.close()

    def line(self, table: Table, row: int) -> bytes:
        """The row's line as it is in the file, without its end and without a byte-order mark."""
        handle = self._handles[table.file[row]]
        handle.seek(table.offset[row])
        data: bytes = handle.read(int(table.length[row]))
        return data.removeprefix(BYTE_ORDER_MARK).strip()

    def example(self, table: Table, row: int) -> Example:
        """The row's example: the one that the scan kept, else read again."""
        return table.examples[row] if table.examples else Example.from_json(parse_object(self.line(table, row)))
