"""A run with what its stages share: configuration, constitution, base model, device and data."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

from noesis.constitution.document import Constitution, load_constitution
from noesis.core.config import Config
from noesis.core.device import Device, detect
from noesis.dataset.load import read_run_copy
from noesis.dataset.schema import Dataset
from noesis.llm.embedded import Model
from noesis.llm.row_encoder import RowEncoder, encoder_for
from noesis.pipeline.consent import base_model
from noesis.pipeline.results import RunResults
from noesis.pipeline.training_set import build_training_set, planned_workloads
from noesis.planning.budget import Budget, budget_of
from noesis.planning.plan import Plan, with_planned_storage
from noesis.planning.precision import compute_dtype
from noesis.planning.pricing import usd_per_second
from noesis.planning.workload import Workloads
from noesis.run.directory import Run, load_run
from noesis.run.lock import locked
from noesis.training.job import TrainingSet


@dataclass(frozen=True)
class RunSession:
    """A run with what its stages share.

    loaded: the dataset, where it was read to start the run; None: the run's own copy is read when it is first needed
    """

    run: Run
    config: Config
    constitution: Constitution
    model: Model
    device: Device
    loaded: Dataset | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        self.run.usd_per_s = usd_per_second(self.device, self.config.training.budget.usd_per_hour)

    def budget(self) -> Budget:
        """What is left to spend, counted from the start of the stage that is running."""
        spent, seconds = self.run.spent()
        return budget_of(
            self.config.training.budget,
            usd_per_s=self.run.usd_per_s,
            spent_usd=spent,
            spent_seconds=seconds,
            since=self.run.working_since,
        )

    @cached_property
    def dataset(self) -> Dataset:
        """What the run trains and measures on; parsed once."""
        return self.loaded or read_run_copy(self.run.data, self.constitution)

    @cached_property
    def encoder(self) -> RowEncoder:
        """The model's tokenizer with the rows that it has encoded, so that each conversation is tokenised once."""
        return encoder_for(self.model.path, self.dataset.encoder)

    @cached_property
    def training_set(self) -> TrainingSet:
        """The token rows that the method trains on, without answers that the base itself writes."""
        return build_training_set(self.config, self.dataset, self.encoder, self.constitution)

    @property
    def planned_workloads(self) -> Workloads:
        """What the run computes; answers that the base has still to write count at full length."""
        return planned_workloads(self.config, self.dataset, self.constitution, self.encoder, self.training_set)

    @property
    def plan(self) -> Plan | None:
        """The plan that was executed, or will be; None before it is made."""
        return RunResults(self.run).executed_plan

    @property
    def as_trained(self) -> Config:
        """The configuration with the base's storage that was trained against; what merges and scores must read."""
        return with_planned_storage(self.config, self.plan)

    @property
    def arithmetic(self) -> str:
        """The type that training computed in, whatever this machine would choose."""
        plan = self.plan
        return compute_dtype(self.config, self.device) if plan is None else plan.setup.compute_dtype


def reopen_run(path: Path, *, fetch: bool = False) -> RunSession:
    """The session of an existing run, from what lies in it.

    Args:
        fetch: the run is known to be the user's own: its base model may be downloaded without asking.

    Raises:
        UsageError: there is no run, or its base model is not here and only the run names it.
    """
    run = load_run(path)
    config = run.config()
    constitution = load_constitution(run.data / "constitution.yaml")
    return RunSession(run, config, constitution, base_model(path, config, fetch=fetch), detect())


@contextmanager
def locked_session(path: Path) -> Iterator[RunSession]:
    """The session of an existing run, locked before it is read: it starts from what other commands have left.

    Raises:
        UsageError: as `reopen_run`. RunError: another process is working on it.
    """
    load_run(path)  # locking would make a folder where there is none
    with locked(path):
        yield reopen_run(path)
