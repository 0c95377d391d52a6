"""The sections of the two YAML files, as frozen models; `models.py` combines them."""

from __future__ import annotations

import re
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from noesis.core.i18n import _
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
    brl_per_usd: Annotated[float, Field(gt=0)] | None = None  # sums are then told in R$ as well


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


STRONGEST = 2.0  # beyond it an adapter is far from anything that was trained
Strength = Annotated[float, Field(le=STRONGEST)]


class StrengthSection(Frozen):
    """How strongly the trained adapter is used: its update of the base times a number.

    fixed: this strength; None: the largest of the grid whose losses stay within `tribunal.max_forgetting`
    grid: the strengths that are measured
    pairs, items, answers: held-out pairs, keyed items and answers of the base's that each is measured on
    """

    fixed: Strength | None = None
    grid: Annotated[tuple[Strength, ...], Field(min_length=1, max_length=20)] = (0.25, 0.5, 0.75, 1.0, 1.25)
    pairs: Count = 8
    items: Count = 24
    answers: Count = 4
    answer_tokens: Count = 32

    @model_validator(mode="after")
    def _adapter_is_on(self) -> StrengthSection:
        if any(x <= 0 for x in (*self.grid, *([] if self.fixed is None else [self.fixed]))):
            raise ValueError(
                _(
                    "a strength of 0 is the base itself and one below 0 its opposite: "
                    "give a number above 0, at most {strongest:g}",
                    strongest=STRONGEST,
                )
            )
        if list(self.grid) != sorted(set(self.grid)):
            raise ValueError(_("strength.grid must ascend"))
        return self


class JudgeWeights(Frozen):
    """Weight of each judge in the mean; they add up to 1."""

    veritas: Fraction = 0.40
    sophia: Fraction = 0.30
    dike: Fraction = 0.30


class Price(Frozen):
    """What a judge's endpoint charges, in USD per million tokens."""

    prompt: Annotated[float, Field(ge=0)]
    completion: Annotated[float, Field(ge=0)]


class RewardSection(Frozen):
    """A reward model beside the judges: one number for each answer, and nothing quoted.

    path: as in `reward:NAME`: the folder of one, relative to the project, or a Hub name
    role: tie_breaker: where an absent verdict leaves an answer between two bands, the reward stands for it;
        seat: a fourth score in the mean
    weight: of the seat in the mean; the three judges share the rest as before
    """

    path: str | None = None
    role: Literal["off", "tie_breaker", "seat"] = "off"
    weight: Annotated[float, Field(gt=0, lt=0.5)] = 0.2

    @model_validator(mode="after")
    def _named(self) -> RewardSection:
        if self.role != "off" and self.path is None:
            raise ValueError(
                _("tribunal.reward.role is {role}, and tribunal.reward.path names no reward model", role=self.role)
            )
        return self


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
    reward: RewardSection = RewardSection()
    answers: Annotated[int, Field(ge=0)] = 6
    kept_items: Annotated[int, Field(ge=0)] = 160  # small tasks that show what training broke
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
            raise ValueError(_("tribunal.weights add up to {total:g}; they must add up to 1", total=total))
        if self.conditional_threshold > self.approval_threshold:
            raise ValueError(_("tribunal.conditional_threshold is above tribunal.approval_threshold"))
        return self

    def called_as(self, today: TribunalSection) -> TribunalSection:
        """These settings with `today`'s calls and reward model: a run, which may be a stranger's, names no price that a
        cap rests on, and no model that would be loaded or downloaded.
        """
        return self.model_copy(update={name: getattr(today, name) for name in (*JUDGE_CALLS, "reward")})


class JudgeTrainingSection(Frozen):
    """A reward model of the project's own, `noesis tribunal train-judge`.

    method: lora: an adapter and a head by gradient descent; probe: a head alone, on the states of the frozen base
    sources: examples: the weak against the revised answer, cut to one length; pairs: the file in `dpo: pairs`;
        planted: faults that code puts into good answers
    max_planted: how many of the planted pairs, evenly over kinds and languages; None: all
    depth: share of the base's layers that a probe computes; the middle ones tell more than the last
    pool: the state of the answer's last token, or the mean over the answer's tokens
    max_tokens: of a conversation; longer answers are cut at the end of a sentence
    held_out: share of the prompts that are only measured
    centring: weight of the squared sum of a pair's rewards
    """

    method: Literal["lora", "probe"] = "probe"
    sources: Annotated[tuple[Literal["examples", "pairs", "planted"], ...], Field(min_length=1)] = (
        "examples",
        "planted",
    )
    max_planted: Count | None = 200
    r: Count = 8
    lora_alpha: Count = 16
    epochs: Count = 2
    learning_rate: Annotated[float, Field(gt=0, lt=1)] = 2e-4
    depth: Annotated[float, Field(gt=0, le=1)] = 0.8
    pool: Literal["last", "mean"] = "mean"
    max_tokens: Annotated[int, Field(ge=64)] = 256
    held_out: Annotated[float, Field(gt=0, lt=1)] = 0.15
    centring: Annotated[float, Field(ge=0)] = 0.01


class GgufSection(Frozen):
    """The GGUF files to write."""

    quantizations: Annotated[tuple[Literal["f32", "f16", "q8_0", "q4_k_m"], ...], Field(min_length=1)] = ("f16", "q8_0")


class DemoSection(Frozen):
    """What `noesis demo` changes so that the pipeline takes minutes on two cores."""

    model: str = "smollm2"
    language: Language | None = None  # where it has as many examples as data.language, else that; None: that
    r: Annotated[tuple[Count, ...], Field(min_length=1)] = (64, 32, 16, 8)
    max_epochs: Count = 3
    learning_rate: Annotated[float, Field(gt=0, lt=1)] = 1e-3
    train_minutes: Annotated[float, Field(gt=0)] = 5.5
    quick_examples: Count = 16
    kept_items: Annotated[int, Field(ge=0)] = 48
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
