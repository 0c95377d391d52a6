"""`noesis constitution revise` stopped and started again: a dead endpoint, signals, another plan, the spending cap."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from helpers.judge_server import JudgeServer, Raw
from helpers.project import ROOT
from helpers.scripted_writer import ask, good, lines, prompt_row
from noesis.cli import run_command
from noesis.core.errors import CapError, ModelError, RunError
from noesis.core.project import Project
from noesis.synthesis.make_examples import make_examples


def test_work_goes_on_where_a_dead_endpoint_ended_it(project: Path, tmp_path: Path, prompts):
    rows, out = prompts([prompt_row(i) for i in range(40)]), tmp_path / "out"
    with JudgeServer(lambda asked: good(asked) if asked.number <= 60 else Raw(400, "down")) as server:
        url, first = server.url, ask(server, rows, out)
        with pytest.raises(ModelError, match="is down"):
            make_examples(Project(project), first)
        answered = sum(1 for _ in server.requests[:60])
    port = int(url.split(":")[2].split("/")[0])
    with JudgeServer(good, port=port) as server:
        report = make_examples(Project(project), first)
        again = len(server.requests)
    assert report["made"] == 40
    assert again <= 120 - answered + 3  # what was answered before is not asked again
    with JudgeServer(good, port=port) as server:
        assert make_examples(Project(project), first)["made"] == 40
        assert server.requests == []


@pytest.mark.slow
@pytest.mark.timing
@pytest.mark.parametrize(("number", "code"), [(signal.SIGKILL, -9), (signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_killed_command_goes_on(project: Path, tmp_path: Path, prompts, number: signal.Signals, code: int):
    rows, out = prompts([prompt_row(i) for i in range(70)]), tmp_path / "out"
    with JudgeServer(lambda asked: Raw(text=good(asked), wait=0.02)) as server:
        command = [
            "constitution",
            "revise",
            "--model",
            f"openai:{server.url}:scripted",
            "--prompts",
            str(rows),
            "--out",
            str(out),
            "--project",
            str(project),
        ]
        environment = os.environ | {"PYTHONPATH": str(ROOT / "src")}
        process = subprocess.Popen(
            [sys.executable, "-m", "noesis", *command], env=environment, stdout=subprocess.DEVNULL
        )
        while len(server.requests) < 130:
            assert process.poll() is None
            time.sleep(0.01)
        process.send_signal(number)
        assert process.wait(timeout=120) == code
        before = len(server.requests)
        assert run_command(command) == 0
        assert len(server.requests) <= 210 + 16  # those under way when it was killed are asked again
        assert len(server.requests) > before
    assert len(lines(out / "examples.jsonl")) + len(lines(out / "left_out.jsonl")) == 70


def test_the_same_work_gives_the_same_files(project: Path, tmp_path: Path, prompts):
    rows = prompts([prompt_row(i) for i in range(5)])
    with JudgeServer(good) as server:
        for name in ("one", "two"):
            make_examples(Project(project), ask(server, rows, tmp_path / name, rounds=2))
    assert (tmp_path / "one/examples.jsonl").read_bytes() == (tmp_path / "two/examples.jsonl").read_bytes()


def test_another_plan_in_the_same_folder_is_refused(project: Path, tmp_path: Path, prompts):
    rows = prompts([prompt_row(0)])
    with JudgeServer(good) as server:
        make_examples(Project(project), ask(server, rows, tmp_path / "out"))
        with pytest.raises(RunError, match="settings"):
            make_examples(Project(project), ask(server, rows, tmp_path / "out", seed=5))


def test_the_cap_stops_before_it_is_passed(project: Path, tmp_path: Path, prompts):
    config = project / "data/training/training_config.yaml"
    text = config.read_text(encoding="utf-8")
    config.write_text(
        text.replace("prices: {}", "prices: {scripted: {prompt: 1.0, completion: 10.0}}", 1), encoding="utf-8"
    )
    assert config.read_text(encoding="utf-8") != text
    rows, out = prompts([prompt_row(i) for i in range(6)]), tmp_path / "out"
    with JudgeServer(good) as server:
        with pytest.raises(CapError):
            make_examples(Project(project), ask(server, rows, out, max_usd=0.05))
        stopped = len(server.requests)
        assert 0 < stopped < 18
        report = make_examples(Project(project), ask(server, rows, out, max_usd=1.0))
        assert len(server.requests) == 18
    assert report["kept"] == 6
    assert report["spending"]["usd"] == pytest.approx((18 - stopped) * (1000 * 1 + 200 * 10) / 1e6)
