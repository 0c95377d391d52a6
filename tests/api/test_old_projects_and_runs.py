"""What earlier versions left, and what a later one may, through the Python API."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

import noesis
from helpers.project import ROOT
from noesis.core.errors import NoesisError, RunError

GOLDEN = ROOT / "tests" / "helpers" / "golden_run"  # of version 0.1.0, its weights left out
SINCE_0_1 = ("report_to", "strength", "distill", "judge_training")


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A project as 0.1 made it: without the sections and the schema files that came later."""
    shutil.copytree(ROOT / "data", tmp_path / "old" / "data")
    training = tmp_path / "old" / "data" / "training"
    for file in training.glob("*.schema.json"):
        file.unlink()
    config = training / "training_config.yaml"
    kept, skipping = [], False
    for line in config.read_text(encoding="utf-8").split("\n"):
        if line[:1].isalpha():
            skipping = line.split(":")[0] in SINCE_0_1
        if not skipping:
            kept.append(line)
    config.write_text("\n".join(kept), encoding="utf-8")
    return tmp_path / "old"


def test_a_project_of_0_1_is_checked_as_it_is(project: Path):
    report = noesis.validate(noesis.load_project(str(project)))
    assert (report.rows, report.total("error")) == (248, 0)


def test_a_run_of_0_1_loads_and_is_not_pushed_without_its_files(tmp_path: Path):
    run = noesis.load_run(shutil.copytree(GOLDEN, tmp_path / "run"))
    assert run.manifest.noesis == "0.1.0" and run.state("train") == "done"
    with pytest.raises(NoesisError, match="not pushed|--allow undecided"):
        noesis.push(run, "mine")
    with pytest.raises(RunError, match="missing"):
        noesis.push(run, "mine", allow=["undecided", "conditional", "rejected", "uncertified"])


def test_a_run_of_a_later_version_is_refused_with_what_to_do(tmp_path: Path):
    folder = shutil.copytree(GOLDEN, tmp_path / "run")
    manifest = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
    manifest["format"] = 99
    (folder / "manifest.json").write_text(json.dumps(manifest), encoding="utf-8")
    with pytest.raises(RunError, match="later|newer"):
        noesis.load_run(folder)
