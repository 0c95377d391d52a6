"""Training that is interrupted: signals, torn files, spending caps, clocks, full and read-only disks."""

from __future__ import annotations

import ctypes
import json
import os
import shutil
import signal
import sys
import time
from pathlib import Path

import pytest

from helpers.project import ROOT, example_record
from helpers.tiny_runs import rows_of, small
from helpers.training_jobs import sft_job
from noesis.core.config import Config, load_config
from noesis.core.errors import CapError, NoesisError, TrainingError
from noesis.core.files import sha256_file
from noesis.core.project import Project
from noesis.core.signals import Terminated
from noesis.planning.budget import Budget

pytestmark = [pytest.mark.slow, pytest.mark.timing]


ADAPTER = "checkpoints/epoch_1/adapter_model.safetensors"


def settings(packed: bool = False, **overrides: object) -> Config:
    base = {
        "training.num_train_epochs": 2,
        "training.save_every": "1 step",
        "lora.lora_dropout": 0.1,
        "training.packing": packed,
    }
    return small(**(base | overrides))


def train(model: Path, folder: Path, record: dict, config: Config, **more: object) -> dict:
    from noesis.training.trainer import train as run

    return run(sft_job(model, folder, rows_of(model, 20, record), config, **more)).to_json()


@pytest.fixture(scope="module")
def whole(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[bool, Path]:
    """A run that nothing happens to, packed and not."""
    folders = {}
    for packed in (False, True):
        folders[packed] = tmp_path_factory.mktemp("whole")
        train(tiny_model, folders[packed], RECORD, settings(packed))
    return folders


RECORD = example_record()


def same(whole: Path, other: Path) -> bool:
    lines = [[json.loads(line) for line in (f / "metrics.jsonl").read_text().splitlines()] for f in (whole, other)]
    figures = [[(v["step"], v["epoch"], v["loss"], v["lr"], v["grad_norm"], v["tokens"]) for v in run] for run in lines]
    return figures[0] == figures[1] and all(
        sha256_file(whole / a) == sha256_file(other / a) for a in (ADAPTER, ADAPTER.replace("_1", "_0"))
    )


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize(("number", "raised"), [(signal.SIGTERM, Terminated), (signal.SIGINT, KeyboardInterrupt)])
def test_a_signal_in_mid_step_saves_the_last_whole_step(
    tiny_model: Path,
    tmp_path: Path,
    whole: dict,
    monkeypatch: pytest.MonkeyPatch,
    packed: bool,
    number: int,
    raised: type[BaseException],
):
    import torch

    config = settings(packed, **{"training.save_every": "100 steps"})  # so that only the signal makes it save
    real, calls = torch.Tensor.backward, []

    def signalled(self, *args: object, **kwargs: object) -> None:
        calls.append(1)
        if len(calls) == (3 if packed else 18):
            os.kill(os.getpid(), number)
        real(self, *args, **kwargs)

    monkeypatch.setattr(torch.Tensor, "backward", signalled)
    with pytest.raises(raised):
        train(tiny_model, tmp_path, RECORD, config)
    (saved,) = (tmp_path / "checkpoints" / "resume").iterdir()
    assert saved.name == f"checkpoint-{1 if packed else 2}"
    monkeypatch.undo()
    train(tiny_model, tmp_path, RECORD, config)
    assert same(whole[packed], tmp_path)


def test_a_micro_batch_that_does_not_end_after_a_signal_is_given_up(
    tiny_model: Path, tmp_path: Path, whole: dict, monkeypatch: pytest.MonkeyPatch
):
    import torch

    monkeypatch.setattr("noesis.core.signals.PATIENCE_S", 0.2)
    real, calls = torch.Tensor.backward, []

    def endless(self, *args: object, **kwargs: object) -> None:
        calls.append(1)
        if len(calls) == 3:
            os.kill(os.getpid(), signal.SIGTERM)
            while True:
                time.sleep(0.01)
        real(self, *args, **kwargs)

    monkeypatch.setattr(torch.Tensor, "backward", endless)
    with pytest.raises(Terminated):
        train(tiny_model, tmp_path, RECORD, settings(True, **{"training.save_every": "100 steps"}))
    assert [p.name for p in (tmp_path / "checkpoints" / "resume").iterdir()] == ["checkpoint-1"]
    monkeypatch.undo()
    train(tiny_model, tmp_path, RECORD, settings(True))
    assert same(whole[True], tmp_path)


def test_a_torn_state_is_set_aside_and_the_one_before_it_used(
    tiny_model: Path, tmp_path: Path, whole: dict, capsys: pytest.CaptureFixture[str]
):
    shutil.copytree(whole[True], tmp_path / "run")
    resume = tmp_path / "run" / "checkpoints" / "resume"
    shutil.rmtree(tmp_path / "run" / "checkpoints" / "epoch_1")
    with open(resume / "checkpoint-6" / "optimizer.safetensors", "r+b") as f:
        f.seek(-1, os.SEEK_END)
        f.write(b"\xff")
    capsys.readouterr()
    train(tiny_model, tmp_path / "run", RECORD, settings(True))
    out = capsys.readouterr().out
    assert "checkpoint-6 is not whole (optimizer.safetensors is torn or was changed)" in out
    assert "resuming from step 5" in out
    assert same(whole[True], tmp_path / "run")


def test_states_hold_no_pickle(whole: dict):
    names = {p.name for folder in whole.values() for p in (folder / "checkpoints" / "resume").glob("*/*")}
    assert names and {Path(n).suffix for n in names} == {".json", ".safetensors"}


def test_it_stops_at_the_cap_with_the_step_saved_and_goes_on_when_more_is_agreed(
    tiny_model: Path, tmp_path: Path, whole: dict
):
    class Clock:
        now = 0.0

        def __call__(self) -> float:
            self.now += 0.4  # each look at the clock takes its time
            return self.now

    clock = Clock()
    budget = Budget(0.01, 0.0, 0.0, 0.1, None, 0.0, clock)
    with pytest.raises(CapError, match=r"stopped at the agreed cap: 0\.\d\d of 0\.10 USD") as stopped:
        train(tiny_model, tmp_path, RECORD, settings(), budget=budget)
    assert stopped.value.exit_code == 5
    assert budget.usd() <= 0.1
    states = list((tmp_path / "checkpoints" / "resume").glob("checkpoint-*"))
    assert states
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert 0 < lines[0]["usd"] < lines[-1]["usd"] <= 0.1
    train(tiny_model, tmp_path, RECORD, settings(), budget=Budget(0.01, 0.1, 20.0, 90.0, None, time.monotonic()))
    assert same(whole[False], tmp_path)


def test_a_clock_that_jumps_changes_nothing(
    tiny_model: Path, tmp_path: Path, whole: dict, monkeypatch: pytest.MonkeyPatch
):
    real, looks = time.time, []

    def jumping() -> float:
        looks.append(1)
        return real() + (-1e8 if len(looks) % 2 else 1e8)

    monkeypatch.setattr(time, "time", jumping)
    train(tiny_model, tmp_path, RECORD, settings(True))
    assert same(whole[True], tmp_path)


@pytest.fixture
def disk(tmp_path: Path):
    """A disk of 64 MB of its own."""
    place = tmp_path / "disk"
    place.mkdir()
    libc = ctypes.CDLL(None, use_errno=True)
    if sys.platform != "linux" or libc.mount(b"tmpfs", str(place).encode(), b"tmpfs", 0, b"size=64m") != 0:
        pytest.skip("mounting a file system needs root on Linux")
    yield place
    libc.mount(b"tmpfs", str(place).encode(), b"tmpfs", 32, b"size=64m")
    libc.umount2(str(place).encode(), 2)


@pytest.mark.parametrize("asked", [True, False])
def test_a_disk_that_fills_up_keeps_the_last_whole_step(
    tiny_model: Path, tmp_path: Path, disk: Path, whole: dict, monkeypatch: pytest.MonkeyPatch, asked: bool
):
    """asked: the space that is left is looked at before a save; not asked: the disk fills up in the middle of one."""
    from noesis.training.state.resumable import Resumable
    from noesis.training.state.save_schedule import SaveSchedule

    real, ballast = Resumable._save_checkpoint, disk / "ballast"

    def filling(self, *args: object) -> None:
        if self.state.global_step == 3:
            free = shutil.disk_usage(disk).free
            ballast.write_bytes(bytes(free - 30_000))
        real(self, *args)

    monkeypatch.setattr(Resumable, "_save_checkpoint", filling)
    if not asked:
        monkeypatch.setattr(SaveSchedule, "require_space", lambda self, folder: None)
    with pytest.raises(NoesisError if asked else Exception, match=r"has .* free|No space left|os error 28"):
        train(tiny_model, disk / "run", RECORD, settings())
    monkeypatch.undo()
    assert sorted(p.name for p in (disk / "run" / "checkpoints" / "resume").iterdir()) == [
        "checkpoint-1",
        "checkpoint-2",
    ]
    ballast.unlink()
    train(tiny_model, disk / "run", RECORD, settings())
    assert same(whole[False], disk / "run")


def test_a_directory_that_becomes_read_only_keeps_the_last_whole_step(
    tiny_model: Path, disk: Path, whole: dict, monkeypatch: pytest.MonkeyPatch
):
    from noesis.training.state.resumable import Resumable

    real, libc = Resumable._save_checkpoint, ctypes.CDLL(None, use_errno=True)

    def remount(read_only: bool) -> None:
        assert libc.mount(b"tmpfs", str(disk).encode(), b"tmpfs", 32 | (1 if read_only else 0), b"size=64m") == 0

    def locking(self, *args: object) -> None:
        if self.state.global_step == 3:
            remount(True)
        real(self, *args)

    monkeypatch.setattr(Resumable, "_save_checkpoint", locking)
    with pytest.raises(OSError, match="Read-only"):
        train(tiny_model, disk / "run", RECORD, settings())
    monkeypatch.undo()
    remount(False)
    train(tiny_model, disk / "run", RECORD, settings())
    assert same(whole[False], disk / "run")


def test_an_old_run_on_a_disk_of_its_own_is_archived_on_that_disk(disk: Path):
    from noesis.run.directory import open_run
    from noesis.run.manifest import Identity

    config = load_config(Project(ROOT))
    open_run(disk, Identity("1", "", "", "", ""), config)
    (disk / "data").mkdir()
    open_run(disk, Identity("2", "", "", "", ""), config)
    (target,) = (disk / ".archive").iterdir()
    assert sorted(p.name for p in target.iterdir()) == ["config.json", "data", "manifest.json"]


def test_a_fork_begins_with_its_parents_adapter(tiny_model: Path, tmp_path: Path, whole: dict):
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    from noesis.training.state.adapter import load_adapter_into

    parent = whole[False] / "checkpoints" / "epoch_1"
    raw = json.loads((parent / "adapter_config.json").read_text())
    base = AutoModelForCausalLM.from_pretrained(tiny_model, dtype=torch.float32)
    model = get_peft_model(
        base, LoraConfig(r=4, lora_alpha=8, target_modules=raw["target_modules"], task_type="CAUSAL_LM")
    )
    load_adapter_into(model, parent)
    model.save_pretrained(tmp_path / "child")
    assert sha256_file(tmp_path / "child" / "adapter_model.safetensors") == sha256_file(
        parent / "adapter_model.safetensors"
    )
    other = get_peft_model(
        AutoModelForCausalLM.from_pretrained(tiny_model),
        LoraConfig(r=2, target_modules=["q_proj"], task_type="CAUSAL_LM"),
    )
    with pytest.raises(TrainingError, match="same base model, rank and target_modules"):
        load_adapter_into(other, parent)
