"""Read the two YAML files, apply the command line's overrides, and validate both together."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from noesis.core.config.models import Config, LoraFile, TrainingFile
from noesis.core.console import command
from noesis.core.errors import ConfigError
from noesis.core.i18n import _
from noesis.core.machine.folders import home
from noesis.core.project import Project
from noesis.core.yaml_file import describe_error, read_yaml, validate

M = TypeVar("M", bound=BaseModel)


def load_config(project: Project, overrides: Mapping[str, Any] | None = None) -> Config:
    """Read both files, apply `overrides`, validate.

    Args:
        overrides: dotted keys as nested in the files, `lora.r` or `training.num_train_epochs`; None values are skipped.

    Raises:
        ConfigError: naming the file, the key and the nearest known key.
    """
    lora = _read(LoraFile, project.lora_yaml)
    training = _read(TrainingFile, project.training_yaml)
    settings: dict[str, Any] = {"lora": lora.model_dump(), "training": training.model_dump(), "max_examples": None}
    given = {dotted: value for dotted, value in (overrides or {}).items() if value is not None}
    for dotted, value in given.items():
        section = settings
        *path, key = dotted.split(".")
        for name in path:
            section = section[name]
        section[key] = value
    settings["training"]["model"] = _without_home(settings["training"]["model"])
    precision = settings["training"]["precision"]
    if precision != "auto" and not _names_load_in_4bit(lora, given):  # one of the two is enough; both must agree
        settings["lora"]["quantization"]["load_in_4bit"] = precision == "nf4"
    try:
        return Config.model_validate(settings)
    except ValidationError as error:
        source = _("the command line") if given else _("the settings together")
        raise ConfigError(describe_error(Config, error, source)) from None


def _names_load_in_4bit(lora: LoraFile, given: Mapping[str, Any]) -> bool:
    """Whether `load_in_4bit` was chosen: by an option, or in the file unless an option gives the precision."""
    if "lora.quantization.load_in_4bit" in given or "load_in_4bit" in given.get("lora.quantization", {}):
        return True
    return "load_in_4bit" in lora.quantization.model_fields_set and "training.precision" not in given


def _without_home(model: str) -> str:
    """A folder in the user's home as `~/…`, so that no record names the home."""
    at_home = str(home() or "/")
    return "~" + model[len(at_home) :] if at_home != "/" and model.startswith(at_home + "/") else model


def _read(model: type[M], path: Path) -> M:
    try:
        value = read_yaml(path)
    except FileNotFoundError:
        raise ConfigError(
            _(
                "{path} is missing: copy it from the repository, or make a new project with  {command}",
                path=path,
                command=command("init", "DIR"),
            )
        ) from None
    except ValueError as error:
        raise ConfigError(_("{path} is not valid YAML: {error}", path=path, error=error)) from None
    if not isinstance(value, dict):
        raise ConfigError(_("{path}: expected keys and values, found {name}", path=path, name=type(value).__name__))
    try:
        return validate(model, value)
    except ValidationError as error:
        raise ConfigError(describe_error(model, error, path)) from None
