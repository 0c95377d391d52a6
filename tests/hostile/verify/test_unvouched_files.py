"""Files that no stage vouches for: they are not served, not merged, and not taken for a trained epoch."""

from __future__ import annotations

import os
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from helpers.manifest import edited_manifest
from hostile.runs.finished_run import ADAPTER, NAME, rehashed
from noesis.core.device import Device
from noesis.core.errors import RunError
from noesis.llm.embedded import Model
from noesis.pipeline.served.files import certified_gguf, served_files
from noesis.pipeline.session import RunSession
from noesis.pipeline.stages.merge import require_same_base
from noesis.pipeline.verify.evidence import Evidence
from noesis.pipeline.verify.records import check_contents
from noesis.release.parity.certificate import Certificate, GgufFile
from noesis.run.directory import load_run

GGUF = f"gguf/{NAME}-f16.gguf"


def session(run: Path) -> RunSession:
    loaded = load_run(run)
    model = Model(loaded.identity.base_model, run, loaded.identity.revision, "none")
    constitution: Any = None
    return RunSession(loaded, loaded.config(), constitution, model, Device("cpu", "none", 0, 1, bf16=False))


def without_entry(run: Path, stage: str, name: str) -> None:
    with edited_manifest(run) as manifest:
        del manifest["stages"][stage]["outputs"][name]


def test_an_honest_run_is_served_and_merged(run: Path):
    assert certified_gguf(load_run(run)).is_file()
    require_same_base(session(run))


@pytest.mark.parametrize("changed", [pytest.param(True, id="changed"), pytest.param(False, id="as it was")])
def test_a_gguf_file_without_its_entry_is_not_served(run: Path, changed: bool):
    if changed:
        (run / GGUF).write_bytes(b"GGUF evil")
    without_entry(run, "gguf", GGUF)
    with pytest.raises(RunError, match="changed since it was certified"):
        certified_gguf(load_run(run))


def test_an_adapter_s_gguf_that_is_certified_and_not_listed_is_not_served(run: Path):
    adapter = run / "gguf" / f"{NAME}-adapter.gguf"
    adapter.write_bytes(b"GGUF evil")
    with rehashed(run) as manifest:
        found = Certificate.from_json(manifest["stages"]["gguf"]["result"])
        own = replace(found.files["f16"], file=GgufFile(adapter.name, 1, "0" * 64))
        manifest["stages"]["gguf"]["result"] = replace(found, adapter=own).to_json()
    assert served_files(load_run(run), base=run / GGUF).adapter is None


def test_a_chosen_adapter_without_its_entry_is_not_merged_nor_another_in_its_place(run: Path):
    (run / ADAPTER).write_text("evil")
    with rehashed(run) as manifest:
        del manifest["stages"]["train"]["outputs"][ADAPTER]
    with pytest.raises(RunError, match="chose .epoch_1., which is not among the adapters that training left"):
        require_same_base(session(run))


def test_a_changed_adapter_of_same_size_and_time_is_not_merged(run: Path):
    file = run / ADAPTER
    before = file.stat()
    file.write_bytes(file.read_bytes().replace(b"1", b"2"))
    os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))
    with pytest.raises(RunError, match="not the file that training wrote"):
        require_same_base(session(run))


@pytest.mark.parametrize(
    "chosen",
    [pytest.param(True, id="while another was chosen"), pytest.param(False, id="while none was chosen yet")],
)
def test_an_epoch_that_training_did_not_leave_is_no_epoch(run: Path, chosen: bool):
    shutil.copytree(run / "checkpoints" / "epoch_1", run / "checkpoints" / "epoch_7")
    if not chosen:
        with edited_manifest(run) as manifest:
            del manifest["stages"]["choose"]
    loaded = load_run(run)
    assert [folder.name for folder in loaded.epochs()] == ["epoch_0", "epoch_1"]
    assert loaded.adapter().name == "epoch_1"


@pytest.mark.parametrize(
    ("place", "content", "mode"),
    [
        pytest.param("dataset/run.lua", b"#!/bin/sh\n", 0o644, id="a script of an unknown kind on the volume"),
        pytest.param("runs/x/evil.pif", b"MZ\x90", 0o644, id="a program of another system in another folder"),
        pytest.param(".cloud/lease.json", b"{}", 0o755, id="a note that may be executed"),
        pytest.param("summary.txt", b"\x7fELF", 0o644, id="a program under the name of a summary"),
        pytest.param("dataset/weights.bin.gz ", b"\x80\x04K", 0o644, id="a pickle under another name"),
        pytest.param("dataset/x.py ", b"import os", 0o644, id="code with a space behind its name"),
        pytest.param(
            "parent/adapter_model.safetensors", b"{}", 0o644, id="a parent's adapter where there is no parent"
        ),
    ],
)
def test_what_could_be_executed_or_believed_is_named(run: Path, place: str, content: bytes, mode: int):
    (run / place).parent.mkdir(parents=True, exist_ok=True)
    (run / place).write_bytes(content)
    (run / place).chmod(mode)
    assert check_contents(Evidence(load_run(run))) is not None


def test_a_stage_that_is_none_is_named(run: Path):
    with edited_manifest(run) as manifest:
        manifest["stages"]["evil\n ok forged"] = manifest["stages"]["plan"]
    assert "stages that are none" in str(check_contents(Evidence(load_run(run))))
