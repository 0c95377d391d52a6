"""The first screen of the report: whoever reads only that is not misled."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from helpers.project import ROOT
from noesis.pipeline.in_short import Answer, in_short
from noesis.run.directory import load_run
from noesis.tribunal.kept.figures import KeptFigures, KeptGroup

GOLDEN = ROOT / "tests" / "helpers" / "golden_run"


def answers(folder: Path, change: Callable[[dict[str, Any]], None]) -> list[Answer]:
    """Of the golden run, with its stages' records changed."""
    shutil.copytree(GOLDEN, folder)
    file = folder / "manifest.json"
    manifest = json.loads(file.read_text(encoding="utf-8"))
    change(manifest["stages"])
    file.write_text(json.dumps(manifest), encoding="utf-8")
    return in_short(load_run(folder))


def with_gains(gains: list[float]) -> Callable[[dict[str, Any]], None]:
    def change(stages: dict[str, Any]) -> None:
        preference = stages["judge"]["result"]["preference"]
        preference["examples"] = len(gains)
        preference["by_example"] = [
            {"id": f"e{i}", "base_margin": 0.1, "tuned_margin": 0.1 + gain} for i, gain in enumerate(gains)
        ]

    return change


@pytest.mark.parametrize(
    ("gains", "said", "tone"),
    [
        ([0.1, 0.12, 0.09, 0.11, 0.1, 0.13, 0.08, 0.1, 0.12], "It moved the way the examples ask", "ok"),
        ([-0.1, -0.12, -0.09, -0.11, -0.1, -0.13, -0.08, -0.1, -0.12], "It moved the other way", "bad"),
        ([0.4, -0.3, 0.2, -0.4, 0.3, -0.2, 0.1, -0.1, 0.02], "That can't be told from chance", "wait"),
        ([0.1, 0.12, 0.09], "Too few held-out examples to tell", "wait"),
        ([0.1], "Too few held-out examples to tell", "wait"),
    ],
)
def test_it_helped_only_where_that_is_beyond_chance(gains: list[float], said: str, tone: str, tmp_path: Path) -> None:
    helped = answers(tmp_path / "run", with_gains(gains))[0]
    assert helped.text.startswith(f"{said}: ") and helped.tone == tone
    assert "inf" not in helped.text
    assert "is for the Tribunal to say: undecided" in helped.text


def test_five_questions_are_answered_in_order(tmp_path: Path) -> None:
    found = answers(tmp_path / "run", lambda stages: None)
    asked = ["Did it help?", "What did it break?", "At which strength?", "What does it cost?", "What next?"]
    assert [answer.question for answer in found] == asked
    assert all(answer.text for answer in found) and "chat" in found[-1].command


def with_kept(lost: int) -> Callable[[dict[str, Any]], None]:
    """Of 48 small tasks the base could do 34, and so many of them are lost."""
    base = [True] * 34 + [False] * 14
    group = KeptGroup.of(base, [False] * lost + base[lost:], [0.0] * 48)
    return lambda stages: stages["judge"]["result"].update(kept=KeptFigures("0" * 64, group).to_json())


def test_what_was_lost_beyond_chance_comes_with_what_keeps_more(tmp_path: Path) -> None:
    broke = answers(tmp_path / "many", with_kept(14))[1]
    assert broke.tone == "bad" and "lost 14 of the 34" in broke.text and "--kl-weight 1" in broke.text
    chance = answers(tmp_path / "few", with_kept(2))[1]
    assert chance.tone == "" and "--kl-weight" not in chance.text


def test_before_the_stage_judge_there_is_nothing_to_say(tmp_path: Path) -> None:
    assert answers(tmp_path / "run", lambda stages: stages.pop("judge")) == []


def test_a_file_that_failed_its_certificate_comes_before_the_chat(tmp_path: Path) -> None:
    def change(stages: dict[str, Any]) -> None:
        for file in stages["gguf"]["result"]["files"].values():
            file["passed"] = False

    last = answers(tmp_path / "run", change)[-1]
    assert last.tone == "bad" and "don't use it" in last.text and "verify" in last.command


def test_the_page_begins_with_them(tmp_path: Path) -> None:
    from noesis.constitution.document import load_constitution
    from noesis.pipeline.stages.report import write_report

    shutil.copytree(GOLDEN, tmp_path / "run")
    run = load_run(tmp_path / "run")
    write_report(run, run.config(), load_constitution(run.path / "data" / "constitution.yaml"))
    page = run.report.read_text(encoding="utf-8")
    assert page.index("Did it help?") < page.index("What next?") < page.index('class="tiles"')
