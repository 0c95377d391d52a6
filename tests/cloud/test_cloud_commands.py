"""Commands that messages, pages and examples print are safe to paste; those of a run's summary are typed in test_modal_guide.py."""

from __future__ import annotations

import re

import pytest

from helpers.project import ROOT
from noesis.cloud.volume.layout import get_command

PRINTED = [
    *(ROOT / "src").rglob("*.py"),
    *ROOT.glob("*.md"),
    *(ROOT / "docs").glob("*.md"),
    *(ROOT / "examples").iterdir(),
    *(ROOT / "scripts").glob("*.py"),
]


def test_a_folder_is_made_before_files_are_fetched_into_it() -> None:
    assert get_command("a b", "/merged/m", "model_output") == (
        "mkdir -p model_output && modal volume get 'a b' /merged/m ./model_output"
    )


@pytest.mark.parametrize("folder", ["model_output", "noesis_model"])
def test_the_folders_that_the_first_guide_fetches_into_are_shipped(folder: str) -> None:
    """`modal volume get … ./model_output` as that guide has it makes one file of all where there is no folder."""
    assert (ROOT / folder / ".gitkeep").is_file()


def test_no_command_that_fetches_stands_without_its_folder() -> None:
    lines = [line for file in PRINTED if file.is_file() for line in file.read_text(encoding="utf-8").splitlines()]
    found = [(line, match.start()) for line in lines for match in re.finditer(r"modal volume get [^`]", line)]
    assert len(found) >= 3
    assert [line for line, start in found if "mkdir -p " not in line[:start]] == []
