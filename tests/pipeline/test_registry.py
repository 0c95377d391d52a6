"""One list of stages: everything that needs their names, order or dependencies follows from it."""

from __future__ import annotations

import ast
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from helpers.project import ROOT
from noesis.core.errors import RunError, UsageError
from noesis.core.project import Project
from noesis.pipeline import registry
from noesis.pipeline.registry import REGISTRY, PipelineOptions, run_all, stages_to_run, training_stages
from noesis.run.manifest_file import parse_manifest
from noesis.run.stages import SPECS, STAGES

JUDGED = PipelineOptions(Project(ROOT), ("openai:http://127.0.0.1:9/v1:judge",))


def test_every_stage_is_bound_once_and_in_order():
    assert tuple(REGISTRY) == STAGES
    assert all(stage.spec is SPECS[name] and stage.title for name, stage in REGISTRY.items())


def test_the_results_of_a_finished_run_are_parsed():
    manifest = json.loads((ROOT / "tests" / "helpers" / "golden_trial_manifest.json").read_text(encoding="utf-8"))
    for name, record in parse_manifest(manifest).stages.items():
        assert record.result is not None
        assert REGISTRY[name].result(record.result)


def test_all_stages_run_in_order_under_their_headings(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    ran: list[str] = []

    def recording(name: str) -> Any:
        return lambda s, options: ran.append(name)

    monkeypatch.setattr(registry, "REGISTRY", {n: replace(st, run=recording(n)) for n, st in REGISTRY.items()})
    s: Any = None
    run_all(s, done=1)
    assert ran == ["plan", "train", "choose", "dial", "judge", "merge", "gguf", "report"]
    assert "[2/9] plan — what will be trained" in capsys.readouterr().out
    ran.clear()
    run_all(s, JUDGED)
    assert ran == list(STAGES[1:])  # the trial comes before the report, which shows it
    ran.clear()
    run_all(s, stages=training_stages(), done=1)
    assert ran == ["plan", "train", "choose", "dial"]
    assert "[5/5] dial" in capsys.readouterr().out


def test_judges_need_a_project_and_an_export_needs_data(tmp_path: Path):
    assert "trial" in stages_to_run(JUDGED)
    s: Any = type("Session", (), {"run": type("Run", (), {"path": tmp_path})})
    with pytest.raises(UsageError, match="--project"):
        REGISTRY["choose"].run(s, PipelineOptions(judges=("x",)))
    with pytest.raises(RunError, match="noesis train --run"):
        REGISTRY["export"].run(s, PipelineOptions())


PUBLIC_NAMES = ROOT / "src" / "noesis" / "__init__.py"  # of which some functions are called as stages are


def test_nowhere_else_is_a_list_of_the_stages():
    """A second list lacked `choose` and `trial`, so that adding epochs left the old choice standing."""
    wrong = []
    for file in (ROOT / "src" / "noesis").rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Tuple | ast.List | ast.Set):
                names = [e.value for e in node.elts if isinstance(e, ast.Constant)]
                if len(set(names) & set(STAGES)) > 3 and file.name != "stages.py" and file != PUBLIC_NAMES:
                    wrong.append(f"{file.relative_to(ROOT)}:{node.lineno}")
    assert wrong == []
