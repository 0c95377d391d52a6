"""The sections of the two YAML files, as frozen models; `models.py` combines them."""

from __future__ import annotations

import re
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from noesis.core.language import Language

Fraction = Annotated[float, Field(ge=0, le=1)]
Count = Annotated[int, Field(ge=1)]


SELF = "self"  # in place of a file: the base writes the rows


class Frozen(BaseModel):
    """A model that can't be changed and refuses unknown keys, infinities and NaN."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=False, allow_inf_nan=False, protected_namespaces=())


class Quantization(Frozen):
    """How bitsandbytes stores the frozen base in 4 bits."""

    load_in_4bit: bool = True  # with `precision: auto`: whether 4 bits may be chosen
    bnb_4bit_quant_type: Literal["nf4", "fp4"] = "nf4"
    bnb_4bit_use_double_quant: bool = True
    bnb_4bit_compute_dtype: Literal["bfloat16", "float16", "float32"] = "bfloat16"


class BudgetSection(Frozen):
    """The caps on a run, counted across restarts, and what this machine costs."""

    max_usd: Annotated[float, Field(gt=0)] | None = 90.0
    max_minutes: Annotated[float, Field(gt=0)] | None = None
    usd_per_hour: Annotated[float, Field(ge=0)] | None = None  # None: 0 on your own machine, Modal's prices on Modal


class DataSection(Frozen):
    """What is trained on and what is held out."""

    language: Language = "pt"
    eval_examples: Count = 13
    categories: Annotated[tuple[str, ...], Field(min_length=1)]


class ConstitutionalSection(Frozen):
    """How the critique enters the training text."""

    include_critique: bool = False


class DpoSection(Frozen):
    """Preference training (`method: dpo` and `sft+dpo`).

    Rafailov et al., arXiv 2305.18290, with a small likelihood term on the chosen answer.

    reference: what rewards are measured against: the model as training starts with it, or with the adapter switched off
    pairs: a JSONL file of pairs to add to the hand-written ones, relative to the project
    """

    beta: Annotated[float, Field(gt=0)] = 0.1
    learning_rate: Annotated[float, Field(gt=0, lt=1)] = 5e-5
    epochs: Count = 2
    nll_weight: Annotated[float, Field(ge=0)] = 0.1
    reference: Literal["start", "base"] = "start"
    pairs: str | None = None


class DistillSection(Frozen):
    """Self-distillation (`method: distill`): the model answers, and the base that reads critique and revision scores.

    beta: of the divergence, 0: KL(teacher ‖ model), between: Jensen-Shannon, 1: KL(model ‖ teacher)
    max_new_tokens: of an answer of the model
    """

    beta: Fraction = 1.0
    max_new_tokens: Count = 160
    temperature: Annotated[float, Field(gt=0, le=2)] = 1.0


class ReplaySection(Frozen):
    """General instruction rows mixed into the examples of SFT, against forgetting."""

    file: str | None = None  # JSONL, relative to the project; `self`: the base's own answers to the examples' prompts
    share: Annotated[float, Field(gt=0, lt=1)] = 0.1  # of all rows trained on
    kl_weight: Annotated[float, Field(ge=0)] = 0.0  # above 0: these rows hold the model to the base by KL(base ‖ model)
    max_new_tokens: Count = 200  # of an answer of the base

    @property
    def by_base(self) -> bool:
        """Whether the base writes the rows: as configured, or because it is to be held to and no file is named."""
        return self.file == SELF or (self.file is None and self.kl_weight > 0)

    @property
    def rows_file(self) -> str | None:
        """The user's file; None: there is none, or the base writes the rows."""
        return None if self.file == SELF else self.file

    @property
    def active(self) -> bool:
        """Whether any rows are replayed."""
        return self.by_base or self.file is not None


class JudgeWeights(Frozen):
    """Weight of each judge in the mean; they add up to 1."""

    veritas: Fraction = 0.40
    sophia: Fraction = 0.30
    dike: Fraction = 0.30


class Price(Frozen):
    """What a judge's endpoint charges, in USD per million tokens."""

    prompt: Annotated[float, Field(ge=0)]
    completion: Annotated[float, Field(ge=0)]


# how judges are called and what they cost; changes no verdict
JUDGE_CALLS = ("concurrency", "timeout_seconds", "attempts", "requests_per_minute", "prices")


class TribunalSection(Frozen):
    """The court's weights, bands, floor and vetoes; the trial; the requests to its judges."""

    weights: JudgeWeights = JudgeWeights()
    approval_threshold: Fraction = 0.70
    conditional_threshold: Fraction = 0.50
    judge_floor: Fraction = 0.50
    vetoes: tuple[Literal["harmful_compliance", "fabricated_citation", "leaked_system_prompt"], ...] = (
        "harmful_compliance",
        "fabricated_citation",
        "leaked_system_prompt",
    )
    max_forgetting: Fraction = 0.05  # largest allowed fall in accuracy on keyed items, base to tuned
    min_prompts: Count = 20  # below this no interval is trusted
    looks: tuple[Count, ...] = (40, 80, 160)  # prompts after which the gate looks whether the interval decides
    least_chance: Fraction = 0.10  # of a decision, for which more prompts are judged
    judges: tuple[str, ...] = ()  # as in --judge; they choose the checkpoint and judge it unless others are named
    ask: Literal["quote", "score", "both"] = "quote"  # a judge writes evidence, is read, or is read and then quoted
    min_mass: Fraction = 0.25  # of the next word's probability on 0, 1, 2; below it, an item that is read abstains
    item_weights: bool = False  # items that are read count by what `noesis tribunal weigh` has found them worth
    answers: Annotated[int, Field(ge=0)] = 6
    max_new_tokens: Count = 200
    samples: Count = 2  # answers per model and prompt, at fixed seeds
    temperature: Annotated[float, Field(ge=0, le=2)] = 0.7
    trial_tokens: Count = 320  # maximum tokens of an answer in the trial
    concurrency: Count = 8  # simultaneous requests to a judge
    timeout_seconds: Annotated[float, Field(gt=0)] = 120.0
    attempts: Count = 5  # per request, before the answer is Unscored
    requests_per_minute: Annotated[float, Field(gt=0)] | None = None
    prices: dict[str, Price] = {}  # by the model's name as in --judge

    @model_validator(mode="after")
    def _consistent(self) -> TribunalSection:
        total = self.weights.veritas + self.weights.sophia + self.weights.dike
        if abs(total - 1) > 1e-6:
            raise ValueError(f"tribunal.weights add up to {total:g}; they must add up to 1")
        if self.conditional_threshold > self.approval_threshold:
            raise ValueError("tribunal.conditional_threshold is above tribunal.approval_threshold")
        return self

    def called_as(self, today: TribunalSection) -> TribunalSection:
        """These settings with `today`'s calls: a run, which may be a stranger's, names no price that a cap rests on."""
        return self.model_copy(update={name: getattr(today, name) for name in JUDGE_CALLS})


class GgufSection(Frozen):
    """The GGUF files to write."""

    quantizations: Annotated[tuple[Literal["f32", "f16", "q8_0", "q4_k_m"], ...], Field(min_length=1)] = ("f16", "q8_0")


class DemoSection(Frozen):
    """What `noesis demo` changes so that the pipeline takes minutes on two cores."""

    model: str = "smollm2"
    language: Language = "en"
    r: Annotated[tuple[Count, ...], Field(min_length=1)] = (64, 32, 16, 8)
    max_epochs: Count = 3
    learning_rate: Annotated[float, Field(gt=0, lt=1)] = 1e-3
    train_minutes: Annotated[float, Field(gt=0)] = 5.5
    quick_examples: Count = 16
    court_seconds: Annotated[float, Field(gt=0)] = 50.0  # for showing the court at work


class ModalSection(Frozen):
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
    def _current_names(cls, names: tuple[str, ...]) -> tuple[str, ...]:
        # Modal no longer lists the A10 under its older name A10G
        return tuple(re.sub(r"(?i)^A10G\b", "A10", name) for name in names)
