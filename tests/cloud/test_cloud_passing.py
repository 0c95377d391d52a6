"""Faults of Modal that pass: what is waited out and for how long, one writer at a time, and a publishing thread that never dies in silence."""

from __future__ import annotations

import threading
import time
from pathlib import Path

import modal
import pytest

from helpers.project import ROOT
from noesis.cloud import patience
from noesis.cloud.container.orchestrator import POLL_S
from noesis.cloud.container.workspace import ContainerContext, staged_run
from noesis.cloud.patience import BUILDS_S, LONGEST_PAUSE_S, PATIENCE_S, commit_volume, patiently, reload_volume
from noesis.cloud.volume import lease, writer
from noesis.cloud.volume.lease import Lease
from noesis.cloud.volume.sync import VolumeSync, publishing
from noesis.cloud.volume.writer import (
    BEAT_S,
    GRACE_S,
    LASTS_S,
    OpenFilesError,
    SupersededError,
    Writer,
    seconds_of_writers,
)
from noesis.core.config import load_config
from noesis.core.errors import RunError
from noesis.core.project import Project
from noesis.run.directory import open_run
from noesis.run.manifest import Identity

PASSING = [
    modal.exception.ConnectionError("lost"),
    modal.exception.ServiceError("unavailable"),
    modal.exception.InternalError("internal"),
    modal.exception.ResourceExhaustedError("rate"),
    ConnectionResetError("reset"),
    TimeoutError("slow"),
]
LASTING = [
    modal.exception.AuthError("token"),
    modal.exception.NotFoundError("volume"),
    modal.exception.FunctionTimeoutError("2 s"),
    modal.exception.RemoteError("exit 7"),
    ValueError("a mistake"),
]


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds


# --- waiting


@pytest.mark.parametrize("error", PASSING, ids=lambda error: type(error).__name__)
def test_what_passes_is_tried_again_and_said_once(error: Exception, capsys: pytest.CaptureFixture[str]):
    clock, left = Clock(), [error] * 6

    def action() -> int:
        if left:
            raise left.pop()
        return 7

    assert patiently("do it", action, clock=clock, sleep=clock.sleep) == 7
    assert capsys.readouterr().out.count("Modal could not do it") == 1
    assert clock.now - 1000 < PATIENCE_S
    with pytest.raises(RunError, match=r"Modal could not do it for 3 min.*same command continues"):
        patiently("do it", lambda: (_ for _ in ()).throw(error), clock=clock, sleep=clock.sleep)


@pytest.mark.parametrize("error", LASTING, ids=lambda error: type(error).__name__)
def test_what_lasts_is_raised_at_once(error: Exception):
    with pytest.raises(type(error)):
        patiently("do it", lambda: (_ for _ in ()).throw(error), sleep=lambda s: pytest.fail("it waited"))


def test_silence_is_a_fault_too():
    ever = threading.Event()
    with pytest.raises(RunError, match="no answer"):
        patiently("do it", ever.wait, patience_s=0.2)
    ever.set()


def deploying(clock: Clock, *tries: float | Exception):
    """A deployment whose tries take so long, or fail at once; the last one again and again."""
    left = list(tries)

    def action() -> int:
        now = left.pop(0) if len(left) > 1 else left[0]
        if isinstance(now, Exception):
            raise now
        clock.now += now
        return 7

    return action


def test_a_deployment_may_build_for_long_but_its_faults_must_pass_within_minutes():
    clock = Clock()
    refused = modal.exception.ServiceError("unavailable")
    assert patiently("deploy", deploying(clock, refused, 1700.0), works_s=BUILDS_S, clock=clock, sleep=clock.sleep) == 7
    clock = Clock()
    with pytest.raises(RunError, match="could not deploy for 3 min"):
        patiently("deploy", deploying(clock, refused), works_s=BUILDS_S, clock=clock, sleep=clock.sleep)
    assert PATIENCE_S - LONGEST_PAUSE_S <= clock.now - 1000 <= PATIENCE_S


def test_a_deployment_that_is_silent_for_longer_than_a_build_is_not_tried_again():
    ever, tries = threading.Event(), []

    def action() -> None:
        tries.append(1)
        ever.wait()

    with pytest.raises(RunError, match="no answer"):
        patiently("deploy", action, works_s=0.2)
    ever.set()
    assert len(tries) == 1


class OfModal:
    """A volume whose commit and reload raise what is given, one after the other."""

    def __init__(self, *errors: Exception) -> None:
        self.errors, self.done = list(errors), 0

    def commit(self) -> None:
        if self.errors:
            raise self.errors.pop(0)
        self.done += 1

    reload = commit


OPEN = RuntimeError("there are open files preventing the operation: path x is open")


def test_a_commit_is_done_though_a_file_is_open_and_a_reload_waits_for_it(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(patience, "FIRST_PAUSE_S", 0.01)
    commit_volume(OfModal(OPEN))
    volume = OfModal(OPEN, RuntimeError("in conflict with another commit"))
    reload_volume(volume)
    assert volume.done == 1
    monkeypatch.setattr(patience, "OPEN_FILES_S", 0.0)
    with pytest.raises(OpenFilesError, match="path x is open"):
        reload_volume(OfModal(OPEN))
    with pytest.raises(RunError, match="not found"):
        commit_volume(OfModal(RuntimeError("Volume 'vo' not found")))


def test_a_lease_outlasts_every_silence_of_a_holder_that_is_alive():
    silence = lease.RENEW_S + POLL_S + 3 * PATIENCE_S  # asks, reloads, commits, each to the end of its patience
    assert silence < lease.LASTS_S
    assert LASTS_S > BEAT_S + 3 * PATIENCE_S
    assert LONGEST_PAUSE_S < PATIENCE_S / 3


# --- one writer


def a_writer(root: Path, clock: Clock, *, turn: float = 1.0, source: str = "in-1", sleep=None) -> Writer:
    return Writer(root, lambda: None, lambda: None, turn, source, clock, sleep or clock.sleep)


def test_a_newer_container_waits_for_the_older_to_save_and_the_older_stops(tmp_path: Path):
    clock = Clock()
    first = a_writer(tmp_path, clock)
    first.take()
    clock.now += 1

    def saves_meanwhile(seconds: float) -> None:
        clock.now += seconds
        with pytest.raises(SupersededError):
            first.beat()
        assert first.may_publish()
        first.leave()

    second = a_writer(tmp_path, clock, turn=2.0, source="in-2", sleep=saves_meanwhile)
    second.take()
    assert clock.now < 1000 + 10
    second.beat()


@pytest.mark.parametrize(("source", "waits"), [("in-1", GRACE_S), ("in-2", LASTS_S)])
def test_a_killed_container_is_waited_for_as_long_as_it_may_live_and_publishes_no_more(
    source: str, waits: float, tmp_path: Path
):
    clock = Clock()
    dead = a_writer(tmp_path, clock)
    dead.take()
    clock.now += 1
    second = a_writer(tmp_path, clock, turn=2.0, source=source)
    second.take()
    assert waits - 2 < clock.now - 1000 <= waits + 3
    assert not dead.may_publish()
    assert second.may_publish()


def test_a_killed_container_whose_call_has_gone_on_and_ended_is_waited_for_no_more(tmp_path: Path):
    """Judging waited twelve minutes, on its card, for a training container that had been replaced long before."""
    clock = Clock()
    a_writer(tmp_path, clock, turn=1.0, source="in-1").take()  # killed
    clock.now += 1.0
    again = a_writer(tmp_path, clock, turn=1.0, source="in-1")
    again.take()
    assert GRACE_S - 1 <= clock.now - 1001 <= GRACE_S + 2
    again.leave()
    assert seconds_of_writers(tmp_path, clock.now) <= 0
    began = clock.now
    judging = a_writer(tmp_path, clock, turn=2.0, source="in-2")
    judging.take()
    assert clock.now == began


def test_of_two_calls_the_one_started_later_goes_on_whichever_began_first(tmp_path: Path):
    clock = Clock()
    later = a_writer(tmp_path, clock, turn=2.0)
    later.take()
    clock.now += 5
    with pytest.raises(SupersededError):
        a_writer(tmp_path, clock, turn=1.0, source="in-0").beat()
    later.beat()


def test_no_command_starts_while_a_container_of_an_earlier_one_writes(tmp_path: Path):
    clock = Clock()
    unattended = a_writer(tmp_path, clock)
    unattended.take()

    def new() -> Lease:
        return Lease(tmp_path, "b", lambda: None, lambda: None, clock=clock, sleep=clock.sleep)

    with pytest.raises(RunError, match="another run is using this volume"):
        new().take()
    unattended.leave()
    new().take()
    (tmp_path / ".cloud" / "writers" / "damaged.json").write_text('{"until": "x"}', encoding="utf-8")
    assert [record.id for record in writer.writers(tmp_path)] == [unattended.id]


def test_a_container_that_may_not_begin_keeps_nobody_out(tmp_path: Path):
    first = Writer(tmp_path, lambda: None, lambda: None, 1.0)
    first.take()
    context = ContainerContext(tmp_path, Project(ROOT), lambda: None, lambda: None, lambda: None)
    open_run(tmp_path, Identity("c", "d", "k", "m", "r"), load_config(Project(ROOT)), archive_to=tmp_path / "runs")
    with pytest.raises(SupersededError), staged_run(context, turn=0.5):
        pass  # the other's turn is later
    first.leave()
    assert writer.seconds_of_writers(tmp_path, time.time()) <= 0


# --- publishing


def a_sync(tmp_path: Path, commit) -> VolumeSync:
    for folder in ("volume", "local"):
        (tmp_path / folder).mkdir()
    (tmp_path / "local" / "metrics.jsonl").write_text("1", encoding="utf-8")
    return VolumeSync(tmp_path / "volume", tmp_path / "local", commit)


@pytest.mark.timing
@pytest.mark.parametrize("error", [*PASSING, *LASTING], ids=lambda error: type(error).__name__)
def test_nothing_that_goes_wrong_ends_the_publishing(
    error: Exception, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    errors = [error]
    committed = threading.Event()

    def commit() -> None:
        if errors:
            raise errors.pop()
        committed.set()

    sync = a_sync(tmp_path, commit)
    own = Writer(tmp_path / "volume", lambda: None, lambda: None)
    own.take()
    with publishing(sync, own, check_s=0.01, publish_s=0.02):
        end = time.monotonic() + 30
        while not committed.is_set() and time.monotonic() < end:
            (tmp_path / "local" / "metrics.jsonl").write_text(str(time.monotonic_ns()), encoding="utf-8")
            time.sleep(0.02)
    assert committed.is_set()
    assert "will try again" in capsys.readouterr().out


@pytest.mark.timing
def test_work_that_could_not_be_kept_is_interrupted_with_the_reason(tmp_path: Path):
    def commit() -> None:
        raise RunError("Modal could not write to the volume for 3 min")

    clock = Clock()
    own = Writer(tmp_path / "volume", lambda: None, lambda: None, clock=clock)
    sync = a_sync(tmp_path, commit)
    own.take()
    own.commit = commit
    clock.now += LASTS_S + 1
    with pytest.raises(RunError, match="could not write"), publishing(sync, own, check_s=0.01, publish_s=0.01):
        time.sleep(30)


@pytest.mark.timing
def test_a_superseded_container_saves_and_stops(tmp_path: Path):
    clock = Clock()
    sync = a_sync(tmp_path, lambda: None)
    own = Writer(tmp_path / "volume", lambda: None, lambda: None, 1.0, "in-1", clock)
    own.take()
    newer = a_writer(tmp_path / "volume", clock, turn=2.0)
    with pytest.raises(SupersededError), publishing(sync, own, check_s=0.01, publish_s=0.01):
        try:
            newer.began = clock()
            newer._write(LASTS_S)
            time.sleep(30)
        finally:
            (tmp_path / "local" / "metrics.jsonl").write_text("saved", encoding="utf-8")
    assert (tmp_path / "volume" / "metrics.jsonl").read_text(encoding="utf-8") == "saved"
    assert newer._seconds_of_older() <= 0
