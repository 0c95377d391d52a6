"""The paths of a project folder, and the one way to find it: for the command line, Modal and Python alike."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from noesis.core.console import command
from noesis.core.errors import UsageError
from noesis.core.i18n import _
from noesis.core.language import ALL, CODES, Language

EXAMPLES = "examples"  # in data/training, a folder for each language
GUIDE_FOLDERS = {"pt": "philosophical", "en": "philosophical_en"}
NAMED = "NOESIS_PROJECT"  # environment variable: the project's folder


@dataclass(frozen=True)
class Project:
    """A folder with a constitution, two YAML files, examples and a Tribunal; `noesis init` makes one."""

    root: Path

    @property
    def data(self) -> Path:
        return self.root / "data"

    @property
    def training(self) -> Path:
        return self.data / "training"

    @property
    def exports(self) -> Path:
        return self.training / "exports"

    @property
    def constitution(self) -> Path:
        return self.data / "constitution.yaml"

    @property
    def prompt_lists(self) -> Path:
        """What prompts are built from: topics, situations, askers."""
        return self.data / "constitution_prompts.yaml"

    @property
    def lora_yaml(self) -> Path:
        return self.training / "lora_config.yaml"

    @property
    def training_yaml(self) -> Path:
        return self.training / "training_config.yaml"

    def schema(self, name: str) -> Path:
        """The JSON Schema of `<name>_config.yaml`, for editors."""
        return self.training / f"{name}_config.schema.json"

    @property
    def runs(self) -> Path:
        return self.root / "runs"

    @property
    def tribunal(self) -> Path:
        """Rubrics, suite and benchmark of the judges."""
        return self.data / "tribunal"

    @property
    def calibrations(self) -> Path:
        """Each judge's measured figures, one file per judge and rubrics."""
        return self.tribunal / "calibrations"

    def sources(self, language: Language) -> list[Path]:
        """The folders of hand-written examples in `language`; for `both`, of every language that has one.

        `examples/<code>`, unless there is a folder of the names that the first guide gave them.
        """
        if language == ALL:
            found = [folder for code in CODES for folder in self.sources(code) if folder.is_dir()]
            return found or self.sources("pt")
        guide = self.training / GUIDE_FOLDERS.get(language, "")
        own = self.training / EXAMPLES / language
        return [guide if language in GUIDE_FOLDERS and (guide.is_dir() or not own.is_dir()) else own]


def find_project(path: Path | None = None) -> Project:
    """The project at `path`, else where NOESIS_PROJECT says, else the nearest one at or above the working directory.

    Raises:
        UsageError: there is none.
    """
    if path is None and (named := os.environ.get(NAMED)):
        path = Path(named)
    if path is not None:
        project = Project(path)
        if not project.training_yaml.is_file():
            raise UsageError(
                _(
                    "no project in {path}: {training_yaml} is missing; make one with  {command}",
                    path=path,
                    training_yaml=project.training_yaml,
                    command=command("init", path),
                )
            )
        return project
    here = Path.cwd()
    if (found := _at_or_above(here)) is not None:
        return found
    raise UsageError(
        _(
            "no project at or above {here}: change to one, name one with --project DIR, or make one with  {command}",
            here=here,
            command=command("init", "DIR"),
        )
    )


def name_project_unless_here(folder: Path) -> None:
    """Let `folder` be this process's project, unless one is named or lies at or above the working directory."""
    if not os.environ.get(NAMED) and _at_or_above(Path.cwd()) is None:
        os.environ[NAMED] = str(folder)


def _at_or_above(here: Path) -> Project | None:
    return next((Project(f) for f in (here, *here.parents) if Project(f).training_yaml.is_file()), None)
