"""The report as people read it who don't see it whole: by headings, by table heads, in its languages."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from helpers.project import ROOT
from noesis.constitution.document import load_constitution
from noesis.pipeline.results import RunResults
from noesis.pipeline.stages.report import parity_chart, write_report
from noesis.run.directory import load_run

GOLDEN = ROOT / "tests" / "helpers" / "golden_run"


class Tags(HTMLParser):
    def __init__(self, page: str) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))


def report(folder: Path, change: Callable[[dict[str, Any]], None] = lambda stages: None) -> str:
    """The page of the golden run, with its stages' results changed."""
    shutil.copytree(GOLDEN, folder)
    file = folder / "manifest.json"
    manifest = json.loads(file.read_text(encoding="utf-8"))
    change(manifest["stages"])
    file.write_text(json.dumps(manifest), encoding="utf-8")
    run = load_run(folder)
    write_report(run, run.config(), load_constitution(folder / "data" / "constitution.yaml"))
    return run.report.read_text(encoding="utf-8")


def test_headings_are_in_order_and_table_heads_say_what_they_head(tmp_path: Path):
    tags = Tags(report(tmp_path / "run")).found
    levels = [int(tag[1]) for tag, _ in tags if tag in ("h1", "h2", "h3", "h4")]
    assert levels[0] == 1 and levels.count(1) == 1
    assert all(after <= before + 1 for before, after in pairwise(levels))
    scopes = [attributes.get("scope") for tag, attributes in tags if tag == "th"]
    assert set(scopes) == {"col", "row"}


def test_each_answer_is_in_its_own_language(tmp_path: Path):
    file = GOLDEN / "tribunal" / "answers.jsonl"
    rows = [json.loads(line) for line in file.read_text(encoding="utf-8").split("\n") if line]
    tags = Tags(report(tmp_path / "run")).found
    languages = [attributes["lang"] for tag, attributes in tags if tag == "div" and "lang" in attributes]
    assert languages == [row["language"] for row in rows for _ in range(4)]  # prompt, two answers, the written one


@pytest.mark.parametrize("fell", [True, False])
def test_a_margin_that_fell_is_said(fell: bool, tmp_path: Path):
    def change(stages: dict[str, Any]) -> None:
        preference = stages["judge"]["result"]["preference"]
        preference["base"]["mean_margin"], preference["tuned"]["mean_margin"] = (0.5, 0.25) if fell else (0.25, 0.5)

    page = report(tmp_path / "run", change)
    assert ("the mean margin fell by 0.2500" in page) is fell and ("The mean margin fell:" in page) is fell


def test_one_checkpoint_was_not_chosen_by_anything(tmp_path: Path):
    page = report(tmp_path / "run")
    assert "There was one checkpoint, so there was nothing to choose." in page and "hosen by the only" not in page


def test_a_chart_has_at_most_six_labels_on_an_axis(tmp_path: Path):
    shutil.copytree(GOLDEN, tmp_path / "run")
    certificate = RunResults(load_run(tmp_path / "run")).certificate
    assert 2 <= len(parity_chart(certificate)["ticks"]) <= 6
