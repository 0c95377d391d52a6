"""What `noesis verify` reads of a run, each part once, and what a check finds in it."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from noesis.constitution.document import Constitution, load_constitution
from noesis.core.config import Config
from noesis.core.device import Device
from noesis.core.i18n import _
from noesis.core.jsonl import MAX_RUN_FILE, read_json_file, read_objects
from noesis.core.project import Project
from noesis.dataset.load import read_run_copy
from noesis.dataset.schema import Dataset
from noesis.llm.embedded import Model
from noesis.pipeline.results import RunResults
from noesis.pipeline.session import RunSession
from noesis.release.provenance import read_provenance
from noesis.run.directory import Run


@dataclass(frozen=True)
class Finding:
    """One check.

    Attributes:
        what: was checked.
        wrong: what does not match; None where all does.
        unchecked: why the check could not be made, or not wholly; None where it was.
    """

    what: str
    wrong: str | None = None
    unchecked: str | None = None


class UncheckedError(Exception):
    """A check that can't be made here; the message says why."""


@dataclass(frozen=True)
class Evidence:
    """A run as it lies there.

    Attributes:
        project: whose suite, rubrics and calibrations a trial is derived from; None where there is none.
    """

    run: Run
    project: Project | None = None

    @cached_property
    def config(self) -> Config:
        return self.run.config()

    @cached_property
    def constitution(self) -> Constitution:
        return load_constitution(self.run.data / "constitution.yaml")

    @cached_property
    def dataset(self) -> Dataset:
        return read_run_copy(self.run.data, self.constitution)

    @cached_property
    def results(self) -> RunResults:
        return RunResults(self.run)

    @cached_property
    def session(self) -> RunSession:
        """The run's session without its model, for functions that derive from what the run says.

        Raises:
            UncheckedError: an early version made no plan, and so did not record how it computed.
        """
        if self.results.executed_plan is None:
            raise UncheckedError(_("an early version did not record how it computed"))
        said = self.run.manifest.base_file or {"licence": read_provenance(self.run.merged).licence}
        model = Model(self.config.training.model, Path(), self.run.identity.revision, **_known(said))
        return RunSession(
            self.run, self.config, self.constitution, model, Device("cpu", "none", 0, 1, bf16=False), self.dataset
        )

    def json_of(self, *parts: str) -> Any:
        """A JSON file of the run."""
        return read_json_file(self.run.path.joinpath(*parts), constants=False)

    def rows(self, *parts: str) -> list[dict[str, Any]]:
        """The objects of a JSONL file of the run."""
        return read_objects(self.run.path.joinpath(*parts), most=MAX_RUN_FILE)

    def differs(self, what: str) -> str:
        """`what` as something wrong, for figures that an early version derived in another way.

        The version's name in the manifest excuses nothing: it is as easily changed as the figures.

        Raises:
            UncheckedError: the run was made in an earlier format.
        """
        if self.run.manifest.is_early:
            raise UncheckedError(_("{what} by this version, but the run is of an early one", what=what))
        return what


def _known(said: Mapping[str, str]) -> dict[str, str]:
    return {key: said.get(key, "") for key in ("licence", "title", "lineage")}


def as_json(value: object) -> Any:
    """`value` as it is read back from JSON."""
    return json.loads(json.dumps(value))


_NUMBER = re.compile(r"-?\d+(?:\.\d+)?")


def alike(a: Any, b: Any, *, within: float = 2e-3) -> bool:
    """Whether two JSON values are the same but for rounding; numbers in texts are compared as numbers."""
    if isinstance(a, dict) and isinstance(b, dict):
        return a.keys() == b.keys() and all(alike(a[key], b[key], within=within) for key in a)
    if isinstance(a, list) and isinstance(b, list):
        return len(a) == len(b) and all(alike(x, y, within=within) for x, y in zip(a, b, strict=True))
    if isinstance(a, str) and isinstance(b, str) and a != b:
        numbers = [[float(n) for n in _NUMBER.findall(text)] for text in (a, b)]
        return _NUMBER.sub("#", a) == _NUMBER.sub("#", b) and alike(*numbers, within=within)
    if isinstance(a, float) and isinstance(b, (int, float)) and not isinstance(b, bool):
        return abs(a - b) <= within
    return bool(a == b)
