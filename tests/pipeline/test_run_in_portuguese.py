"""A run made in one language is read in the other, and its records do not tell which it was."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from helpers.command import noesis, speaking
from helpers.tiny_runs import run_all
from noesis.core.project import Project

PORTUGUESE = re.compile(r"[ãõçáéêíóú]|\b(?:perda|passo|época|porque|não)\b")


@pytest.mark.full
def test_a_run_made_in_portuguese_has_english_records(
    small_project: Project, tiny_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    with speaking("pt"):
        path = run_all(small_project, tiny_model, tmp_path / "run", **{"training.num_train_epochs": 2}).run.path
    said = capsys.readouterr().out
    assert all(
        word in said for word in ("perda", "épocas", "com que força o adaptador é usado", "não há juiz definido")
    )
    records = [path / "manifest.json", path / "metrics.jsonl", path / "gguf" / "parity.json"]
    records += [path / "tribunal" / "summary.json", *path.glob("merged/*/README.md")]
    assert [(file.name, found) for file in records if (found := PORTUGUESE.findall(file.read_text("utf-8")))] == []
    assert '<html lang="pt">' in (path / "report.html").read_text(encoding="utf-8")
    for code, matches in (("en", "all match"), ("pt", "todas conferem")):
        done = noesis("verify", path, "--lang", code)
        assert (done.returncode, matches in done.stdout) == (0, True), done.stdout + done.stderr
        assert noesis("status", path, "--lang", code).returncode == 0
