"""A new project's settings are commented in its language; without --language that is the one that is spoken."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from helpers.command import noesis
from helpers.project import ROOT
from noesis.constitution.document import load_constitution
from noesis.core.project import Project
from noesis.core.yaml_file import read_yaml
from noesis.workspace.comments import COMMENT, comments

PROJECT = Project(ROOT)
SPEAKS = {code: {"NOESIS_LANG": code} for code in ("pt", "en")}
SAME = {"noesis demo --quick"}  # in both languages
DOMAIN = ("--domain", "a biblioteca pública de Olinda")


def project(folder: Path, *words: str, spoken: str) -> Project:
    done = noesis("init", folder, *words, env=SPEAKS[spoken])
    assert done.returncode == 0, done.stderr
    return Project(folder)


def pairs(made: Project, english: Project) -> list[tuple[str, str]]:
    """The settings files of both as texts."""
    return [
        (a.read_text(encoding="utf-8"), b.read_text(encoding="utf-8"))
        for a, b in ((made.lora_yaml, english.lora_yaml), (made.training_yaml, english.training_yaml))
    ]


@pytest.mark.parametrize("words", [(), (*DOMAIN, "--name", "Olinda")])
def test_every_comment_of_a_portuguese_project_is_portuguese_and_nothing_else_changes(
    tmp_path: Path, words: tuple[str, ...]
):
    made = project(tmp_path / "pt", *words, "--language", "pt", spoken="en")
    english = project(tmp_path / "en", *words, "--language", "en", spoken="en")
    for text, before in pairs(made, english):
        assert len(comments(text)) == before.count("# ") - 1 > 0  # all but the line that editors read
        assert set(comments(text)) & set(comments(before)) <= SAME
        if not words:
            assert COMMENT.sub("#", text) == COMMENT.sub("#", before)
    for its, said in ((made, "Depois, `noesis demo --quick`"), (english, "Then `noesis demo --quick`")):
        readme = (its.root / "README.md").read_text(encoding="utf-8")
        assert said in readme
        for name in re.findall(r"`(data/[^`]+)`", readme):  # what it says to change is there
            assert (its.root / name).exists(), name
    assert read_yaml(made.lora_yaml) == read_yaml(english.lora_yaml)
    settings, expected = read_yaml(made.training_yaml), read_yaml(english.training_yaml)
    if words:
        assert (settings["data"].pop("language"), expected["data"].pop("language")) == ("pt", "en")
        assert len(settings["data"].pop("categories")) == len(expected["data"].pop("categories"))
    assert settings == expected


def test_an_english_project_has_the_files_as_they_are(tmp_path: Path):
    made = project(tmp_path / "en", spoken="en")
    for copy, file in ((made.lora_yaml, PROJECT.lora_yaml), (made.training_yaml, PROJECT.training_yaml)):
        assert copy.read_bytes() == file.read_bytes()
    spanish = project(tmp_path / "es", *DOMAIN, "--language", "es", spoken="pt")
    assert spanish.lora_yaml.read_bytes() == PROJECT.lora_yaml.read_bytes()


@pytest.mark.parametrize("spoken", ["pt", "en"])
def test_a_project_speaks_what_is_spoken(tmp_path: Path, spoken: str):
    made = project(tmp_path / "library", *DOMAIN, spoken=spoken)
    assert load_constitution(made.constitution).languages == (spoken,)
    philosopher = project(tmp_path / "philosopher", spoken=spoken)
    assert made.lora_yaml.read_bytes() == philosopher.lora_yaml.read_bytes()
    assert (made.lora_yaml.read_bytes() == PROJECT.lora_yaml.read_bytes()) is (spoken == "en")
