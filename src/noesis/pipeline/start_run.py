"""A run with what its stages share: opened for given settings and data, or found again from what lies in its directory."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

from noesis.constitution.document import load_constitution
from noesis.core.config import Config
from noesis.core.console import say
from noesis.core.device import detect
from noesis.core.files import write_json, write_jsonl
from noesis.core.project import Project
from noesis.dataset.auxiliary import PAIRS_FILE, REPLAY_FILE
from noesis.dataset.checks.length import counter_of
from noesis.dataset.load import for_run, read_exports, split_sources
from noesis.dataset.schema import Dataset
from noesis.dataset.statistics import describe
from noesis.llm.hub import find_model
from noesis.pipeline.resume_fork import adopt, parent_of
from noesis.pipeline.resume_fork import resume as resume_run
from noesis.pipeline.session import RunSession
from noesis.run.directory import open_run


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
        resume: refuse if another run lies there, instead of archiving it; more epochs are added to it.
        fork: begin with the adapter of this run.
    """
    constitution = load_constitution(project.constitution)
    model = find_model(config.training.model, config.training.revision)
    dataset = for_run(dataset, project, config)
    identity = {
        "config_sha256": config.digest(),
        "dataset_sha256": dataset.digest(),
        "constitution_sha256": constitution.digest(),
        "base_model": config.training.model,
        "revision": model.revision,
    }
    parent = parent_of(fork, path) if fork else None
    if parent:
        identity["parent_sha256"] = parent["adapter_sha256"]
    if resume:
        resume_run(path, identity, config)
    run = open_run(path, identity, config, fresh=fresh, archive_to=archive_to)
    if parent and fork:
        adopt(run, fork, parent)
    if run.config() != config:  # what does not decide the adapter, such as the budget, holds as asked for last
        write_json(run.path / "config.json", config.model_dump(mode="json"))

    session = RunSession(run, config, constitution, model, detect(), dataset)

    def work() -> dict[str, Any]:
        for name, rows in (
            ("train.jsonl", dataset.train),
            ("eval.jsonl", dataset.held_out),
            (PAIRS_FILE, dataset.pairs),
            (REPLAY_FILE, dataset.replay),
        ):
            if rows is not None:
                write_jsonl(run.data / name, [row.to_json() for row in rows])
        shutil.copyfile(project.constitution, run.data / "constitution.yaml")
        counter = counter_of(session.encoder, config, constitution)
        statistics = describe(dataset, run.data, constitution, config, counter).to_json()
        write_json(run.data / "statistics.json", statistics)
        return statistics

    statistics = run.perform("export", work, lambda: sorted(run.data.iterdir()))
    say(f"  {statistics['train']['examples']} to train on, {statistics['eval']['examples']} held out → {run.data}")
    return session
