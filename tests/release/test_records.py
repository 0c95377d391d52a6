"""What a release leaves on disk is read into types and written back unchanged; the card says what the run says."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from helpers.project import ROOT
from noesis.constitution.document import load_constitution
from noesis.core.device import detect
from noesis.core.errors import ModelError
from noesis.llm.embedded import Model
from noesis.pipeline.session import RunSession
from noesis.pipeline.stages.gguf import previous_certificate
from noesis.pipeline.stages.merge import card_content, write_card
from noesis.release.merge_weights import MergeResult
from noesis.release.model_card import model_card
from noesis.release.parity.certificate import Certificate, Finding, Tolerance
from noesis.release.parity.outcome import name_files, require_passed
from noesis.release.parity.tolerances import TOLERANCES, assess, tolerance_of
from noesis.release.provenance import Provenance, read_provenance
from noesis.run.directory import load_run

GOLDEN = ROOT / "tests" / "helpers" / "golden_run"
MERGED = GOLDEN / "merged" / "noesis-philosopher-v1"


def golden_certificate() -> Certificate:
    return Certificate.from_json(json.loads((GOLDEN / "gguf" / "parity.json").read_text(encoding="utf-8")))


def session(folder: Path) -> RunSession:
    """The finished run, without its weights."""
    run = load_run(Path(shutil.copytree(GOLDEN, folder)))
    config = run.config()
    model = Model(config.training.model, folder, "b179c9523d0e", "Apache-2.0")
    return RunSession(run, config, load_constitution(run.data / "constitution.yaml"), model, detect())


def test_a_certificate_is_read_and_written_unchanged():
    stored = json.loads((GOLDEN / "gguf" / "parity.json").read_text(encoding="utf-8"))
    certificate = golden_certificate()
    assert json.dumps(certificate.to_json()) == json.dumps(stored)  # the order of keys too
    assert [name for name, _ in certificate.comparisons()] == ["merged", "f16", "q8_0"]
    require_passed(certificate)


def test_a_comparison_with_every_part_is_read_and_written_unchanged():
    certificate = golden_certificate()
    stored = certificate.to_json()
    broken = {"findings": [{"stage": "template", "what": "missing"}], "broken_by": "template", "why": "missing"}
    stored["merge"]["on_original_weights"] = dict.fromkeys(("kl_mean", "kl_max", "top1", "max_logit_difference"), 0.5)
    stored["files"]["f16"] |= broken | {"passed": False, "kl_mean": None}
    figures = {k: stored["files"]["q8_0"][k] for k in ("kl_mean", "kl_max", "top1", "max_logit_difference")}
    others = {k: stored["files"]["q8_0"][k] for k in ("answers", "tolerance", "passed", "findings", "broken_by", "why")}
    stored["adapter"] = figures | others | {"file": "a.gguf", "bytes": 1, "sha256": "0", "on": "base.gguf"}
    assert Certificate.from_json(stored).to_json() == stored


@pytest.mark.parametrize("damage", [{"files": {"f16": {}}}, {"merge": "x"}, {"answered": None}])
def test_a_damaged_certificate_is_one_message(damage: dict):
    with pytest.raises(ModelError, match="certificate is damaged .* noesis parity RUN"):
        Certificate.from_json(golden_certificate().to_json() | damage)


def test_a_run_with_a_damaged_certificate_is_measured_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    s = session(tmp_path / "run")
    assert previous_certificate(s) == golden_certificate()
    monkeypatch.setattr(s.run, "result", lambda stage: {"files": {"f16": {"passed": True}}})
    assert previous_certificate(s) is None


def test_the_tolerance_depends_on_the_size_and_the_first_finding_is_blamed():
    assert tolerance_of("q8_0", 1e8) == TOLERANCES["q8_0"]
    assert tolerance_of("q8_0", 8e9) == Tolerance(5e-3, 0.93)
    assert tolerance_of("f16", 8e9) == TOLERANCES["f16"]
    good = golden_certificate().files["f16"]
    passed = assess(good.divergence, good.answers, good.tolerance, stage="conversion", symptom="it misbehaves")
    assert (passed.passed, passed.broken_by, passed.why) == (True, None, None)
    strict = Tolerance(0.0, 1.0)
    failed = assess(good.divergence, good.answers, strict, stage="conversion", symptom="it misbehaves")
    assert (failed.passed, failed.broken_by, failed.why) == (False, "conversion", "it misbehaves")
    found = [Finding("tokenizer", "lost"), Finding("template", "missing")]
    blamed = assess(good.divergence, good.answers, good.tolerance, stage="x", symptom="y", findings=found)
    assert (blamed.passed, blamed.broken_by, blamed.why) == (False, "tokenizer", "lost; missing")


def test_a_certificate_that_passed_renames_nothing(tmp_path: Path):
    certificate = golden_certificate()
    assert name_files(certificate, tmp_path, tmp_path) == certificate


def test_a_merge_result_is_read_and_written_unchanged():
    stored = json.loads((GOLDEN / "manifest.json").read_text(encoding="utf-8"))["stages"]["merge"]["result"]
    result = MergeResult.from_json(stored)
    assert json.dumps(result.to_json()) == json.dumps(stored)
    assert result.basis == "trained"
    plain = {k: v for k, v in stored.items() if k not in ("originals", "basis")}  # as older runs have it
    assert MergeResult.from_json(plain).to_json() == plain | {"basis": "trained"}


def test_provenance_is_read_and_written_unchanged(tmp_path: Path):
    provenance = read_provenance(MERGED)
    assert provenance.base_url == "https://huggingface.co/HuggingFaceTB/SmolLM2-135M-Instruct"
    provenance.save(tmp_path)
    assert (tmp_path / "noesis.json").read_bytes() == (MERGED / "noesis.json").read_bytes()


def test_foreign_provenance_adds_no_keys(tmp_path: Path):
    text = '{"base": 7, "licence": ["MIT"], "general.name": "sly", "noesis": "1"}'
    (tmp_path / "noesis.json").write_text(text, encoding="utf-8")
    assert read_provenance(tmp_path) == Provenance(noesis="1")
    assert Provenance(base="./folder/x").base_url is None


@pytest.mark.parametrize("text", ["{", '["x"]'])
def test_damaged_provenance_is_one_message(tmp_path: Path, text: str):
    (tmp_path / "noesis.json").write_text(text, encoding="utf-8")
    with pytest.raises(ModelError, match=r"noesis\.json is damaged"):
        read_provenance(tmp_path)


def test_the_card_says_what_the_run_says(tmp_path: Path):
    s = session(tmp_path / "run")
    text = model_card(card_content(s))
    for line in (
        "| examples | 16, sha256 ee4a04ac2d86ead9 |",
        "| steps, loss | 2, 3.905 → 3.866 |",
        "| held-out loss | 4.0890 → 3.7816 nats per token |",
        "| preference accuracy | 0.23 → 0.23 [0.08, 0.50] on 13 held-out examples |",
    ):
        assert line in text.splitlines()
    assert "| Tribunal | UNDECIDED: no judge is seated" in text


def test_there_is_no_card_before_there_is_a_model(tmp_path: Path):
    s = session(tmp_path / "run")
    shutil.rmtree(s.run.merged)
    write_card(s)
    assert not s.run.merged.exists()
