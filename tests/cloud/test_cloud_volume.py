"""A run on a volume: its lease, what is published to it, pulling it, watching it."""

from __future__ import annotations

import errno
import json
import os
import shutil
import stat
from pathlib import Path

import pytest

from noesis.cloud.pull import pull
from noesis.cloud.volume.layout import FOLDER
from noesis.cloud.volume.lease import LASTS_S, LEAVING_S, Lease
from noesis.cloud.volume.remote import RemoteFile, safe_name
from noesis.cloud.volume.sync import VolumeSync, publishing
from noesis.cloud.watch import progress_lines, read_progress
from noesis.core.errors import RunError
from noesis.run.manifest import Identity

IDENTITY = Identity("c", "d", "k", "someone/else", "r").to_json()

# --- the lease


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds


def lease(root: Path, holder: str, clock: Clock, reload=lambda: None) -> Lease:
    return Lease(root, holder, commit=lambda: None, reload=reload, clock=clock, sleep=clock.sleep)


def test_one_run_at_a_time_and_a_killed_holder_s_lease_runs_out(tmp_path: Path):
    clock = Clock()
    first = lease(tmp_path, "a", clock)
    first.take()
    with pytest.raises(RunError, match="another run is using"):
        lease(tmp_path, "b", clock).take()
    clock.now += LASTS_S
    second = lease(tmp_path, "b", clock)
    second.take()
    clock.now += 61
    with pytest.raises(RunError, match="another run started"):
        first.renew()
    second.renew()
    second.release()
    lease(tmp_path, "c", clock).take()


def test_an_orchestrator_that_starts_again_finds_its_calls_and_another_waits_for_one_that_leaves(tmp_path: Path):
    clock = Clock()
    first = lease(tmp_path, "a", clock)
    first.take()
    first.add_call("train", "fc-1")
    first.release(leaving=True)
    again = lease(tmp_path, "a", clock)
    again.take()
    assert again.calls == {"train": "fc-1"}
    again.release(leaving=True)
    before = clock.now
    other = lease(tmp_path, "b", clock)
    other.take()
    assert LEAVING_S <= clock.now - before < LEAVING_S + 10
    assert other.calls == {}


def test_of_two_that_begin_at_once_the_first_writer_loses(tmp_path: Path):
    clock = Clock()
    late = lease(tmp_path, "b", clock)
    calls = []

    def meanwhile() -> None:  # what the volume shows when it is read back
        if not calls:
            calls.append(1)
            late._write(LASTS_S)

    with pytest.raises(RunError, match="at the same moment"):
        lease(tmp_path, "a", clock, reload=meanwhile).take()


# --- publishing


def a_run(folder: Path) -> None:
    for name in (
        "checkpoints/epoch_0/adapter_model.safetensors",
        "checkpoints/resume/checkpoint-2/state",
        "data/train.jsonl",
        "metrics.jsonl",
        "manifest.json",
    ):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(name, encoding="utf-8")


def test_what_is_new_is_published_whole_and_once_manifest_last(tmp_path: Path):
    volume, local, commits = tmp_path / "volume", tmp_path / "local", []
    a_run(volume)
    (volume / "checkpoints" / ".epoch_1.part").mkdir()
    (volume / "merged" / "m").mkdir(parents=True)
    staging = VolumeSync(volume, local, lambda: commits.append((volume / "manifest.json").read_text(encoding="utf-8")))
    staging.bring()
    assert (local / "merged").is_symlink()
    assert not (volume / "checkpoints" / ".epoch_1.part").exists()
    assert (staging.publish(), staging.is_due(), commits) == ([], False, [])
    shutil.copytree(local / "checkpoints" / "epoch_0", local / "checkpoints" / "epoch_1")
    shutil.move(local / "checkpoints" / "resume" / "checkpoint-2", local / "checkpoints" / "resume" / "checkpoint-4")
    (local / "checkpoints" / ".epoch_2.part").mkdir()
    (local / "manifest.json").write_text("new", encoding="utf-8")
    assert staging.is_due()
    assert staging.publish() == ["checkpoints/epoch_1", "checkpoints/resume/checkpoint-4", "manifest.json"]
    assert commits == ["new"]
    assert sorted(p.name for p in (volume / "checkpoints" / "resume").iterdir()) == ["checkpoint-4"]
    assert not (volume / "checkpoints" / ".epoch_2.part").exists()


def test_the_end_is_published_however_it_comes(tmp_path: Path):
    volume, local = tmp_path / "volume", tmp_path / "local"
    a_run(volume)
    staging = VolumeSync(volume, local, lambda: None)
    staging.bring()
    with pytest.raises(KeyboardInterrupt), publishing(staging, check_s=60):
        (local / "metrics.jsonl").write_text("more", encoding="utf-8")
        raise KeyboardInterrupt
    assert (volume / "metrics.jsonl").read_text(encoding="utf-8") == "more"


def test_a_volume_whose_folders_can_not_be_flushed_is_written_all_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    flush, refused = os.fsync, [errno.EINVAL]

    def fsync(handle: int) -> None:
        if stat.S_ISDIR(os.fstat(handle).st_mode):
            raise OSError(refused[0], os.strerror(refused[0]))
        flush(handle)

    monkeypatch.setattr(os, "fsync", fsync)
    volume, local = tmp_path / "volume", tmp_path / "local"
    a_run(volume)
    staging = VolumeSync(volume, local, lambda: None)
    staging.bring()
    shutil.copytree(local / "checkpoints" / "epoch_0", local / "checkpoints" / "epoch_1")
    assert staging.publish() == ["checkpoints/epoch_1"]
    refused[0] = errno.EIO  # this one is no refusal but a broken disk
    (local / "metrics.jsonl").write_text("more", encoding="utf-8")
    with pytest.raises(OSError, match="Input/output"):
        staging.publish()


# --- pulling


class Folder:
    """A volume that is a folder; `hostile` is listed beside what lies there."""

    def __init__(self, root: Path, hostile: str = "") -> None:
        self.root, self.hostile, self.read = root, hostile, []

    def files(self, folder: str = "/") -> list[RemoteFile]:
        base = self.root / folder.strip("/")
        found = [base] if base.is_file() else sorted(p for p in base.rglob("*") if p.is_file())
        names = [p.relative_to(self.root).as_posix() for p in found]
        if self.hostile and folder == "/data":
            names.append(self.hostile)
        return [
            RemoteFile(safe_name(n), (self.root / n).stat().st_size if (self.root / n).is_file() else 1) for n in names
        ]

    def chunks(self, path: str):
        file = self.root / path.strip("/")
        if not file.is_file():
            raise FileNotFoundError(path)
        self.read.append(path)
        yield file.read_bytes()


def a_pulled_run(root: Path) -> None:
    import hashlib

    a_run(root)
    outputs = {
        name: {
            "bytes": (root / name).stat().st_size,
            "sha256": hashlib.sha256((root / name).read_bytes()).hexdigest(),
        }
        for name in ("data/train.jsonl", "checkpoints/epoch_0/adapter_model.safetensors")
    }
    entry = {"status": "done", "outputs": outputs}
    manifest = {"identity": IDENTITY, "created": "now", "output_name": "m", "stages": {"train": entry}}
    (root / "manifest.json").write_text(json.dumps(manifest), encoding="utf-8")


def test_pulling_checks_hashes_goes_on_and_takes_only_the_run(tmp_path: Path):
    far, target = Folder(tmp_path / "volume"), tmp_path / "run"
    a_pulled_run(far.root)
    for other in ("dataset/train.jsonl", "runs/old/manifest.json", ".cache/x"):
        (far.root / other).parent.mkdir(parents=True, exist_ok=True)
        (far.root / other).write_text("", encoding="utf-8")
    pull(far, target)
    got = sorted(p.relative_to(target).as_posix() for p in target.rglob("*") if p.is_file())
    assert got == [
        "checkpoints/epoch_0/adapter_model.safetensors",
        "data/train.jsonl",
        "manifest.json",
        "metrics.jsonl",
    ]
    (target / "data" / "train.jsonl").unlink()
    far.read.clear()
    pull(far, target)
    assert "/data/train.jsonl" in far.read
    assert "/checkpoints/epoch_0/adapter_model.safetensors" not in far.read
    (far.root / "data" / "train.jsonl").write_text("forged, and long", encoding="utf-8")
    (target / "data" / "train.jsonl").unlink()
    with pytest.raises(RunError, match="its hash differs"):
        pull(far, target)
    assert not list(target.rglob("*train.jsonl*"))
    manifest = json.loads((far.root / "manifest.json").read_text(encoding="utf-8"))
    (far.root / "manifest.json").write_text(json.dumps(manifest | {"created": "later"}), encoding="utf-8")
    with pytest.raises(RunError, match="holds another run"):
        pull(far, target)


@pytest.mark.parametrize(
    "name", ["../x", "data/../../x", "data/./x", "data//x", "data\\x", "C:/x", "data/a\x1b[31m", "data/con.", ""]
)
def test_hostile_names_on_a_volume_are_refused(name: str, tmp_path: Path):
    with pytest.raises(RunError, match="not safe to copy"):
        safe_name(name)
    if name:
        far = Folder(tmp_path / "volume", hostile=name)
        a_pulled_run(far.root)
        with pytest.raises(RunError, match="not safe to copy"):
            pull(far, tmp_path / "run")
        assert not (tmp_path / "run").exists()


def test_a_manifest_that_names_files_elsewhere_and_a_link_in_the_target_are_refused(tmp_path: Path):
    far, target = Folder(tmp_path / "volume"), tmp_path / "run"
    a_pulled_run(far.root)
    target.mkdir()
    (tmp_path / "elsewhere").mkdir()
    (target / "data").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(RunError, match="is a symbolic link"):
        pull(far, target)
    assert list((tmp_path / "elsewhere").iterdir()) == []
    manifest = json.loads((far.root / "manifest.json").read_text(encoding="utf-8"))
    manifest["stages"]["train"]["outputs"]["dataset/x"] = {"bytes": 0, "sha256": ""}
    (far.root / "manifest.json").write_text(json.dumps(manifest), encoding="utf-8")
    with pytest.raises(RunError, match="no part of a run"):
        pull(far, tmp_path / "other")


def test_watching_tells_step_loss_spent_and_who_is_there(tmp_path: Path):
    far = Folder(tmp_path)
    with pytest.raises(RunError, match="holds no run yet"):
        read_progress(far)
    plan = {"status": "done", "result": {"steps": 42, "usd": 0.28, "stages": []}}
    manifest = {
        "identity": IDENTITY,
        "output_name": "m",
        "cost_usd": 0.1,
        "ledger": [],
        "stages": {"export": {"status": "done"}, "plan": plan, "train": {"status": "running"}},
    }
    (tmp_path / "manifest.json").write_text(json.dumps(manifest), encoding="utf-8")
    line = {"step": 14, "epoch": 1.0, "loss": 2.5, "tokens": 63000, "tokens_per_s": 3600.0}
    (tmp_path / "metrics.jsonl").write_text(json.dumps(line) + '\n{"step": 15, "ep', encoding="utf-8")
    (tmp_path / ".meter").write_text(
        json.dumps({"id": "x", "stage": "train", "seconds": 9.0, "usd": 0.02}), encoding="utf-8"
    )
    (tmp_path / FOLDER).mkdir()
    (tmp_path / FOLDER / "lease.json").write_text(json.dumps({"holder": "h", "until": 1000.0}), encoding="utf-8")
    found = read_progress(far, now=lambda: 900.0)
    assert (found.stage, found.training.step, found.usd, found.training.seconds_left) == ("train", 14, 0.12, 35.0)
    assert found.to_json() | {"stages": {}} == {
        "stage": "train", "alive": True, "done": False, "usd": 0.12, "quoted_usd": 0.28, "steps": 42, "step": 14,
        "epoch": 1.0, "loss": 2.5, "tokens_per_s": 3600.0, "seconds_left": 35.0, "stages": {},
    }  # fmt: skip
    text = "\n".join(progress_lines(found))
    for said in (
        "running: train",
        "step 14/42",
        "loss 2.500",
        "3,600 tokens/s",
        "35.0 s of training left",
        "spent 0.12 USD of 0.28 quoted",
    ):
        assert said in text
    gone = "\n".join(progress_lines(read_progress(far, now=lambda: 2000.0)))
    assert "nothing is running" in gone
    assert "train stopped before its end" in gone
