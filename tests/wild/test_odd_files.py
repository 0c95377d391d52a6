"""Files that are of another kind than their place asks for: folders, pipes, sockets, links, and what is far too long."""

from __future__ import annotations

import os
import re
import socket
from collections.abc import Callable
from pathlib import Path

import pytest

from helpers.project import ROOT
from noesis.cli import run_command
from noesis.core.errors import NoesisError
from noesis.core.files import (
    append_line,
    copy_file,
    explain_error,
    make_folder,
    new_file,
    new_folder,
    read_text,
    write_json,
    write_jsonl,
    write_text,
)
from noesis.core.jsonl import read_json_file, read_objects
from noesis.core.rooted import guard
from noesis.core.yaml_file import read_yaml
from noesis.run.lock import locked
from noesis.tribunal.suite import EvalSample, read_rows
from noesis.workspace.new_project import create_project


def fill_new_file(path: Path) -> None:
    with new_file(path) as part:
        part.write_text("x")


def fill_new_folder(path: Path) -> None:
    with new_folder(path) as part:
        (part / "x").write_text("x")


def lock_run(path: Path) -> None:
    with locked(path.parent):
        pass


def copy_there(path: Path) -> None:
    source = path.parent / "source.txt"
    source.write_text("x")
    copy_file(source, path)


WRITERS: dict[str, Callable[[Path], object]] = {
    "text": lambda path: write_text(path, "x"),
    "JSON": lambda path: write_json(path, {}),
    "JSONL": lambda path: write_jsonl(path, []),
    "a line": lambda path: append_line(path, "x"),
    "a file by another library": fill_new_file,
    "a copy": copy_there,
}


def read_samples(file: Path) -> object:
    return read_rows([file], EvalSample, "all")


def message_of(work: Callable[[], object]) -> str:
    with pytest.raises((NoesisError, OSError)) as caught:
        work()
    explained = explain_error(caught.value)
    assert explained is not None
    return str(explained)


@pytest.mark.parametrize("guarded", [False, True], ids=["anywhere", "in a run"])
@pytest.mark.parametrize("write", WRITERS.values(), ids=list(WRITERS))
def test_a_folder_in_the_place_of_a_file_is_named_with_what_to_do(
    write: Callable[[Path], object], guarded: bool, tmp_path: Path
):
    place = tmp_path / "a.json"
    place.mkdir()
    (place / "mine").write_text("x")
    if guarded:
        guard(tmp_path)
    words = message_of(lambda: write(place))
    assert words.startswith(f"{place} is a folder, and a file belongs there: move it away, and run the same command")
    assert {file.name for file in tmp_path.iterdir()} <= {"a.json", "source.txt"}  # nothing half-written stays
    assert (place / "mine").read_text() == "x"


@pytest.mark.parametrize("guarded", [False, True], ids=["anywhere", "in a run"])
@pytest.mark.parametrize("write", [*WRITERS.values(), make_folder], ids=[*WRITERS, "a folder"])
def test_a_file_in_the_place_of_a_folder_is_named_with_what_to_do(
    write: Callable[[Path], object], guarded: bool, tmp_path: Path
):
    (tmp_path / "a").write_text("mine")
    if write is copy_there:
        (tmp_path / "source.txt").write_text("x")

        def write(path: Path) -> None:
            copy_file(tmp_path / "source.txt", path)

    if guarded:
        guard(tmp_path)
    words = message_of(lambda: write(tmp_path / "a" / "b" / "c.json"))
    assert words.startswith(f"{tmp_path / 'a'} is a file, and a folder belongs there: move it away")


@pytest.mark.parametrize("name", [".holder", ".lock"])
def test_a_folder_in_the_place_of_a_lock_is_named(name: str, tmp_path: Path):
    run = tmp_path / "run"
    (run / name / "x").mkdir(parents=True)
    words = message_of(lambda: lock_run(run / "x"))
    assert words.startswith(f"{run / name} is a folder, and a file belongs there")


def test_an_old_folder_is_replaced_by_a_new_one_and_a_file_too(tmp_path: Path):
    (tmp_path / "a").mkdir()
    (tmp_path / "b").write_text("x")
    for name in ("a", "b"):
        fill_new_folder(tmp_path / name)
        assert (tmp_path / name / "x").is_file()


@pytest.mark.parametrize("write", [write for write in WRITERS.values() if write is not copy_there])
def test_a_name_that_is_too_long_is_said_and_not_shown_whole(write: Callable[[Path], object], tmp_path: Path):
    words = message_of(lambda: write(tmp_path / ("n" * 5000)))
    assert "name is too long" in words
    assert "choose a shorter one" in words
    assert len(words) < 500


def test_a_link_to_itself_is_said(tmp_path: Path):
    (tmp_path / "a").symlink_to(tmp_path / "a")
    assert "a symbolic link" in message_of(lambda: read_text(tmp_path / "a"))


# --- what is no file, where data is looked for


def make_socket(path: Path) -> None:
    here = os.getcwd()
    os.chdir(path.parent)  # a socket's path may have a hundred characters
    try:
        with socket.socket(socket.AF_UNIX) as made:
            made.bind(path.name)
    finally:
        os.chdir(here)


NO_FILES: dict[str, Callable[[Path], object]] = {
    "a pipe": os.mkfifo,
    "a socket": make_socket,
    "an endless device": lambda path: path.symlink_to("/dev/zero"),
    "a terminal": lambda path: path.symlink_to("/dev/null"),
}


@pytest.mark.parametrize("make", NO_FILES.values(), ids=list(NO_FILES))
def test_what_is_no_file_among_the_data_is_named_and_never_waited_for(
    make: Callable[[Path], object], tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    (tmp_path / "folder").mkdir()
    odd = tmp_path / "folder" / "x.jsonl"
    make(odd)
    for named in (odd, odd.parent):
        assert run_command(["data", "validate", str(named), "--project", str(ROOT)]) == 2
        assert f"error: {odd} is a pipe, a socket or a device, and a file belongs there" in capsys.readouterr().err


@pytest.mark.parametrize("make", NO_FILES.values(), ids=list(NO_FILES))
@pytest.mark.parametrize("read", [read_yaml, read_objects, read_json_file, read_text, read_samples])
def test_no_reader_waits_for_what_is_no_file(
    read: Callable[[Path], object], make: Callable[[Path], object], tmp_path: Path
):
    odd = tmp_path / "x.jsonl"
    make(odd)
    with pytest.raises((NoesisError, ValueError)) as caught:
        read(odd)
    assert "is a pipe, a socket or a device" in str(caught.value) or "not a plain file" in str(caught.value)


@pytest.mark.parametrize("target", ["gone", "x.jsonl"], ids=["nothing", "itself"])
def test_a_link_to_nothing_among_the_data_is_said(target: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    (tmp_path / "x.jsonl").symlink_to(target)
    assert run_command(["data", "validate", str(tmp_path), "--project", str(ROOT)]) == 1
    assert re.search(r"x\.jsonl is .*a symbolic link .*: move it away", capsys.readouterr().err)


@pytest.mark.parametrize("name", ["lora_config.yaml", "constitution.yaml"])
@pytest.mark.parametrize(
    ("make", "kind"), [(Path.mkdir, "is a folder"), (os.mkfifo, "is a pipe, a socket")], ids=["a folder", "a pipe"]
)
def test_what_stands_in_the_place_of_a_setting_is_said(
    name: str, make: Callable[[Path], object], kind: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    create_project(tmp_path / "p")
    (file,) = (tmp_path / "p").rglob(name)
    file.unlink()
    make(file)
    assert run_command(["plan", "--project", str(tmp_path / "p")]) in (1, 2)
    assert capsys.readouterr().err.startswith(f"error: {file} {kind}")
