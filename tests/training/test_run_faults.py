"""Whole runs that are interrupted: secrets, `noesis verify` and `replay`, the kill matrix of benchmarks/faults.py."""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from helpers.project import ROOT
from noesis.core.config import load_config
from noesis.core.files import sha256_file
from noesis.core.project import Project

pytestmark = pytest.mark.slow


ADAPTER = "checkpoints/epoch_1/adapter_model.safetensors"


def test_no_secret_and_no_home_reaches_any_file(
    project: Path, tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
):
    """Runs the whole pipeline with secrets all around it, stops it once, and searches every byte that it left and printed."""
    from noesis.pipeline.registry import run_all
    from noesis.pipeline.start_run import from_sources, start_run

    planted = {
        name: f"sk-planted-{i:04}-do-not-store"
        for i, name in enumerate(
            (
                "HF_TOKEN",
                "HUGGING_FACE_HUB_TOKEN",
                "OPENAI_API_KEY",
                "ANTHROPIC_API_KEY",
                "MODAL_TOKEN_SECRET",
                "AWS_SECRET_ACCESS_KEY",
            )
        )
    }
    home = tmp_path / "home-of-planted-user"
    shutil.copytree(tiny_model, home / "models" / "mine")
    for name, value in {
        **planted,
        "HOME": str(home),
        "NOESIS_CACHE": str(home / ".cache" / "noesis"),
        "HF_HOME": str(home / ".hf"),
    }.items():
        monkeypatch.setenv(name, value)
    for folder in (project / "data" / "training").glob("philosophical*"):
        for file in folder.glob("*.jsonl"):
            file.write_text("\n".join(file.read_text(encoding="utf-8").splitlines()[:2]) + "\n", encoding="utf-8")
    overrides = {
        "training.model": str(home / "models" / "mine"),
        "training.data.language": "en",
        "training.num_train_epochs": 1,
        "training.save_every": "1 step",
        "max_examples": 8,
        "lora.r": 4,
        "training.tribunal.answers": 1,
        "training.tribunal.max_new_tokens": 4,
    }
    config = load_config(Project(project), overrides)
    assert config.training.model == "~/models/mine"
    monkeypatch.chdir(tmp_path)
    s = start_run(Project(project), config, Path("run"), from_sources(Project(project), config))
    run_all(s)
    files = [p for p in (tmp_path / "run").rglob("*") if p.is_file()]
    assert {"manifest.json", "report.html", "trainer_state.json", "model.safetensors"} <= {p.name for p in files}
    printed = "".join(capfd.readouterr()).encode()
    for needle in [*planted.values(), "home-of-planted-user"]:
        where = [str(p) for p in files if needle.encode() in p.read_bytes()] + (
            ["what was printed"] if needle.encode() in printed else []
        )
        assert where == [], needle


def test_a_run_is_verified_replayed_and_given_more_epochs(
    project: Path, tiny_model: Path, tmp_path: Path, quiet_cache: Path, capsys: pytest.CaptureFixture[str]
):
    from noesis.cli import run_command
    from noesis.run.directory import load_run
    from noesis.run.manifest import Extension

    path = str(tmp_path / "run")
    text = (project / "data/training/lora_config.yaml").read_text().replace("r: 64", "r: 4", 1)
    (project / "data/training/lora_config.yaml").write_text(text)
    command = ["train", "--project", str(project), "--model", str(tiny_model), "--max-examples", "16", "--run", path]
    command += ["--strength", "1"]  # so that a fork starts from an epoch's own adapter
    assert run_command([*command, "--epochs", "2"]) == 0
    first = sha256_file(tmp_path / "run" / ADAPTER)
    assert run_command(["verify", path]) == 0
    assert run_command(["replay", path]) == 0
    assert "identical" in capsys.readouterr().out
    assert run_command([*command, "--epochs", "3", "--resume"]) == 0
    assert sha256_file(tmp_path / "run" / ADAPTER) == first
    assert (tmp_path / "run" / "checkpoints" / "epoch_2").is_dir()
    assert load_run(Path(path)).manifest.history == (Extension(epochs=2, finished=True),)
    assert run_command(["verify", path]) == 0
    assert run_command(["replay", path]) == 0
    assert run_command([*command, "--epochs", "1", "--fork", path, "--run", str(tmp_path / "child")]) == 0
    child = load_run(tmp_path / "child").manifest
    assert child.parent is not None
    assert child.parent.adapter_sha256 == sha256_file(
        tmp_path / "run" / "checkpoints" / "epoch_2" / "adapter_model.safetensors"
    )
    assert run_command(["replay", str(tmp_path / "child")]) == 0
    capsys.readouterr()
    assert run_command([*command, "--epochs", "3", "--fresh", "--max-minutes", "0.01"]) == 5
    assert "what would fit" in capsys.readouterr().err
    file = tmp_path / "child" / "checkpoints" / "epoch_0" / "adapter_model.safetensors"
    raw = bytearray(file.read_bytes())
    raw[-1] ^= 1
    file.write_bytes(raw)
    assert run_command(["verify", str(tmp_path / "child")]) == 1
    assert "checkpoints/epoch_0/adapter_model.safetensors: changed" in capsys.readouterr().out


@pytest.mark.skipif(sys.platform != "linux", reason="forks processes")
def test_an_attempt_of_the_kill_matrix_repairs_torchs_threads_before_anything_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """Under load, two threads of a forked process raced to make torch's pool: "Invalid thread pool!", a LOST line."""
    spec = importlib.util.spec_from_file_location("kill_points", ROOT / "benchmarks" / "parts" / "kill_points.py")
    kill_points = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "kill_points", kill_points)
    spec.loader.exec_module(kill_points)
    order: list[str] = []
    monkeypatch.setattr(kill_points, "repair_torch_threads", lambda: order.append("repaired"))
    monkeypatch.setattr(kill_points, "child", lambda *a: os.write(a[5], " ".join([*order, "run"]).encode() + b"\n"))
    assert kill_points.attempt(None, None, tmp_path / "run", None, ()) == (0, ["repaired run"])


@pytest.mark.timing
@pytest.mark.skipif(sys.platform != "linux", reason="forks and traces processes as Linux does")
def test_a_short_kill_matrix():
    done = subprocess.run(
        [sys.executable, ROOT / "benchmarks" / "faults.py", "--kills", "8", "--seed", "3", "--only", "train,merge"],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT / "src")},
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-2000:]
    figures = dict(
        line.split(maxsplit=1)
        for line in done.stdout.splitlines()
        if line.startswith(("tried", "survived", "identical"))
    )
    tried = int(figures["tried"].split()[0])
    assert tried >= 8
    assert int(figures["survived"]) == int(figures["identical"]) == tried
