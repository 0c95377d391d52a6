"""Attacks on who reads a report: names and answers of a stranger's run that would be markup, reorder or hide text."""

from __future__ import annotations

import json
import shutil
from html.parser import HTMLParser
from pathlib import Path

import pytest
from markupsafe import escape

from helpers.project import ROOT
from noesis.constitution.document import load_constitution
from noesis.core.console import printable
from noesis.pipeline.stages.report import write_report
from noesis.run.directory import load_run


class Tags(HTMLParser):
    """The tags of a page with the names of their attributes."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.found: list[tuple[str, tuple[str, ...]]] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, tuple(name for name, _ in attrs)))


def report(run_folder: Path) -> str:
    run = load_run(run_folder)
    write_report(run, run.config(), load_constitution(run_folder / "data" / "constitution.yaml"))
    return run.report.read_text(encoding="utf-8")


@pytest.mark.parametrize(
    "text",
    [
        pytest.param("<script>alert(1)</script>", id="a script in every text of a report"),
        pytest.param('"><img src=x onerror=alert(1)>', id="an attribute that is closed early in a report"),
        pytest.param("' onmouseover='alert(1)", id="a second attribute in a report"),
        pytest.param("</title></style><base href=//evil.example>", id="the end of a title or style in a report"),
        pytest.param("{{ config }}{% for x in y %}", id="a template in the texts of a report"),
        pytest.param("\u202eDEVORPPA\u2066\x1b[2J\u200b", id="reordered and hidden text in a report"),
    ],
)
def test_a_report_shows_text_as_text(text: str, tmp_path: Path):
    run = tmp_path / "run"
    shutil.copytree(ROOT / "tests" / "helpers" / "golden_run", run)
    plain = Tags(report(run)).found
    file = run / "tribunal" / "answers.jsonl"
    rows = [json.loads(line) for line in file.read_text(encoding="utf-8").split("\n") if line]
    for row in rows:
        row |= {"id": text, "category": text, "prompt": text}
        row["base"]["answer"] = row["tuned"]["answer"] = text
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    page = report(run)
    assert Tags(page).found == plain
    assert not {"\u202e", "\u2066", "\x1b", "\u200b"} & set(page)
    assert str(escape(printable(text))) in page


def test_a_report_of_a_run_whose_name_is_not_utf8(tmp_path: Path):
    run = tmp_path / "run\udcff"
    shutil.copytree(ROOT / "tests" / "helpers" / "golden_run", run)
    assert "run\\udcff" in report(run)
