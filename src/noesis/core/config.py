"""The two YAML files as frozen models: `data/training/lora_config.yaml` and `data/training/training_config.yaml`.

People write sparse YAML; each run writes its resolved configuration to `config.json`. Unknown keys are refused with the
nearest known one, and so are contradictions between the files. Command-line options arrive as `overrides`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, Field, ValidationError, model_validator

from noesis.core.errors import ConfigError
from noesis.core.files import sha256_json
from noesis.core.project import Project
from noesis.core.sections import (
    BudgetSection,
    ConstitutionalSection,
    Count,
    DataSection,
    DemoSection,
    DpoSection,
    Fraction,
    Frozen,
    GgufSection,
    JudgeWeights,
    ModalSection,
    Price,
    Quantization,
    ReplaySection,
    TribunalSection,
)
from noesis.core.yaml_file import describe_error, read_yaml

__all__ = [
    "BudgetSection",
    "Config",
    "ConstitutionalSection",
    "DataSection",
    "DemoSection",
    "DpoSection",
    "GgufSection",
    "JudgeWeights",
    "LoraFile",
    "ModalSection",
    "Price",
    "Quantization",
    "ReplaySection",
    "SaveEvery",
    "TrainingFile",
    "TribunalSection",
    "load_config",
]

# Keys of training_config.yaml that don't reach the adapter: how it is computed, and what happens around and after it.
NOT_DECIDING = (
    "demo",
    "gguf",
    "tribunal",
    "modal",
    "output_name",
    "engine",
    "gradient_checkpointing",
    "compile",
    "packing",
    "save_every",
    "budget",
)


class LoraFile(Frozen):
    """`lora_config.yaml`; names as in `peft.LoraConfig`."""

    r: Count = 64
    lora_alpha: Count = 128
    lora_dropout: Annotated[float, Field(ge=0, lt=1)] = 0.05
    bias: Literal["none"] = "none"
    task_type: Literal["CAUSAL_LM"] = "CAUSAL_LM"
    target_modules: Annotated[tuple[str, ...], Field(min_length=1)]
    quantization: Quantization = Quantization()


@dataclass(frozen=True)
class SaveEvery:
    """How often the trainer's state is saved; both None: as the plan and the speed of the disk allow."""

    steps: int | None = None
    seconds: float | None = None


class TrainingFile(Frozen):
    """`training_config.yaml`; training keys as in `transformers.TrainingArguments`."""

    model: str = "smollm2"
    revision: str | None = None
    output_name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")] = "noesis-philosopher-v1"
    method: Literal["sft", "dpo", "sft+dpo"] = "sft"
    num_train_epochs: Count = 3
    learning_rate: Annotated[float, Field(gt=0, lt=1)] = 2e-4
    lr_scheduler_type: Literal["cosine", "linear", "constant", "constant_with_warmup"] = "cosine"
    warmup_ratio: Fraction = 0.03
    per_device_train_batch_size: Count = 2
    gradient_accumulation_steps: Count = 4
    max_length: Annotated[int, Field(ge=64)] = 2048
    weight_decay: Annotated[float, Field(ge=0)] = 0.0
    max_grad_norm: Annotated[float, Field(gt=0)] = 1.0
    seed: Annotated[int, Field(ge=0)] = 42
    save_every: Annotated[str, Field(pattern=r"^(auto|[1-9]\d* steps?|\d+(\.\d+)? min(utes?)?)$")] = "auto"
    budget: BudgetSection = BudgetSection()
    engine: Literal["noesis", "unsloth"] = "noesis"
    precision: Literal["auto", "fp8", "bf16", "nf4", "fp32"] = "auto"
    gradient_checkpointing: Literal["auto", "none", "selective", "full"] = "auto"
    compile: Literal["auto", True, False] = "auto"  # ignored; accepted because files of earlier versions have it
    packing: Literal["auto", True, False] = "auto"
    data: DataSection
    constitutional_ai: ConstitutionalSection = ConstitutionalSection()
    dpo: DpoSection = DpoSection()
    replay: ReplaySection = ReplaySection()
    tribunal: TribunalSection = TribunalSection()
    gguf: GgufSection = GgufSection()
    demo: DemoSection = DemoSection()
    modal: ModalSection = ModalSection()

    @property
    def epochs(self) -> int:
        """Epochs of the training that leaves the run's adapters."""
        return self.num_train_epochs if self.method == "sft" else self.dpo.epochs

    @model_validator(mode="after")
    def _method_fits(self) -> TrainingFile:
        if self.method != "sft" and self.engine == "unsloth":
            raise ValueError(
                f"method: {self.method} and engine: unsloth can't be combined: Unsloth trains with method: sft only; "
                "set engine: noesis"
            )
        if self.method == "dpo" and self.replay.file is not None:
            raise ValueError(
                "replay.file is for SFT, which method: dpo does not do: set method: sft+dpo, or replay.file: null"
            )
        return self

    @property
    def saving(self) -> SaveEvery:
        """`save_every`, parsed."""
        if self.save_every == "auto":
            return SaveEvery()
        number, unit = self.save_every.split()
        return SaveEvery(steps=int(number)) if unit.startswith("step") else SaveEvery(seconds=float(number) * 60)


class Config(Frozen):
    """Both files together: all settings of a run."""

    lora: LoraFile
    training: TrainingFile
    max_examples: Count | None = None  # train on the first N of the shuffled set; None: all

    @model_validator(mode="after")
    def _one_precision(self) -> Config:
        precision, quantization = self.training.precision, self.lora.quantization
        if precision != "auto" and (precision == "nf4") != quantization.load_in_4bit:
            other = "true" if precision == "nf4" else "false"
            raise ValueError(
                f"training_config.yaml says precision: {precision} and lora_config.yaml says load_in_4bit: "
                f"{str(quantization.load_in_4bit).lower()}; set load_in_4bit: {other}, or precision: auto"
            )
        if precision == "nf4" and quantization.bnb_4bit_quant_type != "nf4":
            raise ValueError(
                "training_config.yaml says precision: nf4 and lora_config.yaml says bnb_4bit_quant_type: "
                f"{quantization.bnb_4bit_quant_type}; "
                "set bnb_4bit_quant_type: nf4, or precision: auto"
            )
        return self

    def digest(self) -> str:
        """SHA-256 of the settings that decide the adapter."""
        return sha256_json(self.deciding())

    def deciding(self) -> dict[str, Any]:
        """The settings that decide the adapter, as JSON. How it is computed, and what happens afterwards, does not."""
        settings = self.model_dump(mode="json")
        training = settings["training"]
        for key in NOT_DECIDING:
            del training[key]
        if self.training.method == "sft":
            del training["method"], training["dpo"]
        else:
            del training["dpo"]["pairs"]  # the content of the file decides, and the data's hash covers it
        del training["replay"]["file"]
        if self.training.replay.file is None or self.training.method == "dpo":
            del training["replay"]
        if self.training.precision == "auto":  # the plan chooses it and records it
            del training["precision"]
        return settings

    def with_settings(
        self,
        *,
        lora: Mapping[str, Any] | None = None,
        quantization: Mapping[str, Any] | None = None,
        training: Mapping[str, Any] | None = None,
    ) -> Config:
        """A copy with some settings of `lora`, `lora.quantization` and `training` replaced, not validated again."""
        new_quantization = self.lora.quantization.model_copy(update=quantization)
        new_lora = self.lora.model_copy(update={**(lora or {}), "quantization": new_quantization})
        return self.model_copy(update={"lora": new_lora, "training": self.training.model_copy(update=training)})


def load_config(project: Project, overrides: Mapping[str, Any] | None = None) -> Config:
    """Read both files, apply `overrides`, validate.

    Args:
        overrides: dotted keys as nested in the files, `lora.r` or `training.num_train_epochs`; None values are skipped.

    Raises:
        ConfigError: naming the file, the key and the nearest known key.
    """
    lora = _validate(LoraFile, _read_yaml(project.lora_yaml), project.lora_yaml)
    training = _validate(TrainingFile, _read_yaml(project.training_yaml), project.training_yaml)
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
    return _validate(Config, settings, Path("the command line" if given else "the settings together"))


def _names_load_in_4bit(lora: LoraFile, given: Mapping[str, Any]) -> bool:
    """Whether `load_in_4bit` was chosen: by an option, or in the file unless an option gives the precision."""
    if "lora.quantization.load_in_4bit" in given or "load_in_4bit" in given.get("lora.quantization", {}):
        return True
    return "load_in_4bit" in lora.quantization.model_fields_set and "training.precision" not in given


def _without_home(model: str) -> str:
    """A folder in the user's home as `~/…`, so that no record names the home."""
    home = str(Path.home())
    return "~" + model[len(home) :] if home != "/" and model.startswith(home + "/") else model


def _read_yaml(path: Path) -> dict[str, Any]:
    try:
        value = read_yaml(path)
    except FileNotFoundError:
        raise ConfigError(
            f"{path} is missing: copy it from the repository, or make a new project with  noesis init DIR"
        ) from None
    except ValueError as error:
        raise ConfigError(f"{path} is not valid YAML: {error}") from None
    if not isinstance(value, dict):
        raise ConfigError(f"{path}: expected keys and values, found {type(value).__name__}")
    return value


M = TypeVar("M", bound=BaseModel)


def _validate(model: type[M], raw: dict[str, Any], path: Path) -> M:
    try:
        return model.model_validate(raw)
    except ValidationError as error:
        raise ConfigError(describe_error(model, error, path)) from None
