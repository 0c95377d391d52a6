"""The demo on the embedded model, as a user runs it. Minutes: `make test-all`."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from helpers.project import ROOT

pytestmark = pytest.mark.full


def test_quick_demo_then_chat(tmp_path: Path):
    environment = {**os.environ, "NOESIS_CACHE": str(tmp_path / "cache")}
    run = tmp_path / "demo"
    command = [sys.executable, "-m", "noesis", "demo", "--quick", "--project", str(ROOT), "--run", str(run)]
    first = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=1500)
    assert first.returncode == 0, first.stdout + first.stderr
    assert "Traceback" not in first.stderr
    stages = json.loads((run / "manifest.json").read_text())["stages"]
    preference = stages["judge"]["result"]["preference"]
    assert preference["tuned"]["held_out_loss"] < preference["base"]["held_out_loss"]
    assert all(f["passed"] for f in stages["gguf"]["result"]["files"].values())
    second = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=300)
    assert second.stdout.count("already done") == 7  # with the court
    chat = subprocess.run(
        [sys.executable, "-m", "noesis", "chat", str(run)],
        input="Hello!\n",
        capture_output=True,
        text=True,
        env=environment,
        timeout=120,
    )
    assert chat.returncode == 0
    assert len(chat.stdout.split("noesis ›")[1]) > 10


def test_the_embedded_model_keeps_its_digits_and_our_tokenizer_agrees():
    from transformers import AutoTokenizer

    from noesis.llm.gguf.hard_strings import HARD_STRINGS
    from noesis.llm.hub import find_model
    from noesis.llm.tokenizer import load_tokenizer

    folder = find_model("smollm2").path
    ours, theirs = load_tokenizer(folder), AutoTokenizer.from_pretrained(folder)
    assert len(ours("1936")["input_ids"]) == 4
    for text in HARD_STRINGS:
        assert ours(text)["input_ids"] == theirs(text, add_special_tokens=False)["input_ids"]
