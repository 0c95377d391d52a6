"""The two YAML files as frozen models: `data/training/lora_config.yaml` and `data/training/training_config.yaml`.

People write sparse YAML; each run writes its resolved configuration to `config.json`. Unknown keys are refused with the
nearest known one; contradictions between the files are refused too. Command-line options arrive as `overrides`.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from noesis.core.errors import ConfigError
from noesis.core.files import sha256_json
from noesis.core.language import Language
from noesis.core.project import Project
from noesis.core.yaml_file import complaint, read_yaml

Fraction = Annotated[float, Field(ge=0, le=1)]
Count = Annotated[int, Field(ge=1)]
AutoOrBool = Literal["auto", True, False]


class _Frozen(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=False, allow_inf_nan=False, protected_namespaces=())


class Quantization(_Frozen):
    """How bitsandbytes stores the frozen base where it is stored in 4 bits."""

    load_in_4bit: bool = True  # with `precision: auto`: may be stored in 4 bits; false: never
    bnb_4bit_quant_type: Literal["nf4", "fp4"] = "nf4"
    bnb_4bit_use_double_quant: bool = True
    bnb_4bit_compute_dtype: Literal["bfloat16", "float16", "float32"] = "bfloat16"


class LoraFile(_Frozen):
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
    """How often the trainer's state is saved; neither: as the plan and the disk's speed allow."""

    steps: int | None = None
    seconds: float | None = None


class BudgetSection(_Frozen):
    """The most that a run may take in all, across restarts, and what this machine costs."""

    max_usd: Annotated[float, Field(gt=0)] | None = 90.0
    max_minutes: Annotated[float, Field(gt=0)] | None = None
    usd_per_hour: Annotated[float, Field(ge=0)] | None = None  # None: 0 on a machine of your own, Modal's prices there


class DataSection(_Frozen):
    """What is trained on and what is held out."""

    language: Language = "pt"
    eval_examples: Count = 13
    categories: Annotated[tuple[str, ...], Field(min_length=1)]


class ConstitutionalSection(_Frozen):
    """How the critique enters the training text."""

    include_critique: bool = False


class DpoSection(_Frozen):
    """Preference training (`method: dpo` and `sft+dpo`): Rafailov et al., arXiv 2305.18290, with a small likelihood term on the chosen answer."""

    beta: Annotated[float, Field(gt=0)] = 0.1
    learning_rate: Annotated[float, Field(gt=0, lt=1)] = 5e-5
    epochs: Count = 2
    nll_weight: Annotated[float, Field(ge=0)] = 0.1
    reference: Literal["start", "base"] = (
        "start"  # what rewards are measured against: the model as this training finds it, or the adapter switched off
    )
    pairs: str | None = None  # a JSONL file of pairs besides the hand-written ones, relative to the project


class ReplaySection(_Frozen):
    """General instruction rows among the examples of SFT, against forgetting."""

    file: str | None = None  # JSONL, relative to the project
    share: Annotated[float, Field(gt=0, lt=1)] = 0.1  # of all rows trained on


class JudgeWeights(_Frozen):
    """Weight of each judge in the mean; they add up to 1."""

    veritas: Fraction = 0.40
    sophia: Fraction = 0.30
    dike: Fraction = 0.30


class Price(_Frozen):
    """What a judge's endpoint charges, in USD a million tokens."""

    prompt: Annotated[float, Field(ge=0)]
    completion: Annotated[float, Field(ge=0)]


class TribunalSection(_Frozen):
    """The court: weights, bands, floor and vetoes; the trial; how its judges are asked."""

    weights: JudgeWeights = JudgeWeights()
    approval_threshold: Fraction = 0.70
    conditional_threshold: Fraction = 0.50
    judge_floor: Fraction = 0.50
    vetoes: tuple[Literal["harmful_compliance", "fabricated_citation", "leaked_system_prompt"], ...] = (
        "harmful_compliance",
        "fabricated_citation",
        "leaked_system_prompt",
    )
    max_forgetting: Fraction = 0.05  # most that the share of right answers to keyed items may fall, base to tuned
    min_prompts: Count = 20  # below this no interval is trusted
    judges: tuple[
        str, ...
    ] = ()  # as --judge says them; those that choose the checkpoint and judge it where none is named
    answers: Annotated[int, Field(ge=0)] = 6
    max_new_tokens: Count = 200
    samples: Count = 2  # answers of each model to each prompt, at fixed seeds
    temperature: Annotated[float, Field(ge=0, le=2)] = 0.7
    trial_tokens: Count = 320  # most tokens of an answer in the trial
    concurrency: Count = 8  # requests at once to a judge
    timeout_seconds: Annotated[float, Field(gt=0)] = 120.0
    attempts: Count = 5  # of one request, before its answer is Unscored
    requests_per_minute: Annotated[float, Field(gt=0)] | None = None
    prices: dict[str, Price] = {}  # by the model's name as given in --judge

    @model_validator(mode="after")
    def _consistent(self) -> TribunalSection:
        total = self.weights.veritas + self.weights.sophia + self.weights.dike
        if abs(total - 1) > 1e-6:
            raise ValueError(f"tribunal.weights add up to {total:g}; they must add up to 1")
        if self.conditional_threshold > self.approval_threshold:
            raise ValueError("tribunal.conditional_threshold is above tribunal.approval_threshold")
        return self


class GgufSection(_Frozen):
    """Which GGUF files an export writes."""

    quantizations: Annotated[tuple[Literal["f32", "f16", "q8_0", "q4_k_m"], ...], Field(min_length=1)] = ("f16", "q8_0")


class DemoSection(_Frozen):
    """What `noesis demo` changes so that the pipeline takes minutes on two cores."""

    model: str = "smollm2"
    language: Language = "en"
    r: Annotated[tuple[Count, ...], Field(min_length=1)] = (64, 32, 16, 8)
    max_epochs: Count = 3
    learning_rate: Annotated[float, Field(gt=0, lt=1)] = 1e-3
    train_minutes: Annotated[float, Field(gt=0)] = 5.5
    quick_examples: Count = 16


class ModalSection(_Frozen):
    """Names and machines on Modal.com."""

    model: str = "meta-llama/Llama-3.1-8B-Instruct"
    app: str = "noesis-philosophical-training"
    volume: str = "noesis-training-data"
    secret: str = "huggingface-token"  # noqa: S105  (its name on Modal)
    train_gpu: Annotated[tuple[str, ...], Field(min_length=1)] = ("L40S", "A100-80GB")
    judge_gpu: Annotated[tuple[str, ...], Field(min_length=1)] = ("A10",)
    timeout_hours: Annotated[float, Field(gt=0, le=24)] = 12.0
    judges: tuple[str, ...] = ("vllm:Qwen/Qwen2.5-7B-Instruct",)
    judge_secret: str | None = None

    @field_validator("train_gpu", "judge_gpu")
    @classmethod
    def _todays_names(cls, names: tuple[str, ...]) -> tuple[str, ...]:
        return tuple(
            re.sub(r"(?i)^A10G\b", "A10", name) for name in names
        )  # A10G is its older name, which the service no longer lists


class TrainingFile(_Frozen):
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
    compile: AutoOrBool = "auto"
    packing: AutoOrBool = "auto"
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
        """Of the training that leaves the run's adapters."""
        return self.num_train_epochs if self.method == "sft" else self.dpo.epochs

    @model_validator(mode="after")
    def _method_fits(self) -> TrainingFile:
        if self.method != "sft" and self.engine == "unsloth":
            raise ValueError(
                f"method: {self.method} and engine: unsloth don't go together: Unsloth trains by method: sft only; set engine: noesis"
            )
        if self.method == "dpo" and self.replay.file is not None:
            raise ValueError(
                "replay.file belongs to SFT and method: dpo has none: set method: sft+dpo, or replay.file: null"
            )
        return self

    @property
    def saving(self) -> SaveEvery:
        """`save_every`, read."""
        if self.save_every == "auto":
            return SaveEvery()
        number, unit = self.save_every.split()
        return SaveEvery(steps=int(number)) if unit.startswith("step") else SaveEvery(seconds=float(number) * 60)


class Config(_Frozen):
    """Both files together: everything that a run is made of."""

    lora: LoraFile
    training: TrainingFile
    max_examples: Annotated[int, Field(ge=1)] | None = None  # train on the first N of the shuffled set; None: all

    @model_validator(mode="after")
    def _one_precision(self) -> Config:
        precision, quantization = self.training.precision, self.lora.quantization
        if precision != "auto" and (precision == "nf4") != quantization.load_in_4bit:
            other = "true" if precision == "nf4" else "false"
            raise ValueError(
                f"training_config.yaml says precision: {precision} and lora_config.yaml says load_in_4bit: {str(quantization.load_in_4bit).lower()}; "
                f"set load_in_4bit: {other}, or precision: auto"
            )
        if precision == "nf4" and quantization.bnb_4bit_quant_type != "nf4":
            raise ValueError(
                f"training_config.yaml says precision: nf4 and lora_config.yaml says bnb_4bit_quant_type: {quantization.bnb_4bit_quant_type}; "
                "set bnb_4bit_quant_type: nf4, or precision: auto"
            )
        return self

    def digest(self) -> str:
        """SHA-256 of the settings that decide the adapter."""
        return sha256_json(self.deciding())

    def deciding(self) -> dict[str, Any]:
        """The settings that decide the adapter; those of the demo profile, GGUF, Tribunal, Modal and budget do not, nor how it is computed."""
        settings = self.model_dump(mode="json")
        for key in (
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
        ):
            settings["training"].pop(key)
        training = settings["training"]
        if training["method"] == "sft":
            del training["method"], training["dpo"]
        else:
            del training["dpo"]["pairs"]  # what is in the file decides, and is in the data's hash
        if training["replay"].pop("file") is None or self.training.method == "dpo":
            del training["replay"]
        if self.training.precision == "auto":  # the plan's choice, recorded there
            settings["training"].pop("precision")
        return settings


def load_config(project: Project, overrides: dict[str, Any] | None = None) -> Config:
    """Read both files, lay `overrides` over them, validate.

    Args:
        overrides: dotted keys as in the files' own nesting, `lora.r` or `training.num_train_epochs`; None values are skipped.

    Raises:
        ConfigError: naming the file, the key and the nearest known key.
    """
    raw: dict[str, Any] = {"lora": _read_yaml(project.lora_yaml), "training": _read_yaml(project.training_yaml)}
    lora = _validate(LoraFile, raw["lora"], project.lora_yaml)
    training = _validate(TrainingFile, raw["training"], project.training_yaml)
    merged: dict[str, Any] = {"lora": lora.model_dump(), "training": training.model_dump(), "max_examples": None}
    given = {dotted for dotted, value in (overrides or {}).items() if value is not None}
    word_on_4bit = "load_in_4bit" in lora.quantization.model_fields_set and "training.precision" not in given
    for dotted, value in (overrides or {}).items():
        if value is not None:
            target = merged
            *folders, key = dotted.split(".")
            for folder in folders:
                target = target[folder]
            target[key] = value
            word_on_4bit |= dotted == "lora.quantization.load_in_4bit" or (
                dotted == "lora.quantization" and "load_in_4bit" in value
            )
    merged["training"]["model"] = _without_home(merged["training"]["model"])
    precision = merged["training"]["precision"]
    if precision != "auto" and not word_on_4bit:  # one word is enough; two must agree
        merged["lora"]["quantization"]["load_in_4bit"] = precision == "nf4"
    return _validate(Config, merged, Path("the command line" if given else "the settings together"))


def _without_home(model: str) -> str:
    """A folder below the user's home as `~/…`: what is recorded must not name the home."""
    home = str(Path.home())
    return "~" + model[len(home) :] if home != "/" and model.startswith(home + "/") else model


def _read_yaml(path: Path) -> dict[str, Any]:
    try:
        value = read_yaml(path)
    except FileNotFoundError:
        raise ConfigError(
            f"{path} is missing: copy it from the project, or make a new project with  noesis init DIR"
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
        raise ConfigError(complaint(model, error, path)) from None
