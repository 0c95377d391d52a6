"""A project without a checkout: `modal run -m noesis.cloud.app` in it, with the package as it is installed."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from helpers.modal_guide import LLAMA, SMALLER, TOKEN
from helpers.modal_local import ControlPlane
from helpers.project import ROOT

pytestmark = pytest.mark.full
FILES = ("data/constitution.yaml", "data/constitution_prompts.yaml", "data/training", "data/tribunal", "data/starter")


def install(folder: Path) -> Path:
    """The package as the wheel lays it out, away from the checkout."""
    ignore = shutil.ignore_patterns("__pycache__", "exports")
    shutil.copytree(ROOT / "src" / "noesis", folder / "noesis", ignore=ignore)
    for name in (*FILES, "constraints.txt", "constraints-vllm.txt"):
        target = folder / "noesis" / "files" / name
        target.parent.mkdir(parents=True, exist_ok=True)
        copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copy
        copy(ROOT / name, target, **({"ignore": ignore} if (ROOT / name).is_dir() else {}))
    return folder


def test_the_containers_get_the_installed_package_and_this_project(tmp_path: Path, tiny_model: Path):
    site, project = install(tmp_path / "site"), tmp_path / "library"
    environment = {k: v for k, v in os.environ.items() if k != "NOESIS_PROJECT"} | {"PYTHONPATH": str(site)}

    def noesis(*words: str, cwd: Path) -> None:
        done = subprocess.run(
            [sys.executable, "-m", "noesis", *words], cwd=cwd, env=environment, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stdout + done.stderr

    noesis("init", "library", "--domain", "the town library", "--language", "en", cwd=tmp_path)
    for file in (project / "data" / "training").glob("*_config.yaml"):
        text = file.read_text(encoding="utf-8")
        for pattern, line in SMALLER.items():
            text = re.sub(pattern, line, text, flags=re.M)
        file.write_text(text, encoding="utf-8")
    noesis("data", "export", cwd=project)
    with ControlPlane(hidden=[site]) as plane:
        plane.hub.add(LLAMA, tiny_model, gated=True)
        plane.hub.accepted.add(TOKEN)
        plane.secret("huggingface-token", HF_TOKEN=TOKEN)
        volume = plane.volume("library-data")
        shutil.copytree(project / "data" / "training" / "exports", volume / "dataset")
        done = plane.modal("run", "-m", "noesis.cloud.app", "--epochs", "1", cwd=project, env={"PYTHONPATH": str(site)})
        said = done.stdout + done.stderr
        assert done.returncode == 0, said[-6000:]
        card = (volume / "merged" / "library-v1" / "README.md").read_text(encoding="utf-8")
    assert "language: [en]" in card
    assert "scripts/modal_train.py" not in said and "modal run --detach -m noesis.cloud.app" in said
