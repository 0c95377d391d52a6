"""What command-line options set in the configuration: the one mapping from an option to a key of the YAML files.

The command line, `modal run scripts/modal_train.py`, `noesis demo` and callers of the package all use `Overrides`:

    Overrides(method="dpo", epochs=1).configure(project)     # training.dpo.epochs: 1

The functions of `noesis.api` take the same settings as keyword arguments (`Settings`).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, TypedDict

if TYPE_CHECKING:
    from noesis.core.config import Config
    from noesis.core.project import Project

Setting = str | int | float


class Settings(TypedDict, total=False):
    """The fields of `Overrides` as keyword arguments."""

    model: str | None
    method: str | None
    epochs: int | None
    max_examples: int | None
    learning_rate: float | None
    language: str | None
    max_usd: float | None
    max_minutes: float | None
    ask: str | None
    kept_items: int | None
    strength: float | None
    kl_weight: float | None
    seeds: int | None


@dataclass(frozen=True, kw_only=True)
class Overrides:
    """Settings that options change; None leaves the YAML files' value.

    epochs and learning_rate belong to the part of training that comes first: `dpo` where the method is dpo, else SFT.
    max_usd and max_minutes are for the whole run, across restarts.
    """

    model: str | None = None
    method: str | None = None
    epochs: int | None = None
    max_examples: int | None = None
    learning_rate: float | None = None
    language: str | None = None
    max_usd: float | None = None
    max_minutes: float | None = None
    ask: str | None = None
    kept_items: int | None = None
    strength: float | None = None
    kl_weight: float | None = None
    seeds: int | None = None

    def settings(self, method: str) -> dict[str, Setting]:
        """Dotted keys and values for `load_config`.

        Args:
            method: the effective training method: `self.method`, or the YAML file's if that is None.
        """
        only_dpo = method == "dpo"
        found: dict[str, Setting | None] = {
            "training.model": self.model,
            "training.method": self.method,
            "training.dpo.epochs" if only_dpo else "training.num_train_epochs": self.epochs,
            "max_examples": self.max_examples,
            "training.dpo.learning_rate" if only_dpo else "training.learning_rate": self.learning_rate,
            "training.data.language": self.language,
            "training.budget.max_usd": self.max_usd,
            "training.budget.max_minutes": self.max_minutes,
            "training.tribunal.ask": self.ask,
            "training.tribunal.kept_items": self.kept_items,
            "training.strength.fixed": self.strength,
            "training.replay.kl_weight": self.kl_weight,
            "training.seeds": self.seeds,
        }
        return {key: value for key, value in found.items() if value is not None}

    def configure(self, project: Project) -> Config:
        """The project's configuration with these settings applied.

        Raises:
            ConfigError: a value that the configuration refuses.
        """
        from noesis.core.config import load_config

        method = self.method or load_config(project).training.method
        return load_config(project, dict(self.settings(method)))


@dataclass(frozen=True, kw_only=True)
class JudgeOverrides:
    """What the options of `noesis tribunal train-judge` change; None leaves the YAML files' value."""

    model: str | None = None
    method: str | None = None
    sources: str | None = None
    max_planted: int | None = None
    epochs: int | None = None
    learning_rate: float | None = None
    max_usd: float | None = None
    max_minutes: float | None = None

    def configure(self, project: Project) -> Config:
        """The project's configuration with these settings applied.

        Raises:
            ConfigError: a value that the configuration refuses.
        """
        from noesis.core.config import load_config

        sources = None if self.sources is None else [name.strip() for name in self.sources.split(",")]
        found: dict[str, object] = {
            "training.model": self.model,
            "training.judge_training.method": self.method,
            "training.judge_training.sources": sources,
            "training.judge_training.max_planted": self.max_planted,
            "training.judge_training.epochs": self.epochs,
            "training.judge_training.learning_rate": self.learning_rate,
            "training.budget.max_usd": self.max_usd,
            "training.budget.max_minutes": self.max_minutes,
        }
        return load_config(project, {key: value for key, value in found.items() if value is not None})
