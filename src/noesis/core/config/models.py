"""`lora_config.yaml` and `training_config.yaml` as frozen models, and both together as `Config`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from noesis.core.config.sections import (
    SELF,
    BudgetSection,
    ConstitutionalSection,
    Count,
    DataSection,
    DemoSection,
    DistillSection,
    DpoSection,
    Fraction,
    Frozen,
    GgufSection,
    JudgeTrainingSection,
    ModalSection,
    Quantization,
    ReplaySection,
    StrengthSection,
    TribunalSection,
)
from noesis.core.files import sha256_json
from noesis.core.i18n import _
from noesis.core.rooted import NAME

# Keys of training_config.yaml that don't reach the adapter: how it is computed, and what happens around and after it.
NOT_DECIDING = (
    "demo",
    "gguf",
    "tribunal",
    "judge_training",
    "modal",
    "output_name",
    "engine",
    "gradient_checkpointing",
    "compile",
    "packing",
    "save_every",
    "budget",
    "strength",
    "report_to",
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
    output_name: Annotated[str, Field(pattern=NAME)] = "noesis-philosopher-v1"
    method: Literal["sft", "dpo", "sft+dpo", "distill"] = "sft"
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
    seeds: Annotated[int, Field(ge=1, le=16)] = 1
    save_every: Annotated[str, Field(pattern=r"^(auto|[1-9]\d* steps?|\d+(\.\d+)? min(utes?)?)$")] = "auto"
    budget: BudgetSection = BudgetSection()
    report_to: tuple[Literal["tensorboard", "wandb", "trackio", "mlflow"], ...] = ()
    engine: Literal["noesis", "unsloth"] = "noesis"
    precision: Literal["auto", "fp8", "bf16", "nf4", "fp32"] = "auto"
    gradient_checkpointing: Literal["auto", "none", "selective", "full"] = "auto"
    compile: Literal["auto", True, False] = "auto"  # ignored; accepted because files of earlier versions have it
    packing: Literal["auto", True, False] = "auto"
    data: DataSection
    constitutional_ai: ConstitutionalSection = ConstitutionalSection()
    dpo: DpoSection = DpoSection()
    distill: DistillSection = DistillSection()
    replay: ReplaySection = ReplaySection()
    strength: StrengthSection = StrengthSection()
    tribunal: TribunalSection = TribunalSection()
    judge_training: JudgeTrainingSection = JudgeTrainingSection()
    gguf: GgufSection = GgufSection()
    demo: DemoSection = DemoSection()
    modal: ModalSection = ModalSection()

    @property
    def epochs(self) -> int:
        """Epochs of the part of training that produces the run's adapters."""
        return self.dpo.epochs if self.on_pairs else self.num_train_epochs

    @property
    def all_seeds(self) -> tuple[int, ...]:
        """The seeds of the adapters that are trained: `seed`, and those that follow it."""
        return tuple(range(self.seed, self.seed + self.seeds))

    @property
    def on_rows(self) -> bool:
        """Whether the method trains on the examples' answers, alone or first."""
        return self.method in ("sft", "sft+dpo")

    @property
    def on_pairs(self) -> bool:
        """Whether the method trains on pairs, alone or last."""
        return self.method in ("dpo", "sft+dpo")

    @model_validator(mode="after")
    def _method_fits(self) -> TrainingFile:
        if self.method != "sft" and self.engine == "unsloth":
            raise ValueError(
                _(
                    "method: {method} and engine: unsloth can't be combined: Unsloth trains with method: sft only; "
                    "set engine: noesis",
                    method=self.method,
                )
            )
        if self.method == "distill" and self.constitutional_ai.include_critique:
            raise ValueError(
                _(
                    "method: distill trains on the model's own answers, which have no critique before them: set "
                    "constitutional_ai.include_critique: false"
                )
            )
        if self.replay.kl_weight and self.engine == "unsloth":
            raise ValueError(_("replay.kl_weight and engine: unsloth can't be combined: set engine: noesis"))
        if self.replay.active and not self.on_rows:
            raise ValueError(
                _(
                    "replay applies to SFT, and method: {method} has no SFT part: set method: sft or sft+dpo, "
                    "or replay.file: null and replay.kl_weight: 0",
                    method=self.method,
                )
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
                _(
                    "training_config.yaml says precision: {precision} and lora_config.yaml says load_in_4bit: "
                    "{load_in_4bit}; set load_in_4bit: {other}, or precision: auto",
                    precision=precision,
                    load_in_4bit=str(quantization.load_in_4bit).lower(),
                    other=other,
                )
            )
        if precision == "nf4" and quantization.bnb_4bit_quant_type != "nf4":
            raise ValueError(
                _(
                    "training_config.yaml says precision: nf4 and lora_config.yaml says bnb_4bit_quant_type: "
                    "{bnb_4bit_quant_type}; "
                    "set bnb_4bit_quant_type: nf4, or precision: auto",
                    bnb_4bit_quant_type=quantization.bnb_4bit_quant_type,
                )
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
            del training["method"]
        if self.training.seeds == 1:
            del training["seeds"]
        if self.training.on_pairs:
            del training["dpo"]["pairs"]  # the content of the file decides, and the data's hash covers it
        else:
            del training["dpo"]
        if self.training.method != "distill":
            del training["distill"]
        replay = self.training.replay
        if not replay.active or not self.training.on_rows:
            del training["replay"]
        else:
            training["replay"] = _deciding_replay(replay)
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


def _deciding_replay(replay: ReplaySection) -> dict[str, Any]:
    """Of a user's file the content decides, and the data's hash covers it; early versions had the share alone."""
    settings: dict[str, Any] = {"share": replay.share}
    if replay.kl_weight:
        settings["kl_weight"] = replay.kl_weight
    if replay.by_base:
        settings |= {"file": SELF, "max_new_tokens": replay.max_new_tokens}
    return settings
