"""Which GGUF files `noesis gguf` certifies: one certificate covers every file that is there, in whatever order they came."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from hostile.runs.finished_run import NAME, findings, finish_run
from noesis.core.files import sha256_file, write_json, write_text
from noesis.pipeline.session import RunSession
from noesis.pipeline.stages import gguf
from noesis.pipeline.stages.gguf import run_gguf
from noesis.release.parity.certificate import AnswerAgreement, Certificate, Divergence, GgufFile
from noesis.release.parity.outcome import name_files
from noesis.release.parity.tolerances import TOLERANCES, assess
from noesis.run.directory import load_run


@pytest.fixture
def session(
    tmp_path: Path, tiny_shape: Path, quiet_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[RunSession]:
    """A finished run with an f16 file; writing and measuring are stand-ins."""
    import shutil

    from helpers.project import ROOT

    shutil.copytree(ROOT / "data", tmp_path / "project" / "data")
    s = finish_run(tmp_path / "project", tiny_shape, tmp_path / "run")

    def write(model: Path, file: Path, kind: str, **_: Any) -> None:
        file.write_bytes(f"GGUF {kind} of {sha256_file(model / 'model.safetensors')}".encode())

    def certify(s: RunSession, files: dict[str, Path], folder: Path, *, with_adapter: bool, **_: Any) -> Certificate:
        def passed(kind: str, file: Path) -> Any:
            near, agreement = Divergence(1e-6, 1e-5, 1.0, 1e-3), AnswerAgreement(1, 1, 1, 1.0)
            found = assess(near, agreement, TOLERANCES[kind], stage="conversion", symptom="far")
            return type(found)(**{**vars(found), "file": GgufFile(file.name, file.stat().st_size, sha256_file(file))})

        found = {kind: passed(kind, folder / file.name) for kind, file in files.items()}
        adapter = passed("adapter", folder / f"{NAME}-adapter.gguf") if with_adapter else None
        certificate = name_files(Certificate(1, 1, "it", 1, 1, 1, None, found, adapter), folder, s.run.gguf)
        write_json(s.run.gguf / "parity.json", certificate.to_json())
        write_text(s.run.gguf / "Modelfile", "FROM it\n")
        return certificate

    monkeypatch.setattr("noesis.release.gguf.writer.write_gguf", write)
    monkeypatch.setattr(gguf, "certify_files", certify)
    monkeypatch.setattr(
        gguf, "write_adapter", lambda s, folder: (folder / f"{NAME}-adapter.gguf").write_bytes(b"GGUF adapter")
    )
    yield s


SEQUENCES = {
    "another kind": [(("q8_0",), False)],
    "one of two again": [(("f16", "q8_0"), False), (("f16",), False)],
    "one after the other": [(("q8_0",), False), (("q4_k_m",), False), (("f32",), False)],
    "the adapter once": [(("f16",), True), (("q8_0",), False)],
}


@pytest.mark.parametrize("steps", [pytest.param(steps, id=name) for name, steps in SEQUENCES.items()])
def test_every_honest_sequence_verifies(session: RunSession, tmp_path: Path, steps: list[tuple[Any, bool]]):
    asked = {"f16"}
    for kinds, adapter in steps:
        found = run_gguf(session, kinds=kinds, adapter=adapter)
        asked |= set(kinds)
        assert set(found.files) == asked
        assert [f for f in findings(tmp_path / "run", tmp_path) if "GGUF" in f.what or "belong" in f.what] == []
    assert (found.adapter is not None) == any(adapter for _, adapter in steps)


def test_a_kind_that_is_there_is_not_written_again(session: RunSession):
    run_gguf(session, kinds=("f16", "q8_0"))
    before = json.loads((session.run.path / "manifest.json").read_text())["stages"]["gguf"]
    run_gguf(session, kinds=("q8_0",))
    assert json.loads((session.run.path / "manifest.json").read_text())["stages"]["gguf"] == before


def test_a_file_of_an_earlier_merge_is_replaced(session: RunSession):
    run_gguf(session, kinds=("f16", "q8_0"))
    file = session.run.gguf / f"{NAME}-q8_0.gguf"
    before = file.read_bytes()

    def merge_again() -> dict[str, Any]:
        write_text(session.run.merged / "model.safetensors", "other weights")
        return {**(session.run.result("merge") or {}), "tensors": 3}

    outputs = sorted(session.run.merged.iterdir())
    session.run.perform("merge", merge_again, lambda: outputs, again=True)
    run_gguf(session, kinds=("f16",))
    assert file.read_bytes() != before
    assert load_run(session.run.path).vouches_for("gguf", file, thoroughly=True)


@pytest.mark.parametrize("then", ["gguf", "parity"])
def test_a_stopped_stage_goes_on_with_its_files_and_leaves_no_strays(
    session: RunSession, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, then: str
):
    from noesis.release.gguf import writer

    written, write, certify = [], writer.write_gguf, gguf.certify_files

    def counted(model: Path, file: Path, kind: str, **named: Any) -> None:
        written.append(kind)
        write(model, file, kind, **named)

    def stop(*_: Any, **__: Any) -> Certificate:
        raise KeyboardInterrupt

    monkeypatch.setattr(writer, "write_gguf", counted)
    monkeypatch.setattr(gguf, "certify_files", stop)
    with pytest.raises(KeyboardInterrupt):
        run_gguf(session, kinds=("q8_0",))
    assert sorted(written) == ["f16", "q8_0"]
    monkeypatch.setattr(gguf, "certify_files", certify)
    found = run_gguf(session, kinds=("q8_0",)) if then == "gguf" else gguf.parity(session)
    assert sorted(written) == ["f16", "q8_0"]
    assert "f16" in found.files
    assert not (session.run.gguf / ".unfinished").exists()
    told = findings(session.run.path, tmp_path)
    assert [f.wrong for f in told if f.wrong and ("GGUF" in f.what or "belong" in f.what)] == []
