"""What shells and editors need: completion, the manual page, the schema of the two YAML files."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from helpers.command import noesis
from helpers.project import ROOT
from noesis.core.config.schema import MODELS, json_schema
from noesis.core.project import Project

START = "import sys; sys.argv[0] = 'noesis'; from noesis.cli import main; main()"


@pytest.mark.parametrize(
    ("line", "offered"), [("noesis cl", "cloud"), ("noesis data va", "validate"), ("noesis plan --gp", "--gpu")]
)
def test_a_shell_is_told_what_can_follow(line: str, offered: str):
    asked = {"_NOESIS_COMPLETE": "complete_bash", "COMP_WORDS": line, "COMP_CWORD": str(len(line.split()) - 1)}
    done = subprocess.run([sys.executable, "-c", START], env=os.environ | asked, capture_output=True, text=True)
    assert done.returncode == 0 and offered in done.stdout.split()


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_the_script_of_each_shell_asks_for_completions(shell: str, tmp_path: Path):
    done = noesis("completion", shell)
    assert done.returncode == 0 and "_NOESIS_COMPLETE=complete_" + shell in done.stdout
    if (program := shutil.which(shell)) is not None and shell != "zsh":  # zsh needs compinit
        file = tmp_path / "script"
        file.write_text(done.stdout, encoding="utf-8")
        assert subprocess.run([program, file], capture_output=True).returncode == 0


@pytest.mark.parametrize("name", list(MODELS))
def test_the_schema_beside_each_file_is_the_models(name: str):
    project = Project(ROOT)
    schema = json.loads(project.schema(name).read_text(encoding="utf-8"))
    assert schema == json.loads(json.dumps(json_schema(name))), "run  make docs"
    file = project.training / f"{name}_config.yaml"
    first = file.read_text(encoding="utf-8").split("\n", 1)[0]
    assert first == f"# yaml-language-server: $schema={project.schema(name).name}"
    assert schema["additionalProperties"] is False and "description" in schema


def test_help_shows_arguments_and_ranges_plainly():
    text = (ROOT / "docs" / "cli.md").read_text(encoding="utf-8")
    assert re.findall(r"<(?:path|int|float|str|list)[^>]*>|\bINTEGER\b|\bTEXT RANGE\b|x[<>]=\d", text) == []


def test_the_manual_page_is_roff_without_warnings():
    if shutil.which("groff") is None:
        pytest.skip("no groff here")
    done = subprocess.run(
        ["groff", "-man", "-Tutf8", "-ww", ROOT / "docs" / "noesis.1"], capture_output=True, text=True
    )
    assert done.returncode == 0 and done.stderr == "" and "NOESIS_PROJECT" in re.sub(r".\x08", "", done.stdout)
