"""The manifest on the volume as `cloud watch`, `cost` and `pull` read it: stale stages, and manifests that can't be read."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from helpers.manifest import write_manifest
from noesis.cloud.pull import pull
from noesis.cloud.volume.layout import FOLDER, LEASE
from noesis.cloud.volume.lease import LeaseRecord
from noesis.cloud.volume.remote import RemoteFile, UnreadableManifest, manifest_of
from noesis.cloud.watch import follow, progress_lines, read_progress
from noesis.core.errors import RunError
from noesis.run.manifest import FORMAT, StageRecord

STEP = {"step": 14, "epoch": 1.0, "loss": 2.5, "tokens": 63000, "tokens_per_s": 3600.0}
NEWER = json.dumps({"format": FORMAT + 1, "stages": [{"shape": "unknown"}]})
UNREADABLE = {
    "half written": ('{"format": 2, "stages": {"train": {"sta', "incomplete"),
    "empty": ("", "incomplete"),
    "newer": (NEWER, f"has format {FORMAT + 1}.*update Noesis"),
    "another file": ('{"stages": {}}', "not a manifest of Noesis"),
    "a list": ("[]", "not a manifest of Noesis"),
}


class FolderVolume:
    """A volume that is a folder."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def files(self, folder: str = "/") -> list[RemoteFile]:
        raise AssertionError("nothing is listed before the manifest was read")

    def chunks(self, path: str) -> Iterator[bytes]:
        yield (self.root / path.strip("/")).read_bytes()


@pytest.fixture
def volume(tmp_path: Path) -> FolderVolume:
    """A volume with a lease of no end and a step of training, still without a manifest."""
    found = FolderVolume(tmp_path / "volume")
    (found.root / FOLDER).mkdir(parents=True)
    record = LeaseRecord("call", float("1e12"), {"train": "fc-1"})
    (found.root / FOLDER / LEASE).write_text(json.dumps(record.to_json()), encoding="utf-8")
    (found.root / "metrics.jsonl").write_text(json.dumps(STEP) + "\n{}\n1\n", encoding="utf-8")
    return found


def test_a_stage_whose_input_has_changed_is_shown_as_stale(volume: FolderVolume):
    export = StageRecord("done", result={"examples": 1})
    plan = StageRecord("done", inputs={"export": "of an export before this one"}, result={"steps": 42})
    write_manifest(volume.root, stages={"export": export.to_json(), "plan": plan.to_json()})
    progress = read_progress(volume)
    assert progress.stages == {"export": "done", "plan": "stale"}
    lines = "\n".join(progress_lines(progress))
    assert "done: export\n" in lines
    assert "stale: plan (" in lines


@pytest.mark.parametrize("kind", UNREADABLE)
def test_watching_goes_on_where_the_manifest_cannot_be_read_and_says_so_once(
    kind: str, volume: FolderVolume, capsys: pytest.CaptureFixture[str]
):
    text, why = UNREADABLE[kind]
    (volume.root / "manifest.json").write_text(text, encoding="utf-8")
    waits: list[float] = []

    def sleep(seconds: float) -> None:
        waits.append(seconds)
        if len(waits) == 3:
            (volume.root / FOLDER / LEASE).write_text("{", encoding="utf-8")

    last = follow(volume, sleep=sleep)
    printed = capsys.readouterr()
    said = printed.out + printed.err
    assert said.count("manifest.json on the volume") == 2  # once while it ran, once when it had ended
    assert "a run is using this volume" in said
    assert "step 14 · epoch 1.00" in said
    assert "spent" not in said
    assert (last.alive, last.done, last.usd) == (False, False, None)
    with pytest.raises(UnreadableManifest, match=why):
        manifest_of(volume)


def test_watching_recovers_when_the_manifest_is_whole_again(volume: FolderVolume):
    (volume.root / "manifest.json").write_text("{", encoding="utf-8")
    assert "incomplete" in read_progress(volume).to_json()["problem"]
    write_manifest(volume.root, stages={"train": {"status": "running"}})
    found = read_progress(volume).to_json()
    assert (found["stage"], "problem" in found) == ("train", False)


@pytest.mark.parametrize("kind", UNREADABLE)
def test_pulling_refuses_a_manifest_that_cannot_be_read_and_copies_nothing(
    kind: str, volume: FolderVolume, tmp_path: Path
):
    text, why = UNREADABLE[kind]
    (volume.root / "manifest.json").write_text(text, encoding="utf-8")
    with pytest.raises(RunError, match=why):
        pull(volume, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_an_archived_run_that_is_not_there_is_named(volume: FolderVolume, tmp_path: Path):
    with pytest.raises(RunError, match="no run in /runs/old/ of the volume"):
        pull(volume, tmp_path / "run", archived="old")


@pytest.mark.parametrize("text", ["", "{", "[]", '{"until": "soon"}', '{"calls": 1}'])
def test_a_damaged_lease_is_nobody_s(text: str):
    assert LeaseRecord.parse(text) == LeaseRecord()
