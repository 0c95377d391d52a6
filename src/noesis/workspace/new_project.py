"""`noesis init DIR`: a new project, ready for `noesis demo`, copied from the files that Noesis comes with."""

from __future__ import annotations

from pathlib import Path

from noesis.core.config.schema import write_schemas
from noesis.core.errors import UsageError
from noesis.core.files import copy_file, copy_folder, write_text
from noesis.core.i18n import _, spoken
from noesis.core.jsonl import iter_lines, parse_object
from noesis.core.language import Language
from noesis.core.machine.package_files import package_files
from noesis.core.project import Project
from noesis.workspace.comments import commented
from noesis.workspace.own_project import Purpose, require_language, write_own_project
from noesis.workspace.starter import filled, read_starter

LANGUAGES: tuple[Language, ...] = ("pt", "en")
EXAMPLES = {  # category: id
    "maieutica": "maieutica_001",
    "logical_argument": "logical_argument_001",
    "ethical_dilemma": "ethical_dilemma_001",
}


def create_project(folder: Path, purpose: Purpose | None = None, language: str | None = None) -> list[Path]:
    """Write the files of a new project and return them.

    Args:
        purpose: what it is for; None: Noesis's own constitution and three of its examples, to begin with.
        language: of README and comments without a purpose, which has its own; default: the one that is spoken.

    Raises:
        UsageError: the folder is not empty, the language is none, or the installation is incomplete.
    """
    language = language or spoken()
    require_language(language)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UsageError(_("{folder} exists and is not empty: choose another folder", folder=folder))
    project, starter = Project(folder), Project(package_files())
    if purpose is not None:
        return write_own_project(project, purpose)
    return [
        _write_readme(project, language),
        *_copy_settings(starter, project, language),
        *write_schemas(project),
        _copy_tribunal(starter, project),
        *_copy_examples(starter, project),
    ]


def _write_readme(project: Project, language: str) -> Path:
    """What to change first."""
    file, code = project.root / "README.md", "en" if language == "en" else "pt"
    examples = project.sources(code)[0] / "examples.jsonl"
    words = {"name": file.parent.resolve().name, "examples": examples.relative_to(project.root).as_posix()}
    write_text(file, filled(read_starter(language).philosopher, words))
    return file


def _copy_settings(starter: Project, project: Project, language: str) -> list[Path]:
    for source, target in (
        (starter.constitution, project.constitution),
        (starter.prompt_lists, project.prompt_lists),
    ):
        copy_file(source, target)
    for source, target in ((starter.lora_yaml, project.lora_yaml), (starter.training_yaml, project.training_yaml)):
        write_text(target, commented(source.read_text(encoding="utf-8"), language))
    return [project.constitution, project.prompt_lists, project.lora_yaml, project.training_yaml]


def _copy_tribunal(starter: Project, project: Project) -> Path:
    copy_folder(starter.tribunal, project.tribunal)
    return project.tribunal


def _copy_examples(starter: Project, project: Project) -> list[Path]:
    written = []
    for language in LANGUAGES:
        source, target = starter.sources(language)[0], project.sources(language)[0] / "examples.jsonl"
        write_text(target, "".join(_example(source / f"{category}.jsonl", name) for category, name in EXAMPLES.items()))
        written.append(target)
    return written


def _example(file: Path, name: str) -> str:
    for line in iter_lines(file):
        if parse_object(line.data)["id"] == name:
            return line.data.decode().rstrip("\n") + "\n"
    raise UsageError(_("{file} no longer holds {name}: the installation is incomplete", file=file, name=name))
