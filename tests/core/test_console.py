"""Commands that messages print: the program's name, quoted paths, and that they work where they are read."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from helpers.project import ROOT
from noesis.core import console
from noesis.core.console import command


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory with a space in its name."""
    found = tmp_path / "my work"
    found.mkdir()
    monkeypatch.chdir(found)
    return found


def test_paths_are_relative_to_the_working_directory_and_quoted(folder: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(sys, "argv", ["noesis"])
    assert command("chat", folder / "runs" / "demo") == "noesis chat runs/demo"
    assert command("chat", Path("my runs/demo")) == "noesis chat 'my runs/demo'"
    outside = folder.parent / "other runs"
    assert shlex.split(command("gguf", outside, "--again")) == ["noesis", "gguf", str(outside), "--again"]


@pytest.mark.parametrize(
    ("started", "python", "program"),
    [
        ("/env/lib/noesis/__main__.py", "/env/bin/python", "python -m noesis"),
        ("/env/lib/noesis/__main__.py", "/elsewhere/python", f"{shlex.quote(sys.executable)} -m noesis"),
        ("/env/bin/noesis", "/env/bin/python", "noesis"),
        ("scripts/export_for_modal.py", "/env/bin/python", "noesis"),
    ],
)
def test_the_program_is_named_as_it_was_started(
    started: str, python: str, program: str, folder: Path, monkeypatch: pytest.MonkeyPatch
):
    if python == "/env/bin/python":
        monkeypatch.setattr(sys, "executable", python)
    monkeypatch.setattr(sys, "argv", [started])
    monkeypatch.setattr(console.shutil, "which", lambda name: python)
    assert command("doctor") == f"{program} doctor"


def test_a_program_that_is_not_on_path_is_named_by_its_path(folder: Path, monkeypatch: pytest.MonkeyPatch):
    (folder / ".venv" / "bin").mkdir(parents=True)
    (folder / ".venv" / "bin" / "noesis").touch()
    monkeypatch.setattr(sys, "argv", [".venv/bin/noesis"])
    monkeypatch.setattr(console.shutil, "which", lambda name: None)
    assert command("chat", Path("my run")) == ".venv/bin/noesis chat 'my run'"


def test_a_command_printed_in_a_folder_with_a_space_can_be_pasted(folder: Path):
    """`noesis init` prints the command for the new project; it names the folder, and it runs."""
    made = subprocess.run(
        [sys.executable, "-m", "noesis", "init", "my philosopher"], capture_output=True, text=True, check=True
    )
    printed = next(line for line in made.stdout.splitlines() if "demo --project" in line)
    words = shlex.split(re.split(r":  ", printed)[-1])
    assert words[1:4] == ["-m", "noesis", "demo"]
    assert Path(words[-1]).is_dir()
    done = subprocess.run([*words[:3], "data", "validate", "--project", words[-1]], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_no_message_writes_a_path_into_a_command_by_hand():
    """An f-string with `noesis …` and a value behind it would name the wrong program, and leave the path unquoted."""
    by_hand = re.compile(r"""f"[^"]*\bnoesis [a-z]+(?:[^" ]| (?! ))*?\{""")  # two spaces end a command
    found = [
        f"{file.relative_to(ROOT)}: {line.strip()}"
        for file in sorted((ROOT / "src").rglob("*.py"))
        for line in file.read_text(encoding="utf-8").splitlines()
        if by_hand.search(line) and "command(" not in line
    ]
    assert found == []
