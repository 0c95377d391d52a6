"""What `noesis demo` prints is written by this project: no progress bar, warning or log line of a library."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from helpers.project import ROOT, with_small_settings

pytestmark = pytest.mark.slow
OURS = re.compile(
    r"|\[\d/\d\] \w[\w ]+ — .+|  \S?.*|Base → tuned|Stages took .*|(Report|Model|GGUF|Adapter|Keep|Next:) .*"
)


def test_every_line_of_the_demo_is_ours_and_its_next_command_can_be_pasted(tiny_model: Path, tmp_path: Path):
    project = tmp_path / "my work" / "project"
    shutil.copytree(ROOT / "data", project / "data")
    with_small_settings(project)
    for file in project.glob("data/training/philosophical*/*.jsonl"):
        file.write_text("".join(file.read_text(encoding="utf-8").splitlines(keepends=True)[:2]), encoding="utf-8")
    config = project / "data" / "training" / "training_config.yaml"
    text = config.read_text(encoding="utf-8")
    for key, value in {"answers": "1", "max_new_tokens": "8", "quick_examples": "8"}.items():
        text = re.sub(rf"^  {key}: \d+", f"  {key}: {value}", text, flags=re.M)
    config.write_text(text.replace("  model: smollm2", f"  model: {tiny_model}"), encoding="utf-8")
    environment = os.environ | {"NOESIS_CACHE": str(tmp_path / "cache")}
    environment.pop("PYTHONWARNINGS", None)
    done = subprocess.run(
        [sys.executable, "-m", "noesis", "demo", "--quick"],
        cwd=project.parent / "project",
        env=environment,
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert (done.returncode, done.stderr) == (0, "")
    lines = done.stdout.splitlines()
    assert [line for line in lines if not OURS.fullmatch(line)] == []
    assert "PosixPath" not in done.stdout
    assert [line[:5] for line in lines if line.startswith("[")] == [f"[{n}/9]" for n in range(1, 10)]
    words = shlex.split(lines[-1].removeprefix("Next:"))
    assert words[-3:-1] == ["noesis", "chat"]
    assert (project / words[-1] / "manifest.json").is_file()
