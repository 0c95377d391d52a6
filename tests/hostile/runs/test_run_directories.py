"""Attacks by the files of a run directory: notes that move files away, links, pipes, second names of a file.

Each ends with the stranger's run refused, or harmless, and with nothing changed outside it.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from helpers.command import noesis
from helpers.project import ROOT
from noesis.cloud.container.orchestrator import FunctionCalls, orchestrate
from noesis.cloud.request import CloudRequest
from noesis.cloud.volume.sync import VolumeSync
from noesis.core.config import load_config
from noesis.core.errors import RunError, UnsafePathError
from noesis.core.files import append_line, copy_folder, write_text
from noesis.core.project import Project
from noesis.core.rooted import guard
from noesis.pipeline.resume_fork import adopt, parent_of
from noesis.run.archive import finish_archiving
from noesis.run.directory import load_run, open_run
from noesis.run.lock import locked
from noesis.run.manifest import Identity

pytestmark = pytest.mark.skipif(os.name != "posix", reason="links need no privilege here")

CONFIG = load_config(Project(ROOT))
IDENTITY = Identity("a", "b", "c", "m", "r")
READING = [("status",), ("status", "--json"), ("report",), ("verify",), ("parity",), ("merge",), ("gguf",), ("judge",)]


@pytest.fixture
def evil(tmp_path: Path) -> Path:
    """A stranger's run."""
    return Path(shutil.copytree(ROOT / "tests" / "helpers" / "golden_run", tmp_path / "runs" / "evil"))


@pytest.fixture
def victim(tmp_path: Path) -> Path:
    """The user's own files, an archived run among them."""
    for name in ("home/config.json", "runs/.archive/mine-0123abcd/config.json"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("precious")
    return tmp_path / "home"


def contents(folder: Path) -> dict[str, object]:
    """What lies below a folder: text of files, target of links."""
    found: dict[str, object] = {}
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        found[name] = os.readlink(path) if path.is_symlink() else path.read_bytes() if path.is_file() else None
    return found


# --- the note that a run is being archived


NOTES = [
    pytest.param("{victim}", id="an absolute folder of the user"),
    pytest.param("{victim}\n", id="with a line break at the end"),
    pytest.param("../../home", id="a relative one"),
    pytest.param("{victim}/evil-0123abcd", id="a new folder in it, named like an archive"),
    pytest.param("../.archive/mine-0123abcd", id="over an archived run of the user"),
    pytest.param("../.archive/../../home/x-0123abcd", id="through the archive and out again"),
    pytest.param(".archive/../../../home/x-0123abcd", id="through its own archive and out again"),
    pytest.param("../.archive", id="the archive itself"),
    pytest.param("../.archive/notes", id="a name in the archive that no archived run has"),
    pytest.param("", id="nothing"),
    pytest.param("..", id="the folder above"),
    pytest.param("/", id="the root"),
    pytest.param("../.archive/a\0b-0123abcd", id="a NUL"),
    pytest.param("a" * 1_000_000, id="a megabyte"),
    pytest.param("~/.docker", id="a home folder by its short name"),
]


@pytest.mark.parametrize("note", NOTES)
def test_a_note_that_moves_the_run_does_nothing_when_it_is_only_read(
    evil: Path, victim: Path, tmp_path: Path, note: str
):
    (evil / ".moving").write_text(note.format(victim=victim))
    before = contents(tmp_path)
    assert noesis("status", evil).returncode == 0
    assert contents(tmp_path) == before


@pytest.mark.parametrize("note", NOTES)
def test_a_note_that_moves_the_run_elsewhere_is_refused_when_a_run_starts_there(
    evil: Path, victim: Path, tmp_path: Path, note: str
):
    (evil / ".moving").write_text(note.format(victim=victim))
    before = contents(tmp_path)
    with pytest.raises(RunError, match=r"nothing was moved|was not moved there"):
        open_run(evil, IDENTITY, CONFIG)
    assert contents(tmp_path) == before


@pytest.mark.parametrize("command", READING, ids=" ".join)
def test_no_command_on_a_run_moves_it(evil: Path, victim: Path, tmp_path: Path, command: tuple[str, ...]):
    (evil / "config.json").unlink()  # so that no command gets as far as loading a model
    (evil / ".moving").write_text(str(victim))
    before = contents(tmp_path)
    noesis(command[0], evil, *command[1:])
    after = contents(tmp_path)
    assert {name: after.get(name) for name in before} == before
    assert {Path(name).name for name in after.keys() - before.keys()} <= {".lock"}


def test_a_link_in_place_of_the_archive_receives_nothing(evil: Path, victim: Path, tmp_path: Path):
    shutil.rmtree(tmp_path / "runs" / ".archive")
    (tmp_path / "runs" / ".archive").symlink_to(victim)
    before = contents(tmp_path)
    with pytest.raises(UnsafePathError, match="is a symbolic link"):
        open_run(evil, IDENTITY, CONFIG)
    (evil / ".moving").write_text("../.archive/evil-0123abcd")
    with pytest.raises(UnsafePathError, match="nothing was moved"):
        finish_archiving(evil, tmp_path / "runs" / ".archive")
    (evil / ".moving").unlink()
    assert contents(tmp_path) == before


def test_a_note_of_version_0_1_0_with_an_absolute_path_is_still_followed(evil: Path, tmp_path: Path):
    (evil / ".moving").write_text(str((tmp_path / "runs" / ".archive" / "evil-89abcdef").resolve()))
    open_run(evil, IDENTITY, CONFIG)
    assert (tmp_path / "runs" / ".archive" / "evil-89abcdef" / "report.html").exists() is False
    assert (tmp_path / "runs" / ".archive" / "evil-89abcdef" / "tribunal" / "summary.json").is_file()


# --- links


LINKED = [
    ".holder", ".lock", ".meter", ".moving", ".archive", ".parent.part", "manifest.json", "config.json", "demo.json",
    "data", "data/train.jsonl", "data/constitution.yaml", "checkpoints", "checkpoints/epoch_0", "checkpoints/resume",
    "metrics.jsonl", "tribunal", "tribunal/replies.sqlite", "tribunal/replies.sqlite-wal", "tribunal/locked_uses.jsonl",
    "merged", "merged/noesis-philosopher-v1", "merged/noesis-philosopher-v1/README.md", "gguf", "gguf/.unfinished",
    "gguf/noesis-philosopher-v1-q8_0.gguf", "report.html", "parent", "parent/adapter_config.json", "away",
]  # fmt: skip


def link(evil: Path, name: str, victim: Path) -> None:
    """Put a link where the run's own file or folder was: to a file if it has a suffix, else to a folder."""
    place = evil / name
    shutil.rmtree(place) if place.is_dir() else place.unlink(missing_ok=True)
    place.parent.mkdir(parents=True, exist_ok=True)
    to_file = ("." in name.removeprefix(".") and not name.endswith(".part")) or name in (".holder", ".lock", ".meter")
    place.symlink_to(victim / "config.json" if to_file else victim)


def open_again(evil: Path) -> None:
    open_run(evil, IDENTITY, CONFIG)


def hold(evil: Path) -> None:
    with locked(evil):
        pass


@pytest.mark.parametrize("name", [pytest.param(name, id=f"{name} is a link out of the run") for name in LINKED])
@pytest.mark.parametrize("use", [load_run, open_again, hold], ids=["reading", "starting", "locking"])
def test_a_run_that_holds_a_link_is_refused(evil: Path, victim: Path, name: str, use: Callable[[Path], object]):
    link(evil, name, victim)
    before = contents(evil), contents(victim)
    with pytest.raises(UnsafePathError, match="is a symbolic link"):
        use(evil)
    assert (contents(evil), contents(victim)) == before


@pytest.mark.parametrize("target", ["nowhere", "data/train.jsonl"], ids=["a link to nowhere", "a link inside the run"])
def test_other_links_are_refused_too(evil: Path, target: str):
    (evil / ".holder").symlink_to(evil / target)
    with pytest.raises(UnsafePathError, match="is a symbolic link"):
        hold(evil)
    assert not (evil / "nowhere").exists()


@pytest.mark.parametrize(
    "name",
    [pytest.param(name, id=f"{name} becomes a link after the run was opened") for name in ("tribunal", "data", "gguf")],
)
def test_a_link_that_is_made_while_a_run_is_open_is_not_followed(evil: Path, victim: Path, name: str):
    run = load_run(evil)
    shutil.rmtree(evil / name)
    (evil / name).symlink_to(victim)
    before = contents(victim)
    for write in (write_text, append_line):
        with pytest.raises(UnsafePathError, match="is a symbolic link"):
            write(run.path / name / "config.json", "x")
    assert contents(victim) == before


def test_the_manifest_is_replaced_not_written_through_a_link(evil: Path, victim: Path):
    run = load_run(evil)
    (evil / "manifest.json").unlink()
    (evil / "manifest.json").symlink_to(victim / "config.json")
    with pytest.raises(RunError, match="is a symbolic link"):
        run.perform("noted", dict, list)
    assert contents(victim) == {"config.json": b"precious"}


# --- pipes, and second names


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, id=f"{name} is a pipe that nobody writes to")
        for name in ("manifest.json", "config.json", "data/train.jsonl", ".holder", ".meter", "metrics.jsonl")
    ],
)
def test_a_pipe_is_refused_instead_of_waited_for(evil: Path, name: str):
    (evil / name).unlink(missing_ok=True)
    os.mkfifo(evil / name)
    found = noesis("status", evil)
    assert found.returncode == 1
    assert "is neither a file nor a folder" in found.stderr


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, id=f"{name} is a second name of a file of the user")
        for name in (".lock", ".holder", "metrics.jsonl", "manifest.json", "tribunal/locked_uses.jsonl")
    ],
)
def test_a_second_name_of_a_file_leaves_it_as_it_is(evil: Path, victim: Path, name: str):
    shutil.copyfile(evil / "manifest.json", victim / "manifest.json")
    before = contents(victim)
    (evil / name).unlink(missing_ok=True)
    os.link(victim / ("manifest.json" if name == "manifest.json" else "config.json"), evil / name)
    run = load_run(evil)
    with locked(run.path):
        run.perform("noted", dict, list)
        if name.endswith(".jsonl"):
            with pytest.raises(UnsafePathError, match="not a file of its own"):
                append_line(evil / name, "x")
    assert contents(victim) == before


def test_folders_in_folders_without_end_are_refused(evil: Path):
    """A thousand would end Python's own functions that walk and delete with a RecursionError."""
    evil.joinpath(*["data"] * 60).mkdir(parents=True)
    found = noesis("status", evil)
    assert found.returncode == 1
    assert "50 deep and more" in found.stderr


# --- other places where a run is read


def test_a_fork_does_not_copy_a_secret_out_of_a_linked_adapter(evil: Path, victim: Path, tmp_path: Path):
    adapter = evil / "checkpoints" / "epoch_0"
    adapter.mkdir(parents=True)
    for name in ("adapter_model.safetensors", "adapter_config.json"):
        (adapter / name).write_text("{}")
    parent = parent_of(evil, tmp_path / "mine")
    (adapter / "adapter_config.json").unlink()
    (adapter / "adapter_config.json").symlink_to(victim / "config.json")
    mine = open_run(tmp_path / "mine", IDENTITY, CONFIG)
    with pytest.raises(UnsafePathError, match="is a symbolic link"):
        adopt(mine, evil, parent)
    assert not (mine.path / "parent").exists()


@pytest.mark.parametrize(
    "name", ["data", "data/train.jsonl", "merged", "merged/m", "checkpoints/epoch_0", "report.html"]
)
def test_a_link_on_a_volume_is_not_copied_into_a_container(evil: Path, victim: Path, tmp_path: Path, name: str):
    link(evil, name, victim)
    with pytest.raises(UnsafePathError, match="is a symbolic link"):
        VolumeSync(evil, tmp_path / "local", lambda: None).bring()
    assert not (tmp_path / "local").exists()


def test_a_link_in_a_container_is_not_published(evil: Path, victim: Path, tmp_path: Path):
    sync = VolumeSync(evil, tmp_path / "local", lambda: None)
    sync.bring(link=())
    (tmp_path / "local" / "data" / "secret.json").symlink_to(victim / "config.json")
    with pytest.raises(UnsafePathError, match="is a symbolic link"):
        sync.publish()
    assert not (evil / "data" / "secret.json").exists()


def test_the_link_that_a_container_makes_itself_leads_to_the_volume_and_no_further(evil: Path, tmp_path: Path):
    local, name = tmp_path / "local", "noesis-philosopher-v1"
    VolumeSync(evil, local, lambda: None).bring()
    load_run(local)
    write_text(local / "merged" / name / "README.md", "new")
    assert (evil / "merged" / name / "README.md").read_text() == "new"
    (evil / "merged" / "away").symlink_to(tmp_path)
    with pytest.raises(UnsafePathError, match="is a symbolic link"):
        write_text(local / "merged" / "away" / "x", "x")


def test_copying_a_folder_takes_no_link_along(evil: Path, victim: Path, tmp_path: Path):
    guard(evil)
    (evil / "data" / "deep").symlink_to(victim)
    with pytest.raises(UnsafePathError, match="is a symbolic link"):
        copy_folder(evil / "data", tmp_path / "copy")
    assert not (tmp_path / "copy").exists()


@pytest.mark.parametrize(
    "name", [".cloud", ".cloud/lease.json", "data", "tribunal/epochs", "manifest.json", "summary.txt"]
)
def test_a_link_on_a_volume_stops_the_orchestrator_before_it_writes(evil: Path, victim: Path, name: str):
    link(evil, name, victim)
    before = contents(evil), contents(victim)

    def never(*_: object) -> None:
        raise AssertionError("nothing is started, and nothing paid for")

    calls = FunctionCalls(never, never, never, lambda: None, lambda: None)  # type: ignore[arg-type]
    result = orchestrate(CloudRequest(), evil, calls, "holder")
    assert "is a symbolic link" in (result.error or "")
    assert (contents(evil), contents(victim)) == before
