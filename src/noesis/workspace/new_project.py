"""`noesis init DIR`: a new project, ready for `noesis demo --project DIR`, copied from the files of this checkout."""

from __future__ import annotations

from pathlib import Path

from noesis.core.errors import UsageError
from noesis.core.files import copy_file, copy_folder, write_text
from noesis.core.jsonl import iter_lines, parse_object
from noesis.core.language import Language
from noesis.core.project import Project

CHECKOUT = Project(Path(__file__).resolve().parents[3])
LANGUAGES: tuple[Language, ...] = ("pt", "en")
EXAMPLES = {  # category: id
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
        raise UsageError("there are no files to copy: install Noesis from a checkout of its repository (make setup)")
    project = Project(folder)
    return [*_copy_settings(project), _copy_tribunal(project), *_copy_examples(project)]


def _copy_settings(project: Project) -> list[Path]:
    sources = (
        CHECKOUT.constitution,
        CHECKOUT.data / "constitution_prompts.yaml",
        CHECKOUT.lora_yaml,
        CHECKOUT.training_yaml,
    )
    written = []
    for source in sources:
        target = project.root / source.relative_to(CHECKOUT.root)
        copy_file(source, target)
        written.append(target)
    return written


def _copy_tribunal(project: Project) -> Path:
    copy_folder(CHECKOUT.tribunal, project.tribunal)
    return project.tribunal


def _copy_examples(project: Project) -> list[Path]:
    written = []
    for language in LANGUAGES:
        source, target = CHECKOUT.sources(language)[0], project.sources(language)[0] / "examples.jsonl"
        write_text(target, "".join(_example(source / f"{category}.jsonl", name) for category, name in EXAMPLES.items()))
        written.append(target)
    return written


def _example(file: Path, name: str) -> str:
    for line in iter_lines(file):
        if parse_object(line.data)["id"] == name:
            return line.data.decode().rstrip("\n") + "\n"
    raise UsageError(f"{file} no longer holds {name}: the checkout is incomplete")
