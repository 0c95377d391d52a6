"""The paths of a project folder."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from noesis.core.console import command
from noesis.core.errors import UsageError
from noesis.core.language import Language


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
    def lora_yaml(self) -> Path:
        return self.training / "lora_config.yaml"

    @property
    def training_yaml(self) -> Path:
        return self.training / "training_config.yaml"

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
        """The folders of hand-written examples in `language`."""
        folders = {"pt": ["philosophical"], "en": ["philosophical_en"], "both": ["philosophical", "philosophical_en"]}
        return [self.training / name for name in folders[language]]


def find_project(path: Path | None = None) -> Project:
    """The project at `path`, or the nearest one at or above the working directory.

    Raises:
        UsageError: there is none.
    """
    if path is not None:
        project = Project(path)
        if not project.training_yaml.is_file():
            raise UsageError(
                f"no project in {path}: {project.training_yaml} is missing; make one with  {command('init', path)}"
            )
        return project
    here = Path.cwd()
    for folder in (here, *here.parents):
        if Project(folder).training_yaml.is_file():
            return Project(folder)
    raise UsageError(
        f"no project at or above {here}: change to one, name one with --project DIR, "
        f"or make one with  {command('init', 'DIR')}"
    )
