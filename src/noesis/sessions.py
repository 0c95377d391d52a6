"""A run with what its stages share: opened for given settings and data, or found again from what lies in its directory."""

from __future__ import annotations

import hashlib
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from noesis.config import Config, Project
from noesis.console import say
from noesis.constitution.document import Constitution, load_constitution
from noesis.data.load import read_examples, read_exports, split_sources
from noesis.data.preferences import besides, data_hash, stored
from noesis.data.statistics import describe
from noesis.device import Device, detect
from noesis.files import write_json, write_jsonl
from noesis.lineage import adopt, parent_of
from noesis.lineage import resume as resume_run
from noesis.models import Model, find_model
from noesis.run import Run, load_run, open_run
from noesis.train.budget import Budget, budget_of
from noesis.train.phases import Material, material_of
from noesis.train.plan import as_planned, compute_dtype
from noesis.train.quote import rate

Records = list[dict[str, Any]]


@dataclass(frozen=True)
class Session:
    """A run with what its stages share."""

    run: Run
    config: Config
    constitution: Constitution
    model: Model
    device: Device

    def __post_init__(self) -> None:
        self.run.usd_per_s = rate(self.device, self.config.training.budget.usd_per_hour)

    def budget(self) -> Budget:
        """What is left to spend, counted from the beginning of the stage that is at work."""
        spent, seconds = self.run.spent()
        section, rate_, since = self.config.training.budget, self.run.usd_per_s, self.run.metering
        return budget_of(section, usd_per_s=rate_, spent_usd=spent, spent_seconds=seconds, since=since)

    def examples(self, part: str) -> Records:
        """The run's own copy of `train` or `eval`."""
        return read_examples(self.run.data / f"{part}.jsonl", self.constitution)

    def material(self) -> Material:
        """The token rows that the method trains on, from the run's own copies."""
        besides = stored(self.run.data)
        held_out = self.examples("eval") if self.config.training.method != "sft" else []
        return material_of(
            self.config, self.model.path, self.examples("train"), self.constitution, held_out=held_out, besides=besides
        )

    @property
    def as_trained(self) -> Config:
        """The configuration with the base's storage that the plan settled on; what merges and scores must read."""
        return as_planned(self.config, self.run.result("plan"))

    @property
    def arithmetic(self) -> str:
        """The type that training computed in, whatever this machine would choose."""
        stored = self.run.result("plan") or {}
        return str(stored["setup"]["compute_dtype"]) if "setup" in stored else compute_dtype(self.config, self.device)


def from_sources(project: Project, config: Config) -> tuple[Records, Records]:
    """Validate the hand-written examples and split them (train, held out)."""
    return split_sources(
        project.sources(config.training.data.language), load_constitution(project.constitution), config
    )


def from_exports(folder: Path, project: Project) -> tuple[Records, Records]:
    """Read files that were exported before (train, held out)."""
    return read_exports(folder, load_constitution(project.constitution))


def new_session(
    project: Project,
    config: Config,
    path: Path,
    data: tuple[Records, Records],
    *,
    fresh: bool = False,
    archive_to: Path | None = None,
    resume: bool = False,
    fork: Path | None = None,
) -> Session:
    """Open the run at `path` for these settings and data; its copy of data and constitution is written if it is new.

    Args:
        resume: refuse if another run lies there, instead of archiving it; more epochs are added to it.
        fork: begin with the adapter of this run.
    """
    train, held_out = data
    constitution = load_constitution(project.constitution)
    model = find_model(config.training.model, config.training.revision)
    train = subset(train, config)
    more = besides(project, config, train, held_out)
    identity = {
        "config_sha256": config.digest(),
        "dataset_sha256": data_hash(train, held_out, more),
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

    def work() -> dict[str, Any]:
        write_jsonl(run.data / "train.jsonl", train)
        write_jsonl(run.data / "eval.jsonl", held_out)
        for name, rows in more.items():
            write_jsonl(run.data / f"{name}.jsonl", rows)
        run.data.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(project.constitution, run.data / "constitution.yaml")
        statistics = describe(run.data / "train.jsonl", run.data / "eval.jsonl", constitution, config)
        write_json(run.data / "statistics.json", statistics)
        return statistics

    statistics = run.perform("export", work, lambda: sorted(run.data.iterdir()))
    say(f"  {statistics['train']['examples']} to train on, {statistics['eval']['examples']} held out → {run.data}")
    return Session(run, config, constitution, model, detect())


def subset(train: Records, config: Config) -> Records:
    """The examples that `max_examples` leaves: the same ones for the same seed."""
    if config.max_examples is None:
        return train
    return sorted(train, key=lambda r: hashlib.sha256(f"{config.training.seed}:{r['id']}".encode()).hexdigest())[
        : config.max_examples
    ]


def session_of(path: Path) -> Session:
    """The session of an existing run, from what lies in it."""
    run = load_run(path)
    config = run.config()
    constitution = load_constitution(run.data / "constitution.yaml")
    return Session(run, config, constitution, find_model(config.training.model, config.training.revision), detect())
