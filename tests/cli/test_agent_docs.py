"""`noesis agent-docs` and llms.txt: what stands in them can be typed and found."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import typer.main

from helpers.command import noesis
from helpers.project import ROOT
from noesis.cli import app
from noesis.cli.reference.agents import TEMPLATE
from noesis.cli.reference.commands import commands

RECIPES = re.findall(r"^([^\n`]*)\n\n```bash\n(.*?)```", TEMPLATE.read_text(encoding="utf-8"), re.M | re.S)


def test_it_is_printed_and_says_every_command():
    said = noesis("agent-docs").stdout
    assert said.strip() == (ROOT / "docs" / "agents.md").read_text(encoding="utf-8").strip()
    for command in commands(typer.main.get_command(app)):
        assert command.group or f"**`{command.name}`**" in said
    assert "<!--" not in said


def parse(line: str) -> None:
    """Let the program's own parser read a line. Raises: its error, where the line can't be typed."""
    command: Any = typer.main.get_command(app)
    words, context = shlex.split(line)[1:], None
    while hasattr(command, "commands"):
        context = command.make_context("noesis", [], parent=context, resilient_parsing=True)
        command, words = command.commands[words[0]], words[1:]
    command.make_context(command.name, words, parent=context)


def test_every_recipe_and_example_is_a_command_of_today():
    examples = [
        example for command in commands(typer.main.get_command(app)) for example in command.example.split(" · ")
    ]
    typed = [part.strip() for _, code in RECIPES for line in code.splitlines() for part in line.split("|")]
    lines = [re.split(r" (?:>>?) ", line)[0] for line in (*examples, *typed) if line.startswith("noesis ")]
    assert len(lines) > 60
    for line in lines:
        parse(line)
    with pytest.raises(Exception, match="No such option"):
        parse("noesis data validate --jsno -")


@pytest.mark.slow
def test_the_recipes_that_take_seconds_do_what_they_say(tmp_path: Path):
    folder = tmp_path
    for title, code in RECIPES:
        if "(seconds)" not in title:
            continue
        for line in code.splitlines():
            words = shlex.split(line)
            if words[0] == "cd":
                folder = folder / words[1]
                continue
            done = noesis(*words[1:], cwd=folder)
            assert done.returncode == 0, f"{line}: {done.stderr}"
    assert (folder / "data" / "training" / "exports" / "train.jsonl").is_file()
    assert (folder / "library" / "README.md").is_file()


def test_llms_txt_is_that_of_today_and_leads_to_documents():
    done = subprocess.run([sys.executable, ROOT / "docs" / "make_llms.py", "--check"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    links = re.findall(r"\]\(([^)]+)\)", (ROOT / "llms.txt").read_text(encoding="utf-8"))
    assert len(links) > 12 and all((ROOT / link).is_file() for link in links)
