"""Commands that are printed can be pasted, whatever the names in them: one function quotes them all."""

from __future__ import annotations

import ast
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from unittest import mock

import pytest
from hypothesis import given
from hypothesis import strategies as st

from helpers.project import ROOT
from noesis.cli import app, run_command
from noesis.cloud.volume.uploaded_data import put_command
from noesis.core.console import command, printable, shell_command, shell_word
from noesis.core.errors import RunError
from noesis.run.directory import load_run
from noesis.serving.connect import Endpoint, instructions

NAMES = [
    "a b", "it's", 'say "x"', "$HOME", "`id`", "$(id)", "a;b", "a&b", "a|b", "a>b", "a#b", "#a", "a%b", "!x", "*", "~",
    "ação", "名前", "👩‍👩‍👧", "a\nb", "a\tb", "\x1b[2J", "\u202ex", "a\\b", "\\", "'", "a\x9bb", "", "{a,b}", "a=b", "\udcff",
]  # fmt: skip


def pasted(line: str) -> list[str]:
    """The words that bash takes from a line."""
    done = subprocess.run(
        ["bash", "-c", f"printf '%s\\0' {line}"], capture_output=True, env={"LC_ALL": "C.UTF-8", "HOME": "/h"}
    )
    assert done.returncode == 0, done.stderr
    return [os.fsdecode(word) for word in done.stdout.split(b"\0")[:-1]]


def test_every_name_is_pasted_as_it_is():
    assert pasted(shell_command(*NAMES)) == NAMES


@pytest.mark.parametrize("name", NAMES)
def test_what_is_shown_is_what_is_pasted(name: str):
    shown = shell_word(name)
    assert printable(shown) == shown
    assert "\n" not in shown


@given(st.text(st.characters(exclude_characters="\0", exclude_categories=("Cs",))))
def test_a_word_stays_one_line_and_printable(name: str):
    assert shell_word(name).isprintable()


def test_a_path_is_no_option(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    assert command("chat", tmp_path / "-rf").endswith(" chat ./-rf")
    assert command("chat", Path("-rf")).endswith(" chat ./-rf")
    assert command("judge", "--judge", "x y").endswith(" judge --judge 'x y'")


@pytest.mark.parametrize("folder", ["a b", "it's", "$x", "ação"])
def test_the_program_itself_is_quoted(folder: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(sys, "argv", ["/x/noesis/__main__.py"])
    monkeypatch.setattr(sys, "executable", str(tmp_path / folder / "bin" / "python"))
    assert pasted(command("doctor")) == [str(tmp_path / folder / "bin" / "python"), "-m", "noesis", "doctor"]


def test_other_programs_commands_are_quoted():
    assert pasted(put_command("my volume")) == [
        "modal",
        "volume",
        "put",
        "my volume",
        "data/training/exports",
        "/dataset",
    ]


@pytest.mark.parametrize("target", ["env", "docker"])
def test_what_connect_prints_holds_names_as_words(target: str):
    text = instructions(target, Endpoint("http://127.0.0.1:1/v1", "a model's $(id) \x1b[2J", "k'ey"))
    assert shell_word("a model's $(id) \x1b[2J") in text
    assert printable(text) == text


# --- in all of the code


def commands() -> set[str]:
    return {c.name for c in app.registered_commands if c.name} | {
        (c.callback.__name__ if c.callback else "").replace("_", "-")
        for group in [app, *(g.typer_instance for g in app.registered_groups if g.typer_instance)]
        for c in group.registered_commands
    } | {g.name for g in app.registered_groups if g.name}  # fmt: skip


def documentation(tree: ast.Module) -> set[ast.AST]:
    """Docstrings, and the help of options, which name commands as the documents do."""
    found: set[ast.AST] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
            found.add(node.value)
        if isinstance(node, ast.keyword) and node.arg == "help":
            found.update(ast.walk(node.value))
    return found


RECORDS = {f"noesis tribunal {name}" for name in ("calibrate", "train-judge", "weigh")}  # of what made a file


def test_no_message_spells_out_a_command_of_noesis():
    """On machines where `noesis` is not on PATH it could not be pasted; `command` knows how the program was started."""
    names = commands()
    assert {"data", "clean", "gguf", "status"} <= names
    pattern = re.compile(rf"(?<!by )\bnoesis ({'|'.join(sorted(filter(None, names)))})\b")
    found = []
    for file in (ROOT / "src").rglob("*.py"):
        if file.parent.name == "reference":  # of the manual page
            continue
        tree = ast.parse(file.read_text(encoding="utf-8"))
        texts = documentation(tree)
        found += [
            f"{file.relative_to(ROOT)}:{node.lineno}: {node.value}"
            for node in ast.walk(tree)
            if isinstance(node, ast.Constant) and isinstance(node.value, str) and node not in texts
            if pattern.search(node.value) and node.value not in RECORDS
        ]
    assert found == []


def test_nothing_quotes_words_by_itself():
    found = [str(f.relative_to(ROOT)) for f in (ROOT / "src").rglob("*.py") if "shlex" in f.read_text(encoding="utf-8")]
    assert found == ["src/noesis/core/console.py"]


def test_a_command_is_printed_where_the_working_directory_is_gone(tmp_path: Path):
    with mock.patch.object(Path, "cwd", side_effect=FileNotFoundError):
        assert command("chat", Path("x")).endswith(" chat x")


def test_a_run_whose_files_are_missing_is_shown_and_its_remedy_is_not_to_train_first(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    """`status` shows and ends with 0, `verify` checks and ends with 1 (docs/decisions/0036-exit-codes.md)."""
    run = tmp_path / "a run"
    shutil.copytree(ROOT / "tests" / "helpers" / "golden_run", run)  # without adapters and models
    assert run_command(["status", str(run)]) == 0
    assert f"{command('verify', run)}  checks it all" in capsys.readouterr().out
    assert run_command(["verify", str(run)]) == 1
    with pytest.raises(RunError, match="are missing: restore them from a copy"):
        load_run(run).adapter()
