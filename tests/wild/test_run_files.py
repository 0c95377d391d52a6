"""What public reports say of checkpoints, artifacts and names, tried on run directories."""

from __future__ import annotations

from pathlib import Path

import pytest

from noesis.cloud.volume.remote import safe_name
from noesis.core.errors import RunError
from noesis.core.rooted import below
from noesis.training.state.checkpoint import SEAL, newest_whole, publish, saved, seal


def save(folder: Path, step: int) -> Path:
    part = folder / f".checkpoint-{step}.part"
    part.mkdir(parents=True)
    (part / "trainer_state.json").write_text(f'{{"global_step": {step}}}')
    (part / "weights.safetensors").write_text(f"weights of step {step}")
    seal(part, step)
    publish(part, folder / f"checkpoint-{step}")
    return folder / f"checkpoint-{step}"


TORN = {
    "weights that were never written": lambda state: (state / "weights.safetensors").unlink(),
    "an empty trainer_state.json": lambda state: (state / "trainer_state.json").write_text(""),
    "a file of zeros": lambda state: (state / "weights.safetensors").write_bytes(bytes(23)),
    "no seal": lambda state: (state / SEAL).unlink(),
    "an empty seal": lambda state: (state / SEAL).write_text(""),
    "a seal of half a character": lambda state: (state / SEAL).write_text('{"sha256": "\\ud800"}'),
    "a seal of brackets": lambda state: (state / SEAL).write_text("[" * 100_000),
    "a seal that is a list": lambda state: (state / SEAL).write_text("[]"),
    "a seal whose files are a list": lambda state: (state / SEAL).write_text(
        '{"format": 1, "step": 30, "files": ["a"], "sha256": ""}'
    ),
}


@pytest.mark.parametrize("tear", [pytest.param(tear, id=name) for name, tear in TORN.items()])
def test_the_newest_whole_state_is_taken_and_a_torn_one_set_aside(tmp_path: Path, tear: object):
    save(tmp_path, 20)
    tear(save(tmp_path, 30))  # type: ignore[operator]
    told: list[str] = []
    assert newest_whole(tmp_path, tell=told.append) == tmp_path / "checkpoint-20"
    assert (tmp_path / "torn-30").is_dir()
    assert len(told) == 1


def test_states_are_kept_by_their_step_and_not_by_time_nor_by_spelling(tmp_path: Path):
    import os

    for step in (900, 1000):
        state = save(tmp_path, step)
        os.utime(state, (0, 0) if step == 1000 else (4e9, 4e9))
    save(tmp_path, 10000)
    assert [state.name for state in saved(tmp_path)] == ["checkpoint-1000", "checkpoint-10000"]


DOTTED = ["foo..bar", "foo.bar.baz", ".foo", "foo/.bar", ".foo/.bar", ".thing.output.json", "a...b/c"]


@pytest.mark.parametrize("name", DOTTED)
def test_dots_within_a_name_lead_nowhere(name: str):
    assert safe_name(name) == name
    assert below(Path("run"), name) == Path("run", *name.split("/"))


@pytest.mark.parametrize("name", ["../foo", "./../foo", "foo/../bar", "foo/bar/..", "..", "foo//../bar"])
def test_dots_that_are_a_name_are_refused(name: str):
    for check in (safe_name, lambda n: below(Path("run"), n)):
        with pytest.raises(RunError):
            check(name)
