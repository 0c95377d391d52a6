"""Tables as CSV: read back as they were, and nothing in them that a spreadsheet would compute."""

from __future__ import annotations

import csv
import io
from pathlib import Path

import pytest

from noesis.pipeline.comparison.csv_table import csv_text, write_csv


def test_a_table_reads_back_with_every_column_that_some_row_has(tmp_path: Path):
    rows = [{"id": "a,b", "n": -0.5, "used": True}, {"id": 'c "d"\ne', "more": None, "n": 2}]
    write_csv(tmp_path / "t.csv", rows)
    with open(tmp_path / "t.csv", encoding="utf-8", newline="") as f:
        assert list(csv.DictReader(f)) == [
            {"id": "a,b", "n": "-0.5", "used": "1", "more": ""},
            {"id": 'c "d"\ne', "n": "2", "used": "", "more": ""},
        ]
    assert csv_text([]) == "\n"


@pytest.mark.parametrize("text", ["=1+1", "+1", "-1", "@SUM(A1)", "\t=1", "%0a=1", "|calc"])
def test_text_that_a_spreadsheet_would_compute_is_text(text: str):
    ((cell,),) = list(csv.reader(io.StringIO(csv_text([{"x": text}]))))[1:]
    assert cell[0] == "'"


def test_control_characters_are_written_out():
    assert "\x1b" not in csv_text([{"x": "a\x1b[2Jb"}])
