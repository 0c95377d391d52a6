"""Two commands on one run, in any order: nothing that either recorded is lost; `noesis clean` takes nothing from anyone."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from helpers.project import ROOT
from noesis.core.config import load_config
from noesis.core.errors import RunError, UsageError
from noesis.core.project import Project
from noesis.pipeline.session import locked_session
from noesis.run.directory import Run, load_run, open_run
from noesis.run.ledger import LedgerEntry
from noesis.run.lock import held
from noesis.run.manifest import Identity, Parent
from noesis.workspace.clean import free, garbage

CONFIG = load_config(Project(ROOT))
IDENTITY = Identity("a", "b", "c", "m", "r")
ENTRY = LedgerEntry("elsewhere-1", "judge_epochs", "now", 0.1, 10.0, 1.0, "done")


@pytest.fixture
def first(tmp_path: Path) -> Run:
    return open_run(tmp_path / "runs" / "r", IDENTITY, CONFIG)


def card(run: Run) -> None:
    run.write_derived("merge", run.path / "merged" / "m" / "README.md", "a card")


UPDATES: dict[str, Callable[[Run], object]] = {
    "a stage": lambda run: run.perform("merge", dict, list, again=True),
    "a booked cost": lambda run: run.book([ENTRY]),
    "a parent": lambda run: run.set_parent(Parent("p", "epoch_0", "0", 1, IDENTITY)),
    "new settings": lambda run: run.record_settings(CONFIG.model_copy(update={"max_examples": 5})),
    "a card": card,
}


@pytest.mark.parametrize(
    "update", [pytest.param(update, id=f"a report that began before {name}") for name, update in UPDATES.items()]
)
def test_what_another_command_recorded_is_kept(first: Run, update: Callable[[Run], object]):
    first.perform("merge", dict, list)
    late = load_run(first.path)  # as a command that read the manifest before the other one wrote it
    update(first)
    before = json.loads((first.path / "manifest.json").read_text())
    late.perform("report", dict, list)
    after = json.loads((first.path / "manifest.json").read_text())
    kept = {key: after[key] for key in before if key not in ("stages", "ledger", "cost_usd", "worked_seconds")}
    assert kept == {key: before[key] for key in kept}
    assert after["stages"]["merge"] == before["stages"]["merge"]
    assert after["ledger"][: len(before["ledger"])] == before["ledger"]
    assert after["stages"]["report"]["status"] == "done"


@pytest.mark.parametrize(
    "update", [pytest.param(update, id=f"{name} in the middle of a stage") for name, update in UPDATES.items()]
)
def test_what_is_recorded_while_a_stage_works_is_kept(first: Run, update: Callable[[Run], object]):
    first.perform("merge", dict, list)
    other, seen = load_run(first.path), {}

    def work() -> dict:
        update(other)
        seen.update(json.loads((first.path / "manifest.json").read_text()))
        return {}

    first.perform("gguf", work, list)
    after = json.loads((first.path / "manifest.json").read_text())
    assert after["stages"]["merge"] == seen["stages"]["merge"]
    assert (after.get("parent"), after["settings_sha256"]) == (seen.get("parent"), seen["settings_sha256"])
    assert {e["id"] for e in after["ledger"]} >= {e["id"] for e in seen["ledger"]}
    assert [e["ended"] for e in after["ledger"] if e["stage"] == "gguf"] == ["done"]


def test_a_stage_that_fails_keeps_what_another_command_recorded(first: Run):
    other = load_run(first.path)

    def work() -> dict:
        other.perform("merge", dict, list)
        raise KeyError

    with pytest.raises(KeyError):
        first.perform("gguf", work, list)
    manifest = load_run(first.path).manifest
    assert (manifest.stages["merge"].status, manifest.stages["gguf"].status) == ("done", "failed")


BOOKS = """
import sys
from pathlib import Path
from noesis.run.directory import load_run
from noesis.run.ledger import LedgerEntry
run = load_run(Path(sys.argv[1]))
for i in range(25):
    run.book([LedgerEntry(f"{sys.argv[2]}-{i}", "judge_epochs", "now", 0.0, 1.0, 1.0, "done")])
"""


def test_two_processes_that_book_at_once_lose_no_cent(first: Run):
    workers = [subprocess.Popen([sys.executable, "-c", BOOKS, str(first.path), name]) for name in ("a", "b")]
    assert [worker.wait(60) for worker in workers] == [0, 0]
    manifest = load_run(first.path).manifest
    assert (len(manifest.ledger), manifest.cost_usd) == (50, 50.0)


@pytest.mark.parametrize(
    "replaces",
    [
        pytest.param(lambda run: open_run(run.path, IDENTITY, CONFIG, fresh=True), id="the run is started afresh"),
        pytest.param(
            lambda run: open_run(run.path, replace(IDENTITY, config_sha256="z"), CONFIG),
            id="another configuration takes its name",
        ),
        pytest.param(lambda run: run.extend(replace(IDENTITY, config_sha256="z"), CONFIG), id="epochs are added"),
        pytest.param(lambda run: (run.path / "manifest.json").unlink(), id="its manifest is gone"),
    ],
)
def test_a_command_that_read_another_run_writes_nothing(first: Run, replaces, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("noesis.run.directory.utc_now", iter(f"t{i}" for i in range(99)).__next__)
    late = load_run(first.path)
    replaces(load_run(first.path))
    file = first.path / "manifest.json"
    before = file.read_bytes() if file.is_file() else b""
    with pytest.raises(RunError, match="run the same command again"):
        late.perform("report", dict, list)
    assert (file.read_bytes() if file.is_file() else b"") == before


def test_a_session_is_read_after_its_lock_is_held(first: Run, monkeypatch: pytest.MonkeyPatch):
    order = []
    monkeypatch.setattr("noesis.pipeline.session.reopen_run", lambda path: order.append((path / ".holder").is_file()))
    with locked_session(first.path):
        pass
    assert order == [True]
    with pytest.raises(UsageError, match="no run in"), locked_session(first.path.parent / "none"):
        pass
    assert not (first.path.parent / "none").exists()


# --- noesis clean


@pytest.fixture
def mine(tmp_path: Path, quiet_cache: Path) -> Path:
    """Files of the user, outside the project."""
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("years of work")
    return tmp_path / "mine"


LINKS = {
    "an archived run that is a link": "runs/.archive/old",
    "an archive folder that is a link": "runs/.archive",
    "a replay that is a link": "runs/.replay/r",
    "a replay folder that is a link": "runs/.replay",
    "a runs folder that is a link": "runs",
    "a half-written file that is a link": "runs/r/.x.part",
    "a torn state below a linked folder": "runs/r/checkpoints",
}


@pytest.mark.parametrize("link", [pytest.param(place, id=name) for name, place in LINKS.items()])
def test_clean_neither_follows_nor_counts_links(tmp_path: Path, mine: Path, link: str):
    for name in ("resume/torn-1", ".archive/x", ".replay/x", "x"):
        (mine / name).mkdir(parents=True)
        (mine / name / ".y.part").write_text("mine")
    place = tmp_path / "p" / link
    place.parent.mkdir(parents=True)
    place.symlink_to(mine)
    before = sorted(mine.rglob("*"))
    items = garbage(Project(tmp_path / "p"))
    assert items == []
    free(items)
    assert sorted(mine.rglob("*")) == before


def test_clean_neither_follows_nor_counts_a_link_inside_what_it_deletes(tmp_path: Path, mine: Path):
    (mine / "large").write_bytes(bytes(100_000))
    archived = tmp_path / "p" / "runs" / ".archive" / "old"
    archived.mkdir(parents=True)
    (archived / "data").symlink_to(mine)
    (archived / "metrics.jsonl").symlink_to(mine / "large")
    (item,) = garbage(Project(tmp_path / "p"))
    assert item.bytes < 1000
    assert free([item]) == []
    assert not archived.exists()
    assert (mine / "large").stat().st_size == 100_000


@pytest.mark.parametrize(
    "place",
    [
        pytest.param("papers/.thesis.part/chapter1.txt", id="a folder of the user that is named as our own"),
        pytest.param(".movie.mkv.part", id="a download of the user's"),
        pytest.param(".archive/NOTES.md", id="notes beside archived runs"),
        pytest.param(".archive/old/thesis.txt", id="a folder of the user beside archived runs"),
        pytest.param("backup/checkpoints/resume/torn-1/x", id="a folder without a run"),
    ],
)
def test_clean_takes_nothing_that_is_no_part_of_a_run(tmp_path: Path, quiet_cache: Path, place: str):
    project = Project(tmp_path / "p")
    (project.runs / place).parent.mkdir(parents=True)
    (project.runs / place).write_text("years of work")
    assert garbage(project) == []


def test_clean_deletes_nothing_that_became_a_link_since_it_was_listed(tmp_path: Path, mine: Path):
    archive = tmp_path / "p" / "runs" / ".archive"
    (archive / "mine").mkdir(parents=True)
    items = garbage(Project(tmp_path / "p"))
    (archive / "mine").rmdir()
    archive.rmdir()
    archive.symlink_to(mine.parent)
    assert len(free(items)) == 1
    assert (mine / "thesis.txt").is_file()


@pytest.mark.parametrize(
    ("place", "lock"),
    [
        pytest.param("runs/r/.x.part", "runs/r", id="a file that a command is writing in a run"),
        pytest.param("runs/deep/r/merged/.m.part/w", "runs/deep/r", id="a folder that a command is writing, deeper"),
        pytest.param("runs/r/checkpoints/resume/torn-3/w", "runs/r", id="a torn state in a run that is being trained"),
        pytest.param("runs/.replay/r-1/w", "runs/.replay/r-1", id="a replay that is under way"),
    ],
)
def test_clean_skips_what_another_command_works_on(tmp_path: Path, quiet_cache: Path, place: str, lock: str):
    project = Project(tmp_path / "p")
    (project.root / place).parent.mkdir(parents=True)
    (project.root / place).write_text("half")
    with held(project.root / lock):
        ((_, why),) = free(garbage(project))
        assert "in use by" in why
        assert (project.root / place).is_file()
    assert free(garbage(project)) == []
    assert not (project.root / place).exists()


def test_clean_skips_a_run_that_is_just_being_archived(tmp_path: Path, quiet_cache: Path):
    target = tmp_path / "p" / "runs" / ".archive" / "r-1"
    target.mkdir(parents=True)
    (target / "manifest.json").write_text("{}")
    (tmp_path / "p" / "runs" / "r").mkdir()
    (tmp_path / "p" / "runs" / "r" / ".moving").write_text(str(target.resolve()))
    assert len(free(garbage(Project(tmp_path / "p")))) == 1
    assert (target / "manifest.json").is_file()


def test_clean_skips_a_model_that_is_being_converted(tmp_path: Path, quiet_cache: Path):
    from filelock import FileLock

    models = quiet_cache / "models"
    (models / ".smollm2.part").mkdir(parents=True)
    with FileLock(models / "smollm2.lock"):
        ((item, _),) = free(garbage(Project(tmp_path / "p")))
    assert item.path.is_dir()
