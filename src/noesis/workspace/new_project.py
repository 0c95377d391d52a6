"""`noesis init DIR`: a project of one's own, ready for `noesis demo --project DIR`. Copied from this checkout, so there is one original."""

from __future__ import annotations

import shutil
from pathlib import Path

from noesis.core.errors import UsageError
from noesis.core.files import write_text
from noesis.core.jsonl import iter_lines, parse_object
from noesis.core.project import Project

CHECKOUT = Project(Path(__file__).resolve().parents[3])
EXAMPLES = {
    "maieutica": "maieutica_001",
    "logical_argument": "logical_argument_001",
    "ethical_dilemma": "ethical_dilemma_001",
}


def create_project(folder: Path) -> list[Path]:
    """Write the files of a new project and return them.

    Raises:
        UsageError: the folder is not empty, or Noesis was not installed from a checkout.
    """
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UsageError(f"{folder} exists and is not empty: choose another folder")
    if not CHECKOUT.constitution.is_file():
        raise UsageError("the originals to copy are not here: install Noesis from a checkout (make setup)")
    project = Project(folder)
    written = []
    for source in (
        CHECKOUT.constitution,
        CHECKOUT.data / "constitution_prompts.yaml",
        CHECKOUT.lora_yaml,
        CHECKOUT.training_yaml,
    ):
        target = folder / source.relative_to(CHECKOUT.root)
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source, target)
        written.append(target)
    court = CHECKOUT.data / "tribunal"
    shutil.copytree(court, project.data / "tribunal")
    written.append(project.data / "tribunal")
    for language in ("pt", "en"):
        source_folder, target_folder = CHECKOUT.sources(language)[0], project.sources(language)[0]  # type: ignore[arg-type]
        lines = [_example(source_folder / f"{category}.jsonl", name) for category, name in EXAMPLES.items()]
        write_text(target_folder / "examples.jsonl", "".join(lines))
        written.append(target_folder / "examples.jsonl")
    return written


def _example(file: Path, name: str) -> str:
    for line in iter_lines(file):
        if parse_object(line.data)["id"] == name:
            return line.data.decode().rstrip("\n") + "\n"
    raise UsageError(f"{file} no longer holds {name}: the checkout is incomplete")
