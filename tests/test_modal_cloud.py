"""The guide's commands and `noesis cloud` through the real `modal` command, against the control plane of tests/modal_local."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from conftest import ROOT
from modal_local import ControlPlane, Fault

pytestmark = pytest.mark.slow
VOLUME = "noesis-training-data"


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path) -> Path:
    """A copy of what a clone holds, with a few rows, whose Modal model is the tiny one."""
    root = tmp_path_factory.mktemp("clone")
    for name in ("data", "src", "scripts"):
        shutil.copytree(ROOT / name, root / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("constraints.txt", "constraints-vllm.txt"):
        shutil.copyfile(ROOT / name, root / name)
    for file in (root / "data" / "training").glob("philosophical*/*.jsonl"):
        file.write_text("".join(file.read_text(encoding="utf-8").splitlines(keepends=True)[:2]), encoding="utf-8")
    yaml = root / "data" / "training" / "training_config.yaml"
    text = yaml.read_text(encoding="utf-8").replace("answers: 6", "answers: 1").replace("max_new_tokens: 200", "max_new_tokens: 4")
    text = text.replace('judges: ["vllm:Qwen/Qwen2.5-7B-Instruct"]', "judges: []").replace("meta-llama/Llama-3.1-8B-Instruct", str(tiny_model))
    yaml.write_text(text, encoding="utf-8")
    lora = root / "data" / "training" / "lora_config.yaml"
    lora.write_text(lora.read_text(encoding="utf-8").replace("r: 64", "r: 4"), encoding="utf-8")
    done = run(root, sys.executable, "scripts/export_for_modal.py")
    assert done.returncode == 0, done.stderr
    return root


@pytest.fixture(scope="module")
def plane(tiny_model: Path) -> Iterator[ControlPlane]:
    with ControlPlane(visible=[tiny_model]) as plane:
        yield plane


def run(root: Path, *command: object, **environment: str) -> subprocess.CompletedProcess[str]:
    env = {**os.environ, "PYTHONPATH": str(root / "src"), **environment}
    return subprocess.run([*map(str, command)], cwd=root, env=env, capture_output=True, text=True)


def modal(plane: ControlPlane, root: Path, *arguments: object, code: int = 0) -> str:
    done = plane.modal(*arguments, cwd=root, env={**plane.env, "PYTHONPATH": str(root / "src")})
    assert done.returncode == code, done.stdout + done.stderr
    return done.stdout + done.stderr


def cloud(plane: ControlPlane, root: Path, *arguments: object, code: int = 0, **environment: str) -> str:
    done = run(root, sys.executable, "-m", "noesis", "cloud", *arguments, **{**plane.env, **environment})
    assert done.returncode == code, done.stdout + done.stderr
    assert "Traceback" not in done.stderr
    return done.stdout + done.stderr


def test_a_day_on_modal(plane: ControlPlane, checkout: Path, tmp_path: Path):
    """Everything in the order in which a user meets it: what is missing says what to type, and typing it helps."""
    assert "modal token new" in cloud(plane, checkout, "doctor", code=1, MODAL_TOKEN_ID="", MODAL_TOKEN_SECRET="")
    said = cloud(plane, checkout, "doctor", code=1)
    assert f"modal volume create {VOLUME}" in said
    assert "modal secret create huggingface-token HF_TOKEN=hf_… --force" in said
    assert "HuggingFace token not found" in said
    assert f"modal volume create {VOLUME}" in cloud(plane, checkout, "watch", code=2)
    modal(plane, checkout, "volume", "create", VOLUME)
    assert "Dataset not found" in cloud(plane, checkout, "doctor", code=1)
    assert "holds no run yet" in cloud(plane, checkout, "watch", code=1)
    assert "there is no run" in cloud(plane, checkout, "pull", tmp_path / "pulled", code=1)
    assert "Dataset not found" in modal(plane, checkout, "run", "scripts/modal_train.py", "--epochs", "1", code=2)
    modal(plane, checkout, "volume", "put", VOLUME, "data/training/exports", "/dataset")
    modal(plane, checkout, "secret", "create", "huggingface-token", "HF_TOKEN=hf_test")
    said = cloud(plane, checkout, "doctor")
    assert ("the one exported here" in said, "hf_test" in said) == (True, False)
    assert "Nothing was started" in modal(plane, checkout, "run", "scripts/modal_train.py", "--dry-run")
    assert not (plane.volume(VOLUME) / "manifest.json").exists()

    # the quick test, taken away once while it trains
    plane.inject(Fault("train", "preempt", after_commits=2))
    said = modal(plane, checkout, "run", "scripts/modal_train.py", "--epochs", "2", "--max-examples", "8", "--gguf", "q8_0")
    assert "training was taken away 1 time and went on each time" in said
    for line in ("model     /merged/noesis-philosopher-v1", "epoch_0  held-out loss", "epoch_1  held-out loss", "Tribunal: UNDECIDED", "in all"):
        assert line in said, line
    assert sorted(p.name for p in (plane.volume(VOLUME) / "gguf").glob("*-q*.gguf")) == ["noesis-philosopher-v1-q8_0.gguf"]
    assert "done; done: export, plan, train, judge, merge, gguf, report" in cloud(plane, checkout, "watch", "--once")
    assert "not billed" not in cloud(plane, checkout, "cost")

    # pulled twice: the second time nothing is copied; a broken file is
    target = tmp_path / "pulled"
    first = json.loads(run(checkout, sys.executable, "-m", "noesis", "cloud", "pull", target, "--json", **plane.env).stdout)
    again = json.loads(run(checkout, sys.executable, "-m", "noesis", "cloud", "pull", target, "--json", **plane.env).stdout)
    assert first["files"] > 20
    assert again["files"] < 5  # what no hash is known of
    (target / "merged" / "noesis-philosopher-v1" / "model.safetensors").write_bytes(b"broken")
    assert "model.safetensors" not in cloud(plane, checkout, "pull", target)
    verified = run(checkout, sys.executable, "-m", "noesis", "verify", target)
    assert "hashes: " not in verified.stdout, verified.stdout
    assert "metered" in cloud(plane, checkout, "cost", target)

    # judge again, merge again, with the verdict as the exit code
    modal(plane, checkout, "run", "scripts/modal_train.py", "--test-only", "--gate", code=4)
    modal(plane, checkout, "run", "scripts/modal_train.py", "--merge-only")
    stale = checkout / "data" / "training" / "exports" / "train.jsonl"
    stale.write_text("".join(stale.read_text(encoding="utf-8").splitlines(keepends=True)[:-1]), encoding="utf-8")
    assert "export_for_modal.py" in modal(plane, checkout, "run", "scripts/modal_train.py", "--epochs", "1", code=1)
