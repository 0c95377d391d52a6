"""A run opened for given settings and data: `noesis train`, `noesis demo` and Modal's training start here."""

from __future__ import annotations

from pathlib import Path

from noesis.constitution.document import Constitution, load_constitution
from noesis.core.config import Config
from noesis.core.device import detect
from noesis.core.errors import UsageError
from noesis.core.project import Project
from noesis.dataset.load import for_run, read_exports, split_sources
from noesis.dataset.schema import Dataset
from noesis.llm.hub import find_base
from noesis.pipeline.resume_fork import adopt, parent_of
from noesis.pipeline.resume_fork import resume as resume_run
from noesis.pipeline.session import RunSession
from noesis.pipeline.stages.export import ExportSource, run_export
from noesis.run.directory import load_run, open_run
from noesis.run.manifest import Identity


def from_sources(project: Project, config: Config) -> Dataset:
    """Validate the hand-written examples and split them."""
    return split_sources(
        project.sources(config.training.data.language), load_constitution(project.constitution), config
    )


def from_exports(folder: Path, project: Project) -> Dataset:
    """Read files that were exported before."""
    return read_exports(folder, load_constitution(project.constitution))


def start_run(
    project: Project,
    config: Config,
    path: Path,
    dataset: Dataset,
    *,
    fresh: bool = False,
    archive_to: Path | None = None,
    resume: bool = False,
    fork: Path | None = None,
) -> RunSession:
    """Open the run at `path` for these settings and data; its copy of data and constitution is written if it is new.

    Args:
        dataset: as validated; the run takes the part that the configuration asks for.
        fresh: archive the run at `path` even if it is this one.
        archive_to: where another run at `path` is moved.
        resume: refuse if another run lies there, instead of archiving it; more epochs are added to it.
        fork: start with the adapter of this run.

    Raises:
        UsageError: nothing to resume, or a fork into the parent's own directory.
        RunError: the run at `path` can't continue with these settings.
    """
    constitution = load_constitution(project.constitution)
    model = find_base(config.training.model, config.training.revision)
    dataset = for_run(dataset, project, config)
    parent = parent_of(fork, path) if fork else None
    identity = _identity(config, dataset, constitution, model.revision, parent.adapter_sha256 if parent else None)
    if resume:
        resume_run(path, identity, config)
    run = open_run(path, identity, config, fresh=fresh, archive_to=archive_to, base_file=model.said)
    if parent and fork:
        adopt(run, fork, parent)
    run.record_settings(config)  # those that do not decide the adapter, such as the budget: the latest ones hold
    s = RunSession(run, config, constitution, model, detect(), dataset)
    run_export(s, ExportSource(dataset, project.constitution))
    return s


def would_continue(project: Project, config: Config, path: Path, dataset: Dataset) -> bool:
    """Whether `start_run` would go on with the run at `path`, rather than archive what is there; nothing is changed."""
    try:
        old = load_run(path).manifest
    except UsageError:
        return False  # there is no run
    model = find_base(config.training.model, config.training.revision)
    constitution = load_constitution(project.constitution)
    identity = _identity(config, for_run(dataset, project, config), constitution, model.revision)
    return old.identity == identity and not old.library_differences()


def _identity(
    config: Config, dataset: Dataset, constitution: Constitution, revision: str, parent: str | None = None
) -> Identity:
    return Identity(
        config_sha256=config.digest(),
        dataset_sha256=dataset.digest(),
        constitution_sha256=constitution.digest(),
        base_model=config.training.model,
        revision=revision,
        parent_sha256=parent,
    )
