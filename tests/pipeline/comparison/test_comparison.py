"""Several runs side by side, and one before the judges against another: paired on what they share, or told why not."""

from __future__ import annotations

import csv
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from helpers import judge_server as play
from helpers.manifest import edited_manifest
from helpers.tiny_runs import run_all, toy_tribunal
from noesis.cli import run_command
from noesis.core.errors import RunError, UsageError
from noesis.core.project import Project
from noesis.pipeline.comparison.table import Comparison, compare_runs_side_by_side
from noesis.pipeline.verify.check_run import verify
from noesis.run.directory import load_run

pytestmark = pytest.mark.slow


def edit(file: Path, change: Callable[[dict], None]) -> None:
    stored = json.loads(file.read_text(encoding="utf-8"))
    change(stored)
    file.write_text(json.dumps(stored), encoding="utf-8")


def measures(found: Comparison) -> dict:
    return {measure.name: measure for measure in found.measures}


def test_runs_are_compared_and_one_is_judged_against_another(
    small_project: Project,
    tiny_model: Path,
    tmp_path: Path,
    quiet_cache: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
):
    monkeypatch.setattr("noesis.core.console._quiet_stdout", False)  # --json below sends all talk to stderr
    toy_tribunal(small_project.root)
    a = run_all(small_project, tiny_model, tmp_path / "a", **{"training.tribunal.trial_tokens": 8}).run.path
    b = tmp_path / "b"
    shutil.copytree(a, b)
    scores = b / "tribunal" / "checkpoints" / f"{load_run(b).adapter().name}.json"
    edit(scores, lambda s: s["scores"].update(revised=[[x - 0.1 * n, n] for x, n in s["scores"]["revised"]]))

    found = compare_runs_side_by_side([a, b], small_project)
    loss = measures(found)["held-out loss, nats a token"]
    assert loss.items == len(load_run(a).result("judge")["preference"]["by_example"])
    assert loss.cells[1].difference == pytest.approx(0.1, abs=1e-3)
    assert loss.cells[1].interval_95 == pytest.approx((0.1, 0.1), abs=1e-3) and loss.cells[0].difference is None
    assert "it was not before the Tribunal" in measures(found)["the Tribunal's mean"].why

    with play.JudgeServer(lambda asked: play.verdict(asked, 0.8)) as server:
        project = ["--project", str(small_project.root)]
        spec = ["--judge", f"openai:{server.url}:scripted", *project]
        for run in (a, b):
            assert run_command(["judge", str(run), *spec]) == 4
        capsys.readouterr()
        assert run_command(["judge", str(b), "--against", str(a), *spec]) == 0
        out = capsys.readouterr().out
        assert "/a → " in out and "/b, the tuned model of each" in out and "difference +0.000" in out
        assert "so far an impression: judge not fit" in out
        asked = len(server.requests)
        assert run_command(["judge", str(b), "--against", str(a), "--json", *spec]) == 0
        assert len(server.requests) == asked
        told = json.loads(capsys.readouterr().out)
        assert told["other"] == "a" and told["prompts"] == 24 and told["differences"]["mean"]["clusters"] == 22
        assert run_command(["judge", str(b), "--against", str(b), *spec]) == 2
        assert "another run" in capsys.readouterr().err

    assert run_command(["compare", str(a), str(b), "--json", *project]) == 0
    by_name = {measure["name"]: measure for measure in json.loads(capsys.readouterr().out)["measures"]}
    assert by_name["the Tribunal's mean"]["items"] == 22
    assert by_name["the Tribunal's mean"]["cells"][1]["difference"] == 0.0
    monkeypatch.setattr("noesis.core.console._quiet_stdout", False)
    assert run_command(["report", str(b), str(a), *project]) == 0
    assert (
        (b / "tables" / "comparison.csv")
        .read_text()
        .startswith("run,measure,shared,value,difference,low,high,p,verdict\n")
    )
    assert "Beside other runs" in (b / "report.html").read_text(encoding="utf-8")
    table = a.parent / "table.csv"
    assert run_command(["compare", str(a), str(b), "--csv", str(table), *project]) == 0
    with open(table, encoding="utf-8", newline="") as f:
        rows = [row for row in csv.DictReader(f) if row["measure"] == "prefers the revised answer"]
    assert [row["run"] for row in rows] == [a.name, b.name]
    assert (rows[0]["difference"], rows[1]["shared"]) == ("", rows[0]["shared"])
    assert "UNDECIDED: judge not fit" in capsys.readouterr().out

    with pytest.raises(UsageError, match="two different runs"):
        compare_runs_side_by_side([a, a], small_project)
    edit(scores, lambda s: s["scores"].update(revised=[[x, n + 1] for x, n in s["scores"]["revised"]]))
    assert "tokenizers differ" in measures(compare_runs_side_by_side([a, b], small_project))[loss.name].why
    with edited_manifest(b) as manifest:
        manifest["stages"]["trial"]["result"]["rubrics_sha256"] = "other"
    assert "different judges" in measures(compare_runs_side_by_side([a, b], small_project))["the Tribunal's mean"].why
    edit(scores, lambda s: s["scores"].update(revised=[["x", 1]]))
    with pytest.raises(RunError, match="can't be compared"):
        compare_runs_side_by_side([a, b], small_project)
    assert [found for found in verify(load_run(a)) if found.wrong] == []
