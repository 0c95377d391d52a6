"""Nothing below a guarded folder is reached through a link, whatever is done to it."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from noesis.core.errors import UnsafePathError
from noesis.core.files import atomic, copy_file, replace_folder, sweep, write_json, write_text
from noesis.core.rooted import below, guard, move, open_file, remove

pytestmark = pytest.mark.skipif(os.name != "posix", reason="links need no privilege here")


@pytest.fixture
def victim(tmp_path: Path) -> Path:
    """A folder outside the run, with a file that must not change."""
    folder = tmp_path / "home"
    folder.mkdir()
    (folder / "config.json").write_text("precious")
    return folder


@pytest.fixture
def run(tmp_path: Path) -> Path:
    folder = tmp_path / "evil"
    folder.mkdir()
    guard(folder)
    return folder


def unharmed(victim: Path) -> bool:
    return (
        sorted(p.name for p in victim.iterdir()) == ["config.json"]
        and (victim / "config.json").read_text() == "precious"
    )


WRITES: dict[str, Callable[[Path], object]] = {
    "text": lambda path: write_text(path, "x"),
    "json": lambda path: write_json(path, {}),
    "copy": lambda path: copy_file(Path(__file__), path),
    "bytes": lambda path: atomic(path, "wb").__enter__(),
}


@pytest.mark.parametrize("write", WRITES.values(), ids=WRITES)
def test_a_linked_folder_is_refused_by_every_writer(run: Path, victim: Path, write: Callable[[Path], object]):
    (run / "data").symlink_to(victim)
    for name in ("data/config.json", "data/new/file.json"):
        with pytest.raises(UnsafePathError, match="data is a symbolic link"):
            write(run / name)
    assert unharmed(victim)


@pytest.mark.parametrize("write", [WRITES[name] for name in ("text", "json", "copy")])
def test_a_linked_file_is_replaced_not_followed(run: Path, victim: Path, write: Callable[[Path], object]):
    (run / "config.json").symlink_to(victim / "config.json")
    write(run / "config.json")
    assert unharmed(victim)
    assert not (run / "config.json").is_symlink()


def test_a_temporary_name_that_is_a_link_is_not_followed(run: Path, victim: Path):
    (run / f".x.json.{os.getpid()}.part").symlink_to(victim / "config.json")
    write_json(run / "x.json", 1)
    assert unharmed(victim)


def test_deleting_takes_the_link_and_leaves_its_target(run: Path, victim: Path):
    (run / "merged").mkdir()
    (run / "merged" / "away").symlink_to(victim)
    (run / "alias").symlink_to(victim)
    (run / ".y.part").symlink_to(victim)
    remove(run / "merged")
    remove(run / "alias")
    sweep(run)
    assert unharmed(victim)
    assert list(run.iterdir()) == []
    (run / "deep").symlink_to(victim)
    with pytest.raises(UnsafePathError):
        remove(run / "deep" / "config.json")
    assert unharmed(victim)


def test_moving_never_passes_a_link(run: Path, victim: Path):
    (run / "out").symlink_to(victim)
    (run / "file").write_text("mine")
    for source, target in ((run / "file", run / "out" / "config.json"), (run / "out" / "config.json", run / "file")):
        with pytest.raises(UnsafePathError):
            move(source, target)
    assert unharmed(victim)
    (run / "part").mkdir()
    (run / "merged").symlink_to(victim)
    replace_folder(run / "part", run / "merged")
    assert unharmed(victim)
    assert (run / "merged").is_dir() and not (run / "merged").is_symlink()


def test_opening_a_link_for_reading_is_refused(run: Path, victim: Path):
    (run / ".holder").symlink_to(victim / "config.json")
    with pytest.raises(UnsafePathError, match=r"\.holder is a symbolic link"):
        open_file(run / ".holder", os.O_RDONLY)


def test_the_guarded_folder_itself_may_be_a_link(tmp_path: Path):
    (tmp_path / "disk").mkdir()
    (tmp_path / "runs").symlink_to(tmp_path / "disk")
    guard(tmp_path / "runs")
    write_text(tmp_path / "runs" / "a" / "b.txt", "x")
    assert (tmp_path / "disk" / "a" / "b.txt").read_text() == "x"


BAD = ["", "/etc/passwd", "../x", "a/../../x", "a//b", ".", "a/.", "C:x", "C:\\x", "\\\\host\\share", "a\0b", "..\\x"]


@pytest.mark.parametrize("name", BAD)
def test_a_name_that_leads_out_is_refused(tmp_path: Path, name: str):
    with pytest.raises(UnsafePathError):
        below(tmp_path, name)


@given(st.text(max_size=40))
@settings(max_examples=300)
def test_whatever_name_is_accepted_stays_below(name: str):
    root = Path("/r")
    try:
        found = below(root, name)
    except UnsafePathError:
        return
    assert Path(os.path.normpath(found)).is_relative_to(root)
    assert os.path.normpath(found) != str(root)


def test_without_links_nothing_changes(run: Path):
    write_text(run / "a" / "b" / "c.txt", "x")
    move(run / "a" / "b" / "c.txt", run / "a" / "d.txt")
    assert (run / "a" / "d.txt").read_text() == "x"
    remove(run / "a")
    remove(run / "never")
    assert list(run.iterdir()) == []
