"""The run directory: stages, archive, lock; files whole or not at all."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from helpers.project import ROOT
from noesis.core.config import load_config
from noesis.core.errors import NoesisError, RunError, UsageError
from noesis.core.files import atomic, explain_os_error, require_space, write_json
from noesis.core.project import Project
from noesis.run.directory import Run, load_run, open_run
from noesis.run.lock import locked
from noesis.run.manifest import Identity

CONFIG = load_config(Project(ROOT))
IDENTITY = Identity("a", "b", "c", "m", "r")


def do(run: Run, stage: str, text: str) -> dict:
    def work() -> dict:
        (run.path / f"{stage}.txt").write_text(text)
        return {"text": text}

    return run.perform(stage, work, lambda: [run.path / f"{stage}.txt"])


def test_a_finished_stage_is_not_done_again_unless_its_output_is_gone(tmp_path: Path):
    run = open_run(tmp_path / "r", IDENTITY, CONFIG)
    assert do(run, "plan", "one") == {"text": "one"}
    again = open_run(tmp_path / "r", IDENTITY, CONFIG)
    assert do(again, "plan", "two") == {"text": "one"}
    (run.path / "plan.txt").unlink()
    assert not again.is_done("plan")
    assert do(again, "plan", "two") == {"text": "two"}


def test_doing_a_stage_makes_the_later_ones_stale(tmp_path: Path):
    run = open_run(tmp_path / "r", IDENTITY, CONFIG)
    do(run, "train", "a")
    do(run, "merge", "b")
    run.perform("train", dict, list, again=True)
    assert not run.is_done("merge")
    assert load_run(run.path).manifest.stages["merge"].status == "stale"


@pytest.mark.parametrize(("error", "status"), [(ValueError, "failed"), (KeyboardInterrupt, "interrupted")])
def test_a_stage_that_breaks_is_not_done(tmp_path: Path, error: type[BaseException], status: str):
    run = open_run(tmp_path / "r", IDENTITY, CONFIG)

    def work() -> dict:
        raise error

    with pytest.raises(error):
        run.perform("train", work, list)
    assert load_run(run.path).state("train") == status


def test_another_configuration_archives_the_old_run_whole(tmp_path: Path):
    run = open_run(tmp_path / "r", IDENTITY, CONFIG)
    (run.path / "checkpoints" / "epoch_0").mkdir(parents=True)
    (run.path / "checkpoints" / "epoch_0" / "adapter").write_text("precious")
    (run.path / "dataset").mkdir()  # on a volume the upload lies beside the run and is not part of it
    new = open_run(tmp_path / "r", replace(IDENTITY, config_sha256="z"), CONFIG)
    assert new.identity.config_sha256 == "z"
    assert not (new.path / "checkpoints").exists()
    assert (new.path / "dataset").is_dir()
    (archived,) = (tmp_path / ".archive").iterdir()
    assert (archived / "checkpoints" / "epoch_0" / "adapter").read_text() == "precious"
    assert json.loads((archived / "manifest.json").read_text())["identity"] == IDENTITY.to_json()


def test_fresh_archives_an_equal_run(tmp_path: Path):
    do(open_run(tmp_path / "r", IDENTITY, CONFIG), "plan", "x")
    assert not open_run(tmp_path / "r", IDENTITY, CONFIG, fresh=True).is_done("plan")
    assert len(list((tmp_path / ".archive").iterdir())) == 1


def test_a_second_process_is_refused_and_told_who_holds_it(tmp_path: Path):
    with (
        locked(tmp_path),
        pytest.raises(RunError, match=f"process {os.getpid()}"),
        locked(tmp_path),
    ):
        pass
    with locked(tmp_path):
        assert (tmp_path / ".holder").is_file()  # free again, and held by the new owner


@pytest.mark.timing
def test_the_lock_of_a_process_that_was_killed_is_taken_over(tmp_path: Path):
    code = "import sys, time; from pathlib import Path; from noesis.run.lock import locked\nwith locked(Path(sys.argv[1])): print('held', flush=True); time.sleep(60)"
    holder = subprocess.Popen([sys.executable, "-c", code, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    assert holder.stdout and holder.stdout.readline() == "held\n"
    with pytest.raises(RunError, match=f"process {holder.pid}"), locked(tmp_path):
        pass
    holder.kill()
    holder.communicate()
    assert (tmp_path / ".holder").is_file()  # it had no time to take it away
    with locked(tmp_path):
        assert f"process {os.getpid()}" in (tmp_path / ".holder").read_text()


def test_a_run_that_is_not_there_or_not_one(tmp_path: Path):
    with pytest.raises(UsageError, match="no run in"):
        load_run(tmp_path)
    (tmp_path / "manifest.json").write_text("{")
    with pytest.raises(RunError, match="damaged"):
        load_run(tmp_path)
    (tmp_path / "manifest.json").write_text("{}")
    with pytest.raises(RunError, match="not a manifest"):
        load_run(tmp_path)


def test_a_file_is_written_whole_or_not_at_all(tmp_path: Path):
    file = tmp_path / "a.json"
    write_json(file, {"v": 1})
    with pytest.raises(RuntimeError), atomic(file) as f:
        f.write("half")
        raise RuntimeError
    assert json.loads(file.read_text()) == {"v": 1}
    assert list(tmp_path.iterdir()) == [file]
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_json(file, {"v": float("nan")})
    assert json.loads(file.read_text()) == {"v": 1}


def test_a_full_disk_is_one_message_with_a_remedy():
    try:
        with open("/dev/full", "wb", buffering=0) as f:
            f.write(b"x")
    except OSError as error:
        assert "noesis clean" in str(explain_os_error(error))
    else:
        pytest.fail("/dev/full took a byte")


def test_space_is_asked_for_before_work_begins(tmp_path: Path):
    require_space(tmp_path, 1000, "a little")
    with pytest.raises(
        NoesisError, match=r"the model needs 1000000\.0 TB and .* has .* free: make room with  noesis clean"
    ):
        require_space(tmp_path, 1e18, "the model")
