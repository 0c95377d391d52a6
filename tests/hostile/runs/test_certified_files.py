"""A released file has its name only once it is certified; whatever happens before, the earlier one stays."""

from __future__ import annotations

import json
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from helpers.project import ROOT
from noesis.core.errors import ParityError
from noesis.core.files import new_file, new_folder
from noesis.release import convert
from noesis.release.parity.certificate import Certificate, Comparison, GgufFile
from noesis.release.parity.outcome import name_files

GOLDEN = ROOT / "tests" / "helpers" / "golden_run"


def measured(*files: Path, passed: bool) -> Certificate:
    """A certificate of these files."""
    stored = json.loads((GOLDEN / "gguf" / "parity.json").read_text(encoding="utf-8"))
    found = Certificate.from_json(stored)
    good: Comparison = found.files["f16"]
    return replace(
        found,
        files={
            file.stem: replace(good, passed=passed, broken_by="conversion", why="x", file=GgufFile(file.name, 1, "0"))
            for file in files
        },
    )


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with yesterday's file, and a model that is converted without being loaded."""
    import noesis.release.gguf.writer as writer

    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text("{}")
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "m.gguf").write_bytes(b"GGUF of yesterday")

    def write(model: Path, target: Path, kind: str, **_: Any) -> None:
        with new_file(target) as part:
            part.write_bytes(b"GGUF of today")

    monkeypatch.setattr(writer, "write_gguf", write)
    monkeypatch.setattr(convert, "load_tokenizer", lambda folder: None)
    monkeypatch.setattr(convert, "render", lambda *_, **__: "")
    return tmp_path


def convert_with(place: Path, monkeypatch: pytest.MonkeyPatch, certify: Any) -> None:
    import noesis.release.parity.certify as certifying

    def at_that_time(subject: Any, tokenizer: Any, _figures: Any) -> Certificate:
        assert (place / "out" / "m.gguf").read_bytes() == b"GGUF of yesterday"  # nothing has its name yet
        return certify(*subject.files.values())  # type: ignore[no-any-return]

    monkeypatch.setattr(certifying, "certify", at_that_time)
    convert.convert_folder(place / "model", place / "out" / "m.gguf", ("f16",))


def names(folder: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in folder.iterdir() if file.suffix == ".gguf"}


def test_a_file_that_passed_takes_the_place_of_the_earlier_one(place: Path, monkeypatch: pytest.MonkeyPatch):
    convert_with(place, monkeypatch, lambda *files: measured(*files, passed=True))
    assert names(place / "out") == {"m.gguf": b"GGUF of today"}
    assert sorted(file.name for file in (place / "out").iterdir()) == ["m.gguf", "m.parity.json"]


def test_a_file_that_failed_does_not(place: Path, monkeypatch: pytest.MonkeyPatch):
    with pytest.raises(ParityError):
        convert_with(place, monkeypatch, lambda *files: measured(*files, passed=False))
    assert names(place / "out") == {"m.gguf": b"GGUF of yesterday", "m.rejected.gguf": b"GGUF of today"}


@pytest.mark.parametrize(
    "how", [KeyboardInterrupt, MemoryError, OSError], ids=["an interruption", "too little memory", "a full disk"]
)
def test_what_breaks_while_it_is_certified_leaves_the_earlier_file_until_it_goes_on(
    place: Path, monkeypatch: pytest.MonkeyPatch, how: type[BaseException]
):
    def breaks(*files: Path) -> Certificate:
        raise how

    with pytest.raises(how):
        convert_with(place, monkeypatch, breaks)
    assert sorted(file.name for file in (place / "out").iterdir()) == [".m.unfinished", "m.gguf"]
    assert names(place / "out") == {"m.gguf": b"GGUF of yesterday"}
    convert_with(place, monkeypatch, lambda *files: measured(*files, passed=True))
    assert sorted(file.name for file in (place / "out").iterdir()) == ["m.gguf", "m.parity.json"]


@pytest.mark.skipif(os.name != "posix", reason="links need no privilege here")
@pytest.mark.parametrize("name", [".m.unfinished", ".m.gguf.part"])
def test_a_link_with_a_temporary_name_is_taken_away_not_filled(place: Path, monkeypatch: pytest.MonkeyPatch, name: str):
    (place / "home").mkdir()
    (place / "home" / "m.gguf").write_bytes(b"precious")
    (place / "out" / name).symlink_to(place / "home")
    convert_with(place, monkeypatch, lambda *files: measured(*files, passed=True))
    assert names(place / "home") == {"m.gguf": b"precious"}
    assert names(place / "out") == {"m.gguf": b"GGUF of today"}


def test_files_of_a_failed_merge_get_no_name_even_if_they_passed(tmp_path: Path):
    for folder in ("new", "gguf"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "a.gguf").write_text(folder)
    certificate = measured(tmp_path / "new" / "a.gguf", passed=True)
    assert certificate.merge is not None
    name_files(
        replace(certificate, merge=replace(certificate.merge, passed=False)), tmp_path / "new", tmp_path / "gguf"
    )
    assert (tmp_path / "gguf" / "a.gguf").read_text() == "gguf"
    assert (tmp_path / "gguf" / "a.rejected.gguf").read_text() == "new"


@pytest.mark.parametrize("new", [new_file, new_folder], ids=["a file", "a folder"])
def test_what_is_half_written_never_takes_the_place_of_what_was_there(tmp_path: Path, new: Any):
    target = tmp_path / "x"
    target.mkdir() if new is new_folder else target.write_text("old")
    with pytest.raises(RuntimeError), new(target) as part:
        (part / "y" if new is new_folder else part).write_text("half")
        raise RuntimeError
    assert [file.name for file in tmp_path.iterdir()] == ["x"]
    assert target.is_dir() or target.read_text() == "old"
