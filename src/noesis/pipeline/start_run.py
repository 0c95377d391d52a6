"""A run opened for given settings and data: `noesis train`, `noesis demo` and Modal's training start here."""

from __future__ import annotations

import hashlib
from pathlib import Path

from noesis.constitution.document import load_constitution
from noesis.core.config import Config
from noesis.core.device import detect
from noesis.core.files import write_json
from noesis.core.project import Project
from noesis.dataset.auxiliary import data_hash, load_auxiliary
from noesis.dataset.load import read_exports, split_sources
from noesis.llm.hub import find_model
from noesis.pipeline.resume_fork import adopt, parent_of
from noesis.pipeline.resume_fork import resume as resume_run
from noesis.pipeline.session import Records, RunSession
from noesis.pipeline.stages.export import ExportSource, run_export
from noesis.run.directory import open_run
from noesis.run.manifest import Identity


def from_sources(project: Project, config: Config) -> tuple[Records, Records]:
    """Validate the hand-written examples and split them (train, held out)."""
    return split_sources(
        project.sources(config.training.data.language), load_constitution(project.constitution), config
    )


def from_exports(folder: Path, project: Project) -> tuple[Records, Records]:
    """Read files that were exported before (train, held out)."""
    return read_exports(folder, load_constitution(project.constitution))


def start_run(
    project: Project,
    config: Config,
    path: Path,
    data: tuple[Records, Records],
    *,
    fresh: bool = False,
    archive_to: Path | None = None,
    resume: bool = False,
    fork: Path | None = None,
) -> RunSession:
    """Open the run at `path` for these settings and data; its copy of data and constitution is written if it is new.

    Args:
        data: examples to train on, and held out.
        fresh: archive the run at `path` even if it is this one.
        archive_to: where another run at `path` is moved.
        resume: refuse if another run lies there, instead of archiving it; more epochs are added to it.
        fork: start with the adapter of this run.

    Raises:
        UsageError: nothing to resume, or a fork into the parent's own directory.
        RunError: the run at `path` can't continue with these settings.
    """
    constitution = load_constitution(project.constitution)
    model = find_model(config.training.model, config.training.revision)
    train, held_out = subset(data[0], config), data[1]
    auxiliary = load_auxiliary(project, config, train, held_out)
    parent = parent_of(fork, path) if fork else None
    identity = Identity(
        config_sha256=config.digest(),
        dataset_sha256=data_hash(train, held_out, auxiliary),
        constitution_sha256=constitution.digest(),
        base_model=config.training.model,
        revision=model.revision,
        parent_sha256=parent.adapter_sha256 if parent else None,
    )
    if resume:
        resume_run(path, identity, config)
    run = open_run(path, identity, config, fresh=fresh, archive_to=archive_to)
    if parent and fork:
        adopt(run, fork, parent)
    if run.config() != config:  # settings that do not decide the adapter, such as the budget: the latest ones hold
        write_json(run.path / "config.json", config.model_dump(mode="json"))
    s = RunSession(run, config, constitution, model, detect())
    run_export(s, ExportSource(train, held_out, auxiliary, project.constitution))
    return s


def subset(train: Records, config: Config) -> Records:
    """The examples that `max_examples` leaves: the same ones for the same seed."""
    if config.max_examples is None:
        return train
    return sorted(train, key=lambda r: hashlib.sha256(f"{config.training.seed}:{r['id']}".encode()).hexdigest())[
        : config.max_examples
    ]
