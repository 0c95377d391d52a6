"""A run with what its stages share: configuration, constitution, base model, device, and its data, each file read once."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from noesis.constitution.document import Constitution, load_constitution
from noesis.core.config import Config
from noesis.core.device import Device, detect
from noesis.core.files import sha256_file
from noesis.dataset.auxiliary import read_auxiliary
from noesis.dataset.load import read_examples
from noesis.llm.embedded import EMBEDDED, Model
from noesis.llm.hub import find_model
from noesis.pipeline.training_set import build_training_set
from noesis.planning.budget import Budget, budget_of
from noesis.planning.plan import compute_dtype, with_planned_storage
from noesis.planning.pricing import usd_per_second
from noesis.run.directory import Run, load_run
from noesis.training.job import TrainingSet

Records = list[dict[str, Any]]


@dataclass(frozen=True)
class RunSession:
    """A run with what its stages share. Make one with `start_run`, or with `reopen_run` for a run that exists."""

    run: Run
    config: Config
    constitution: Constitution
    model: Model
    device: Device

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

    # --- data: the run's own copies, never the project's files
    @cached_property
    def train_examples(self) -> Records:
        return read_examples(self.run.data / "train.jsonl", self.constitution)

    @cached_property
    def held_out(self) -> Records:
        return read_examples(self.run.data / "eval.jsonl", self.constitution)

    @cached_property
    def auxiliary(self) -> dict[str, Records]:
        """Preference pairs and replay rows that the run takes besides its examples."""
        return read_auxiliary(self.run.data)

    @cached_property
    def training_set(self) -> TrainingSet:
        """The token rows that the method trains on."""
        return build_training_set(
            self.config,
            self.model.path,
            self.train_examples,
            self.constitution,
            held_out=self.held_out if self.config.training.method != "sft" else [],
            besides=self.auxiliary,
        )

    # --- what was trained
    @property
    def as_trained(self) -> Config:
        """The configuration with the base's storage that was trained against; what merges and scores must read."""
        return with_planned_storage(self.config, self.run.executed_plan())

    @property
    def arithmetic(self) -> str:
        """The type that training computed in, whatever this machine would choose."""
        plan = self.run.executed_plan() or {}
        return str(plan["setup"]["compute_dtype"]) if "setup" in plan else compute_dtype(self.config, self.device)

    @property
    def system_prompt(self) -> str:
        """The constitution's system prompt in the language of the examples."""
        prompt = self.constitution.system_prompt
        return prompt.en if self.config.training.data.language == "en" else prompt.pt

    def provenance(self) -> dict[str, Any]:
        """What the model is made of: for noesis.json next to the weights, and the metadata of GGUF files."""
        identity, name = self.run.identity, self.config.training.model
        return {
            "noesis": self.run.manifest.noesis,
            "base": "HuggingFaceTB/SmolLM2-135M-Instruct" if name == EMBEDDED else name,
            "base_revision": identity.revision,
            "licence": self.model.licence,
            "dataset_sha256": identity.dataset_sha256,
            "constitution_sha256": identity.constitution_sha256,
            "config_sha256": identity.config_sha256,
            "adapter_sha256": sha256_file(self.run.adapter() / "adapter_model.safetensors"),
            "system_prompt": self.system_prompt,
            "system_prompt_pt": self.constitution.system_prompt.pt,
            "system_prompt_en": self.constitution.system_prompt.en,
        }


def reopen_run(path: Path) -> RunSession:
    """The session of an existing run, from what lies in it.

    Raises:
        UsageError: there is no run.
    """
    run = load_run(path)
    config = run.config()
    constitution = load_constitution(run.data / "constitution.yaml")
    return RunSession(run, config, constitution, find_model(config.training.model, config.training.revision), detect())
