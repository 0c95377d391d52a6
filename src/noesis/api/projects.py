"""A project and its examples: `create_project`, `load_project`, `validate`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from noesis.constitution.document import load_constitution
from noesis.core.config import load_config
from noesis.core.i18n import spoken
from noesis.core.jsonl import jsonl_files
from noesis.core.project import Project, find_project
from noesis.dataset.checks.length import find_token_counter
from noesis.dataset.checks.validate import Report
from noesis.dataset.checks.validate import validate as check
from noesis.workspace.new_project import create_project as write_project
from noesis.workspace.own_project import Purpose


def create_project(
    folder: str | Path, *, domain: str | None = None, name: str | None = None, language: str | None = None
) -> Project:
    """A new project in an empty folder.

    >>> library = noesis.create_project("library", domain="the town library", language="en")
    >>> library.training_yaml.is_file()
    True

    Args:
        domain: what the assistant is for; constitution, examples, judges and questions are drafted for it, to be
            edited. Default: the philosopher that Noesis comes with, and three examples.
        name: of the assistant, with `domain`; default: the folder's.
        language: of the drafts and of the settings' comments, ISO 639-1; default: the one that is spoken.

    Raises:
        UsageError: the folder is not empty, or a name or language that can't be.
    """
    root, language = Path(folder), language or spoken()
    write_project(root, Purpose(name or root.resolve().name, domain, language) if domain else None, language)
    return Project(root)


def load_project(folder: str | Path | None = None) -> Project:
    """The project in `folder`; default: the one that NOESIS_PROJECT names, else the nearest at or above this folder.

    >>> project = noesis.load_project("my-philosopher")
    >>> project.constitution.name
    'constitution.yaml'

    Raises:
        UsageError: there is none.
    """
    return find_project(None if folder is None else Path(folder))


def validate(project: Project, paths: Sequence[str | Path] | None = None) -> Report:
    """Check examples: every line, then the set as a whole. Errors are what must not be trained on.

    >>> report = noesis.validate(project)
    >>> report.total("error"), len(report.table) == report.rows
    (0, True)
    >>> [str(problem) for problem in report.errors]
    []

    Args:
        paths: JSONL files or folders; default: the project's examples in each language of its constitution.

    Raises:
        UsageError: a path that does not exist, or no examples.
        ConfigError, ConstitutionError: the project's own files are wrong.
    """
    config, constitution = load_config(project), load_constitution(project.constitution)
    found = [Path(path) for path in paths or ()] or sources(project)
    counter = find_token_counter(config, constitution)
    return check(
        found or project.sources(config.training.data.language),
        constitution,
        config.training.data.categories,
        counter=counter,
    )


def sources(project: Project) -> list[Path]:
    """The folders that hold the project's examples, of each language of its constitution that has any."""
    languages = load_constitution(project.constitution).languages
    return [folder for language in languages for folder in project.sources(language) if jsonl_files(folder)]
