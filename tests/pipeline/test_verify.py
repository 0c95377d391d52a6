"""A run directory tells the truth: whole states, whole archives, status and verify, what --resume refuses. Nothing here loads torch."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from helpers.manifest import edited_manifest
from noesis.cli import run_command
from noesis.core.config import Config, load_config
from noesis.core.errors import RunError, UsageError
from noesis.core.files import write_json
from noesis.core.project import Project
from noesis.pipeline.resume_fork import parent_of
from noesis.pipeline.verify.check_run import verify
from noesis.pipeline.verify.status import status
from noesis.run import archive as archiving
from noesis.run.directory import Run, load_run, open_run
from noesis.run.manifest import Extension
from noesis.training.state.checkpoint import KEEP, SEAL, newest_whole, publish, saved, seal, unusable_reason


def state(folder: Path, step: int, text: str = "tensors") -> Path:
    part = folder / f".checkpoint-{step}.part"
    part.mkdir(parents=True)
    (part / "weights.safetensors").write_text(text)
    (part / "trainer_state.json").write_text("{}")
    seal(part, step)
    publish(part, folder / f"checkpoint-{step}")
    return folder / f"checkpoint-{step}"


def test_the_newest_whole_state_is_taken_and_torn_ones_are_named_and_set_aside(tmp_path: Path):
    for step in (9, 10, 11):
        state(tmp_path, step)
    assert [p.name for p in saved(tmp_path)] == ["checkpoint-10", "checkpoint-11"]
    assert len(saved(tmp_path)) == KEEP
    (tmp_path / ".checkpoint-12.part").mkdir()  # a process was killed while it saved
    with open(tmp_path / "checkpoint-11" / "weights.safetensors", "r+b") as f:
        f.write(b"T")
    said: list[str] = []
    assert newest_whole(tmp_path, tell=said.append) == tmp_path / "checkpoint-10"
    assert said == [
        "  checkpoint-11 is not whole (weights.safetensors is torn or was changed): set aside as torn-11, the one before it is used"
    ]
    assert sorted(p.name for p in tmp_path.iterdir()) == ["checkpoint-10", "torn-11"]
    shutil.rmtree(tmp_path / "checkpoint-10")
    assert newest_whole(tmp_path) is None


def tamper(folder: Path, how: str) -> None:
    if how == "truncated":
        os.truncate(folder / "weights.safetensors", 3)
    elif how == "missing":
        (folder / "trainer_state.json").unlink()
    elif how == "added":
        (folder / "optimizer.pt").write_bytes(b"pickle")
    elif how == "no manifest":
        (folder / SEAL).unlink()
    elif how == "renamed":
        folder.rename(folder.with_name("checkpoint-8"))
    else:
        text = (folder / SEAL).read_text()
        (folder / SEAL).write_text(
            {
                "half a manifest": text[: len(text) // 2],
                "another hash": text.replace("weights", "height0"),
                "not ours": "[]",
            }[how]
        )


@pytest.mark.parametrize(
    ("how", "why"),
    [
        ("truncated", "torn or was changed"),
        ("missing", "trainer_state.json is missing"),
        ("added", "optimizer.pt does not belong"),
        ("no manifest", "manifest.json is missing"),
        ("renamed", "it is of step 7"),
        ("half a manifest", "damaged"),
        ("another hash", "was changed"),
        ("not ours", "damaged"),
    ],
)
def test_whatever_happens_to_a_state_is_seen(tmp_path: Path, how: str, why: str):
    folder = state(tmp_path, 7)
    assert unusable_reason(folder) is None
    tamper(folder, how)
    assert why in (unusable_reason(saved(tmp_path)[0]) or "")


def test_an_archive_that_was_killed_half_way_ends_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    run = tmp_path / "r"
    for name in ("data", "checkpoints", "merged"):
        (run / name).mkdir(parents=True)
        (run / name / "file").write_text(name)
    write_json(run / "manifest.json", {"identity": {}, "stages": {}, "output_name": "x"})
    write_json(run / "config.json", {})
    real, left = archiving.move, iter(range(3))

    def dies(source: Path, target: Path) -> None:
        if next(left) == 2:
            raise KeyboardInterrupt
        real(source, target)

    monkeypatch.setattr(archiving, "move", dies)
    with pytest.raises(KeyboardInterrupt):
        archiving.archive(run, tmp_path / ".archive")
    monkeypatch.undo()
    assert (run / "checkpoints").exists() or (run / "data").exists()
    with pytest.raises(UsageError, match="was being archived when its process was killed"):
        load_run(run)  # reading a run moves nothing
    assert (run / ".moving").is_file()
    archiving.finish_archiving(run, tmp_path / ".archive")  # as starting a run there does
    (target,) = (tmp_path / ".archive").iterdir()
    assert sorted(p.name for p in target.iterdir()) == ["checkpoints", "config.json", "data", "manifest.json", "merged"]
    assert list(run.iterdir()) == []


def exported(project: Path, path: Path, model: Path, **overrides: object) -> Run:
    """A run with its data and its plan, by the pipeline's own stages."""
    from noesis.pipeline.stages.plan import run_plan
    from noesis.pipeline.start_run import from_sources, start_run

    if not list(model.glob("*.safetensors")):
        (model / "model.safetensors").write_bytes(b"\x02\0\0\0\0\0\0\0{}")  # no weights: nothing reads them
    config = settings(project, model, **overrides)
    s = start_run(
        Project(project),
        config,
        path,
        from_sources(Project(project), config),
        resume=bool(overrides.get("max_examples") == 8 and path.exists()),
    )
    run_plan(s)
    return s.run


def settings(project: Path, model: Path, **overrides: object) -> Config:
    return load_config(Project(project), {"training.model": str(model), "max_examples": 8, "lora.r": 4} | overrides)


@pytest.fixture
def run(project: Path, tmp_path: Path, tiny_shape: Path, quiet_cache: Path) -> Run:
    return exported(project, tmp_path / "run", tiny_shape)


def wrong(run: Run) -> list[str]:
    return [f"{f.what}: {f.wrong}" for f in verify(load_run(run.path)) if f.wrong]


def test_verify_finds_nothing_in_an_honest_run(run: Run):
    assert wrong(run) == []
    assert [(s.name, s.status, s.inputs) for s in status(run)][:3] == [
        ("export", "done", {}),
        ("plan", "done", {"export": True}),
        ("train", "not run", {}),
    ]


def test_a_change_that_keeps_size_and_time_is_seen_by_verify(run: Run, capsys: pytest.CaptureFixture[str]):
    file = run.data / "train.jsonl"
    before = file.stat()
    text = file.read_bytes()
    file.write_bytes(text.replace(b"a", b"e", 1))
    os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))
    found = "\n".join(wrong(run))
    for expected in (
        "export: hashes of 4 files: data/train.jsonl: changed",
        "other examples than the manifest's",
    ):
        assert expected in found
    assert run_command(["verify", str(run.path)]) == 1
    os.utime(file)  # with its own time it is seen without being looked for
    again = load_run(run.path)
    assert not again.is_done("export")
    assert [(s.name, s.status, s.inputs) for s in status(again)][:2] == [
        ("export", "changed", {}),
        ("plan", "done", {"export": False}),
    ]
    capsys.readouterr()
    assert run_command(["status", str(run.path)]) == 0
    assert "reads export CHANGED since" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("lie", "named"),
    [
        (lambda m: m["stages"]["plan"]["result"].update(tokens_per_epoch=7), "the plan says 7"),
        (
            lambda m: m.update(cost_usd=0.5),
            "the ledger's entries add up to 0 USD|the ledger's entries add up to 0.0 USD",
        ),
        (lambda m: m["identity"].update(config_sha256="0"), "config.json is of another configuration"),
        (lambda m: m["identity"].update(revision="0"), "the base model here is"),
        (lambda m: m["stages"]["export"]["result"].update(x=1), "does not follow from the data"),
    ],
)
def test_a_lie_in_the_manifest_is_named(run: Run, lie, named: str):
    with edited_manifest(run.path) as manifest:
        lie(manifest)
    assert re.search(named, "\n".join(wrong(run)))


def test_a_touched_file_with_its_old_content_is_still_done(run: Run):
    os.utime(run.data / "train.jsonl")
    assert load_run(run.path).is_done("export")


def test_resume_refuses_another_run_and_says_what_differs(project: Path, run: Run, tiny_shape: Path):
    from noesis.pipeline.start_run import from_sources, start_run

    def again(**overrides: object) -> Run:
        config = settings(project, tiny_shape, **overrides)
        return start_run(Project(project), config, run.path, from_sources(Project(project), config), resume=True).run

    assert again().manifest.created == run.manifest.created
    with pytest.raises(
        RunError, match=r"training.learning_rate: 0.0002 there, 0.01 asked for.*Without --resume it is archived"
    ):
        again(**{"training.learning_rate": 1e-2})
    with pytest.raises(RunError, match="another dataset"):
        again(**{"training.data.language": "en"})
    with edited_manifest(run.path) as manifest:
        manifest["libraries"]["torch"] = "1.13.0"
    with pytest.raises(RunError, match=r"another torch: 2.* instead of 1\.13\.0"):
        again(**{"training.num_train_epochs": 5})
    with edited_manifest(run.path) as manifest:
        manifest["libraries"].pop("torch")
    more = again(**{"training.num_train_epochs": 5})
    assert more.manifest.history == (Extension(epochs=3, finished=False),)
    assert more.config().training.num_train_epochs == 5
    assert more.state("plan") == "stale"
    assert not (run.path.parent / ".archive").exists()


def test_what_is_asked_for_with_no_run_there(
    project: Path, tmp_path: Path, run: Run, capsys: pytest.CaptureFixture[str]
):
    assert (
        run_command(["train", "--project", str(project), "--run", str(tmp_path / "none"), "--resume", "--fresh"]) == 2
    )
    with pytest.raises(UsageError, match="directory of its own"):
        parent_of(run.path, run.path)
    with pytest.raises(RunError, match="no trained adapter"):
        parent_of(run.path, tmp_path / "new")


def test_other_libraries_in_the_middle_of_training_start_a_new_run(run: Run, project: Path, tiny_shape: Path):
    with edited_manifest(run.path) as manifest:
        manifest["stages"]["train"] = {"status": "interrupted", "seconds": 1.0, "outputs": {}}
        manifest["libraries"]["transformers"] = "4.57.1"
    again = open_run(run.path, run.identity, run.config())
    assert again.state("train") == "not run"
    assert len(list((run.path.parent / ".archive").iterdir())) == 1


def test_two_runs_of_the_same_things_have_the_same_identity(run: Run, project: Path, tmp_path: Path, tiny_shape: Path):
    other = exported(project, tmp_path / "other", tiny_shape)
    assert other.identity == run.identity


HANDLES = """
import os, sys, time
from noesis.cli import run_command
from noesis.core.signals import deferred
import noesis.pipeline.start_run, noesis.cli.pipeline_commands
def work(*a, **k):
    with deferred() as interrupt:
        print("ready", flush=True)
        end = time.monotonic() + 30
        while time.monotonic() < end:
            if interrupt.number and "whole" in sys.argv:
                print("saved", flush=True)
                interrupt.leave()
            time.sleep(0.01)
noesis.pipeline.start_run.start_run = work
sys.exit(run_command(["train", "--project", sys.argv[1], "--run", sys.argv[2]]))
"""


@pytest.mark.timing
@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
@pytest.mark.parametrize("mode", ["whole", "twice"])
def test_a_signal_is_obeyed_at_a_whole_step_and_a_second_at_once(
    project: Path, tmp_path: Path, number: int, code: int, mode: str
):
    process = subprocess.Popen(
        [sys.executable, "-c", HANDLES, str(project), str(tmp_path / "r"), mode],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout and process.stderr
    for line in process.stdout:
        if line == "ready\n":
            break
    process.send_signal(number)
    if mode == "twice":
        for line in process.stderr:
            if "a second signal stops at once" in line:
                break
        process.send_signal(number)
    out, err = process.communicate(timeout=120)
    assert process.returncode == code
    assert ("saved" in out, "stopped at once" in err) == (mode == "whole", mode == "twice")
    if mode == "whole":
        assert "the same command continues from there" in err


SWALLOWS = """
import sys, time
from noesis.cli import run_command
import noesis.pipeline.start_run, noesis.cli.pipeline_commands
class Slow:
    def __del__(self):
        print("ready", flush=True)
        time.sleep(30)
def work(*a, **k):
    Slow()
    time.sleep(30)
noesis.pipeline.start_run.start_run = work
sys.exit(run_command(["train", "--project", sys.argv[1], "--run", sys.argv[2]]))
"""


@pytest.mark.slow
@pytest.mark.timing
def test_a_signal_that_python_drops_is_obeyed_all_the_same(project: Path, tmp_path: Path):
    """It used to be lost when it came while an object was cleared away: the next stage went on as if nothing had been asked."""
    process = subprocess.Popen(
        [sys.executable, "-c", SWALLOWS, str(project), str(tmp_path / "r")],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout
    for line in process.stdout:
        if line == "ready\n":
            break
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=120)
    assert process.returncode == 143
