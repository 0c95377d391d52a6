"""What a manifest says of its version, and saved states of the trainer: neither excuses a forgery."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from helpers.command import noesis
from helpers.manifest import edited_manifest
from hostile.runs.finished_run import findings, rehashed, wrong
from noesis.core.files import write_jsonl
from noesis.core.jsonl import read_objects
from noesis.training.methods import state_seals
from noesis.training.state.checkpoint import seal

Attack = Callable[[Path], object]


def test_a_run_of_an_early_version_is_verified_by_the_settings_that_decide_and_says_so(run: Path, finished: Path):
    with edited_manifest(run) as manifest:
        del manifest["settings_sha256"]
        manifest["format"] = 2
    (found,) = findings(run, finished)
    assert found.wrong is None
    assert "only the settings that decide the adapter" in (found.unchecked or "")
    noesis("report", run)
    assert json.loads((run / "manifest.json").read_text())["made_in_format"] == 2
    assert [f.unchecked for f in findings(run, finished)] == [found.unchecked]


def test_a_run_of_an_early_version_is_said_to_be_one_with_what_to_do(run: Path, finished: Path):
    with edited_manifest(run) as manifest:
        del manifest["settings_sha256"]
        manifest["format"] = 2
    for command in ("verify", "status"):
        found = noesis(command, run, cwd=finished / "project")
        assert "Begun by an early version of Noesis (format 2)" in found.stdout
        assert "make the run again" in found.stdout


@pytest.mark.parametrize("written", [0, -1, "2", 2.0, 2.5, True, None, [2], 10**30])
def test_a_format_that_no_version_writes_is_no_early_one(run: Path, written: Any):
    with edited_manifest(run) as manifest:
        manifest["format"] = written
    for command in ("verify", "status"):
        found = noesis(command, run)
        assert found.returncode == 1
        assert "manifest.json has format " in found.stderr
        assert found.stdout == ""


def other_flags(run: Path) -> None:
    """Answers that are flagged in another way, whose totals still follow."""
    file = run / "tribunal" / "answers.jsonl"
    row, *rows = read_objects(file)
    first, second = row["base"], rows[0]["base"]
    first["flags"], second["flags"] = [*first["flags"], "loop"], second["flags"]
    write_jsonl(file, [row, *rows])


LENIENT = {
    "no hash of its settings": lambda m: m.pop("settings_sha256"),
    "the name of an early version": lambda m: m.update(noesis="0.0.9"),
    "no version": lambda m: m.pop("noesis"),
    "an early format and the hash of its settings": lambda m: m.update(made_in_format=2, settings_sha256="0" * 64),
    "a format that began later than it is": lambda m: m.update(made_in_format=99) or m.pop("settings_sha256"),
}


@pytest.mark.parametrize("change", [pytest.param(c, id=f"a manifest with {name}") for name, c in LENIENT.items()])
def test_what_a_manifest_says_of_its_version_excuses_nothing(run: Path, finished: Path, change: Any):
    other_flags(run)
    with edited_manifest(run) as manifest:
        change(manifest)
    assert "is flagged in another way" in wrong(run, finished) or "config.json" in wrong(run, finished)


# --- states of the trainer


def state(run: Path, step: int, weights: str) -> None:
    folder = run / "checkpoints" / "resume" / f"checkpoint-{step}"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "weights.safetensors").write_text(weights)
    (folder / "manifest.json").unlink(missing_ok=True)
    seal(folder, step)


def with_states(run: Path) -> None:
    state(run, 1, "one")
    state(run, 2, "two")
    with rehashed(run) as manifest:
        manifest["stages"]["train"]["result"]["states"] = state_seals(run / "checkpoints")


STATES: dict[str, Attack] = {
    "another state under a seal of its own": lambda run: state(run, 2, "evil"),
    "a state more": lambda run: state(run, 3, "evil"),
    "a state of the first part": lambda run: shutil.copytree(
        run / "checkpoints" / "resume", run / "checkpoints" / "sft" / "resume"
    ),
    "a state under another's name": lambda run: (
        shutil.rmtree(run / "checkpoints/resume/checkpoint-1"),
        shutil.copytree(run / "checkpoints/resume/checkpoint-2", run / "checkpoints/resume/checkpoint-1"),
    ),
}


@pytest.mark.parametrize("attack", [pytest.param(a, id=f"a run with {name}") for name, a in STATES.items()])
def test_a_state_that_training_did_not_leave_is_found(run: Path, finished: Path, attack: Attack):
    with_states(run)
    assert findings(run, finished) == []
    attack(run)
    assert "the saved states are whole" in wrong(run, finished)


def test_states_that_were_left_out_of_a_copy_are_no_finding(run: Path, finished: Path):
    with_states(run)
    shutil.rmtree(run / "checkpoints" / "resume")
    assert findings(run, finished) == []


def test_states_are_not_excused_by_a_record_without_them_but_by_an_early_format(run: Path, finished: Path):
    state(run, 1, "one")
    assert "training did not leave resume/checkpoint-1" in wrong(run, finished)
    with edited_manifest(run) as manifest:
        manifest["format"] = 2
    (found,) = findings(run, finished)
    assert "an early version did not record which states" in (found.unchecked or "")
