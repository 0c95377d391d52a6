"""A full disk, a read-only file system, two commands at once, a kill before the manifest, a clock that jumps.

The first three on a tmpfs of its own (`weather.py`): one message, no half-written file, and nothing lost.
"""

from __future__ import annotations

import errno
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from helpers.command import noesis
from helpers.project import ROOT
from hostile.runs.finished_run import findings, finish_run
from noesis.core.errors import RunError
from noesis.core.files import explain_os_error
from noesis.run.directory import Run, load_run
from wild.weather import COMMANDS, WEATHERS

UNSHARE = ("unshare", "--user", "--map-root-user", "--mount")
READING = ("status", "verify", "tribunal baselines")
MESSAGES = {
    "full": ("no space left on the disk", "B free: make room"),
    "nearly full": ("no space left on the disk",),
    "read-only": ("Read-only file system",),
    "in use": ("is in use by process",),
}


def can_mount() -> bool:
    """Whether this user may have a mount namespace of its own."""
    if sys.platform != "linux" or shutil.which("unshare") is None:
        return False
    tried = [*UNSHARE, "sh", "-c", "mount -t tmpfs none /mnt && mount -o remount,bind,ro /mnt"]
    return subprocess.run(tried, capture_output=True).returncode == 0


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory, tiny_shape: Path) -> Path:
    """A folder with a project, its finished run, and the shape of its model."""
    folder = tmp_path_factory.mktemp("weather")
    shutil.copytree(ROOT / "data", folder / "project" / "data")
    shutil.copytree(tiny_shape, folder / "shape")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("NOESIS_CACHE", str(folder / "cache"))
        finish_run(folder / "project", folder / "shape", folder / "run")
    return folder


@pytest.fixture(scope="session")
def weather(finished: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[str, str], dict[str, Any]]:
    """(weather, command) → what came of it."""
    if not can_mount():
        pytest.skip("needs a user namespace that may mount a tmpfs")
    where = {**os.environ, "NOESIS_CACHE": str(finished / "cache"), "PYTHONPATH": os.pathsep.join(sys.path)}
    command = [*UNSHARE, sys.executable, "-m", "wild.weather", str(finished), str(tmp_path_factory.mktemp("disk"))]
    found = subprocess.run(command, capture_output=True, text=True, env=where, cwd=ROOT)
    lines = [json.loads(line) for line in found.stdout.split("\n") if line.startswith('["')]
    assert found.returncode == 0, found.stderr
    return {(name, what): result for name, what, result in lines}


@pytest.mark.slow
@pytest.mark.parametrize("name", WEATHERS)
def test_every_command_ends_in_one_message_and_loses_nothing(weather: dict[tuple[str, str], dict[str, Any]], name: str):
    made = {command: found for (here, command), found in weather.items() if here == name}
    assert len(made) >= 8
    for command, found in made.items():
        assert (found["lost"], found["parts"], found["whole"]) == ([], [], True), command
        if command in READING or (command == "clean" and found["code"] == 0):
            assert (found["code"], found["said"]) == (0, ""), command
        else:
            assert found["code"] == 1, command
            assert any(text in found["said"] for text in MESSAGES[name]), command
            assert found["said"].count("\n") == 1, command


def test_every_command_that_writes_to_a_run_is_tried():
    assert {"train", "judge", "merge", "gguf", "parity", "report"} <= COMMANDS.keys()


class Killed(BaseException):
    """In place of SIGKILL: nothing after it runs."""


@pytest.mark.parametrize("command", ["report", "judge"])
def test_a_kill_between_the_files_and_the_manifest_is_made_up_for(
    finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: str
):
    monkeypatch.setenv("NOESIS_CACHE", str(finished / "cache"))
    run = Path(shutil.copytree(finished / "run", tmp_path / "run"))
    if command == "judge":  # so that it is done again, from scores that are there
        edited = json.loads((run / "manifest.json").read_text())
        edited["stages"]["judge"]["status"] = "stale"
        (run / "manifest.json").write_text(json.dumps(edited))
        monkeypatch.setattr("noesis.pipeline.stages.judge.base_and_tuned_answers", said_again(run))
        monkeypatch.setattr("noesis.pipeline.stages.judge.measure_items", lambda *_: [])  # it has a shape, no model

    def kill(*_: object) -> None:
        raise Killed

    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(Run, "_end", kill)
        noesis(command, run, cwd=finished / "project")
    assert load_run(run).state(command) == "running"
    assert noesis(command, run, cwd=finished / "project").returncode in (0, 4)
    assert "killed" in [entry.ended for entry in load_run(run).manifest.ledger]
    assert noesis("report", run, cwd=finished / "project").returncode == 0
    assert [found.wrong for found in findings(run, finished) if found.wrong] == []


def said_again(run: Path) -> Any:
    rows = [json.loads(line) for line in (run / "tribunal" / "answers.jsonl").read_text().split("\n") if line]
    return lambda *_: {model: [row[model]["answer"] for row in rows] for model in ("base", "tuned")}


@pytest.mark.parametrize("now", ["1970-01-01T00:00:00Z", "2199-01-01T00:00:00Z"], ids=["back", "forward"])
def test_a_clock_that_jumps_changes_neither_cost_nor_what_is_verified(
    finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, now: str
):
    monkeypatch.setenv("NOESIS_CACHE", str(finished / "cache"))
    run = Path(shutil.copytree(finished / "run", tmp_path / "run"))
    before = load_run(run).manifest.worked_seconds
    monkeypatch.setattr("noesis.run.directory.utc_now", lambda: now)
    assert noesis("report", run, cwd=finished / "project").returncode == 0
    monkeypatch.undo()
    after = load_run(run).manifest
    assert after.stages["report"].started == now
    assert 0 <= after.worked_seconds - before < 60
    monkeypatch.setenv("NOESIS_CACHE", str(finished / "cache"))
    assert findings(run, finished) == []


@pytest.mark.parametrize("code", [errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS], ids=errno.errorcode.get)
def test_a_file_system_without_locks_is_said_to_be_one(code: int):
    said = str(explain_os_error(OSError(code, os.strerror(code), "/net/run/.lock")))
    assert "file locks (/net/run/.lock)" in said
    assert "use a folder on a local disk" in said


def test_a_lock_that_another_holds_names_the_holder(finished: Path, tmp_path: Path):
    from noesis.run.lock import held

    run = Path(shutil.copytree(finished / "run", tmp_path / "run"))
    with held(run), pytest.raises(RunError, match=f"in use by process {os.getpid()} on "), held(run):
        pass
