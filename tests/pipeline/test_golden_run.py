"""A finished run of version 0.1.0 (`noesis demo --quick`, its weights left out) is read as it lies; and no hash that lies in such a run moves."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from helpers.project import ROOT
from noesis.cloud.run_summary import summary_lines
from noesis.constitution.document import load_constitution
from noesis.core.config import load_config
from noesis.core.errors import RunError
from noesis.core.files import sha256_json
from noesis.core.project import Project
from noesis.llm.clients.protocol import ModelRequest
from noesis.pipeline.registry import REGISTRY
from noesis.pipeline.results import RunResults
from noesis.pipeline.stages.report import write_report
from noesis.pipeline.verify.check_run import verify
from noesis.pipeline.verify.status import status
from noesis.run.directory import load_run
from noesis.run.stages import STAGES
from noesis.synthesis.prompt_templates import wording_digest
from noesis.tribunal.calibration.benchmark import Benchmark
from noesis.tribunal.rubric import load_rubrics
from noesis.tribunal.suite import read_benchmark, read_suite

GOLDEN = ROOT / "tests" / "helpers" / "golden_run"


@pytest.fixture
def golden(tmp_path: Path) -> Path:
    return Path(shutil.copytree(GOLDEN, tmp_path / "demo"))


def test_its_results_are_read(golden: Path):
    run = load_run(golden)
    assert [name for name in STAGES if run.result(name) is not None] == [
        name for name in STAGES if name not in ("trial", "dial")
    ]
    assert run.config().digest() == run.identity.config_sha256
    assert RunResults(run).ruling.verdict == "UNDECIDED"
    assert round(run.spent()[1]) == 432


@pytest.mark.parametrize("file", ["golden_run/manifest.json", "golden_trial_manifest.json"])
def test_every_stage_writes_its_result_as_it_read_it(file: str):
    manifest = json.loads((GOLDEN.parent / file).read_text(encoding="utf-8"))
    stored = {name: stage["result"] for name, stage in manifest["stages"].items() if name in REGISTRY}
    assert len(stored) >= len(STAGES) - 2
    for name, result in stored.items():
        assert json.loads(json.dumps(REGISTRY[name].result(result).to_json())) == result, name


def test_a_damaged_result_is_named(golden: Path):
    manifest = json.loads((golden / "manifest.json").read_text(encoding="utf-8"))
    del manifest["stages"]["train"]["result"]["steps"]
    (golden / "manifest.json").write_text(json.dumps(manifest), encoding="utf-8")
    results = RunResults(load_run(golden))
    assert results.judge is not None
    with pytest.raises(RunError, match="result of the stage train can't be read"):
        _ = results.train


def test_status_and_verify_miss_its_weights_and_nothing_else(golden: Path):
    missing = {"train", "merge", "gguf"}
    states = {state.name: state for state in status(load_run(golden))}
    assert {name for name, state in states.items() if state.wrong} == missing | {"report"}
    assert all("missing" in wrong for state in states.values() for wrong in state.wrong)
    found = {f.what: f.wrong for f in verify(load_run(golden)) if f.wrong}
    assert found
    assert all(why.endswith(("missing", "changed since")) for why in found.values()), found


def test_the_report_and_the_summary_are_made_from_it(golden: Path):
    run = load_run(golden)
    write_report(run, run.config(), load_constitution(golden / "data" / "constitution.yaml"))
    page = run.report.read_text(encoding="utf-8")
    assert "UNDECIDED" in page
    assert any("noesis-philosopher-v1" in line for line in summary_lines(golden))


def test_no_hash_that_lies_in_a_run_moves():
    project = Project(ROOT)
    request = ModelRequest((("system", "a"), ("user", "b")), {"type": "object"}, 100, seed=3)
    sampled = ModelRequest((("user", "b"),), {}, 10, temperature=0.7, logprobs=5, attempt=1)
    pairs, twins = read_benchmark(ROOT / "data" / "tribunal", "dev")
    suite = read_suite(ROOT / "data" / "tribunal", "dev")
    assert {
        "config": load_config(project).digest(),
        "rubrics": load_rubrics(ROOT / "data" / "tribunal" / "judges").digest(),
        "request": request.key("openai:x:y"),
        "sampled": sampled.key("gguf:z"),
        "suite": sha256_json([sample.model_dump(mode="json") for sample in suite]),
        "benchmark": Benchmark([pair for pair in pairs if not pair.since], twins, "dev").digest(),
        "benchmark of 2026-11-27": Benchmark(pairs, twins, "dev").digest(),
        "prompt templates": wording_digest(),
    } == PINNED


PINNED = {
    "config": "eb364ea2f4780791dea57db9febf7c6468183ef48e6485d123d89bd0a8759ab6",
    "rubrics": "90f07c07d452a92cab51dc83f9041bef10ef2ebac7ae7467f564d43cb1168ca9",
    "request": "994781e793ee27dd51f2c9cb44882265a0d38153d3841031baae330cc3480466",
    "sampled": "3de549b8877f4a4ae98faf64429ec9d6344d1cda374940c48e35e1996d8b3473",
    "suite": "f363c74b6d15a86f661ba7187c03d85f5bf9dd104cf4c739590eccc4b3b9656e",
    "benchmark": "a3ddd1d5ff9cd0c4caffd1faf9508bc8d5cc1811ef8553797281e98f3fb5d0b5",
    "benchmark of 2026-11-27": "8b4f20dcc2f390f4bbaf51041970d60e481fcc006a2a08742cdf0e10a42af4d6",
    "prompt templates": "996ef328064ee2bee6fb5d8c616deeb49ef1430acf3915e77b4715191e67392e",
}
