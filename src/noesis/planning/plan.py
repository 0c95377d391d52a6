"""`Plan`: what a run will do and what it is expected to take, as `noesis plan` prints it and the manifest stores it.

A plan is made before anything is loaded or paid for (`draft.py`, `by_method.py`); training obeys its `setup`.
Torch-free.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

from noesis.core.config import Config
from noesis.core.device import Device
from noesis.core.i18n import N_
from noesis.planning.memory import Memory
from noesis.planning.pricing import MachineOption, StageCost
from noesis.planning.search import SetupOption
from noesis.planning.setup import Setup


@dataclass(frozen=True)
class PriceList:
    """Where the prices of a plan come from."""

    date: str
    source: str

    def to_json(self) -> dict[str, str]:
        return asdict(self)

    @classmethod
    def from_json(cls, value: dict[str, str]) -> PriceList:
        return cls(**value)


@dataclass(frozen=True)
class PlanVariant:
    """The part of a plan that follows from its setup.

    sharded: the frozen base is spread over the GPUs
    precision: in words
    micro_batch: rows at a time
    accumulation: micro-batches of each GPU in an optimizer step
    start_seconds: to the first step
    seconds: of training, start included
    memory_bytes: expected peak, as the run will measure it
    needed_bytes: free memory that this takes, including what is not measured
    """

    setup: Setup
    sharded: bool
    precision: str
    micro_batch: int
    accumulation: int
    tokens_per_s: float
    start_seconds: float
    seconds: float
    memory: Memory
    memory_bytes: int
    needed_bytes: int
    fits: bool

    @classmethod
    def of(cls, option: SetupOption) -> PlanVariant:
        """The variant that trains with `option`."""
        setup = option.setup
        return cls(
            setup=setup,
            sharded=option.sharded,
            precision=N_(
                "{precision} base, {compute_dtype} arithmetic, float32 adapter",
                precision=setup.precision,
                compute_dtype=setup.compute_dtype,
            ),
            micro_batch=setup.micro_batch,
            accumulation=setup.sequences_per_step // max(setup.gpus, 1) // setup.micro_batch,
            tokens_per_s=round(option.tokens_per_s, 1),
            start_seconds=round(option.start_seconds, 1),
            seconds=round(option.seconds, 1),
            memory=option.memory.rounded(),
            memory_bytes=round(option.memory.total),
            needed_bytes=round(option.needed_bytes),
            fits=option.fits,
        )

    def to_json(self) -> dict[str, Any]:
        return {
            "setup": self.setup.to_json(),
            "sharded": self.sharded,
            "precision": self.precision,
            "micro_batch": self.micro_batch,
            "accumulation": self.accumulation,
            "tokens_per_s": self.tokens_per_s,
            "start_seconds": self.start_seconds,
            "seconds": self.seconds,
            "memory": self.memory.to_json(),
            "memory_bytes": self.memory_bytes,
            "needed_bytes": self.needed_bytes,
            "fits": self.fits,
        }

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> PlanVariant:
        return PlanVariant(
            setup=Setup.from_json(value["setup"]),
            sharded=value["sharded"],
            precision=value["precision"],
            micro_batch=value["micro_batch"],
            accumulation=value["accumulation"],
            tokens_per_s=value["tokens_per_s"],
            start_seconds=value["start_seconds"],
            seconds=value["seconds"],
            memory=Memory.from_json(value["memory"]),
            memory_bytes=value["memory_bytes"],
            needed_bytes=value["needed_bytes"],
            fits=value["fits"],
        )


@dataclass(frozen=True)
class Plan(PlanVariant):
    """What a run will do and what it is expected to take.

    rented: the device is paid for by the second
    relative_error: of the token counts; 0: counted with the model's own tokenizer
    stages: training first
    fallbacks: the variants that `next_smaller_plan` goes through
    sft: with `method: sft+dpo`, the plan of the first part; time and price of the whole contain it
    seeds: adapters that are trained; rows, steps and speed are of one, time and price of all
    """

    model: str
    parameters: int
    adapter_parameters: int
    r: int
    device: Device
    rented: bool
    rows: int
    tokens_per_epoch: int
    trained_tokens_per_epoch: int
    relative_error: float
    longest_row: int
    epochs: int
    steps: int
    reasons: tuple[str, ...]
    stages: tuple[StageCost, ...]
    usd: float
    prices: PriceList
    alternatives: tuple[MachineOption, ...]
    fallbacks: tuple[PlanVariant, ...]
    sft: Plan | None = None
    seeds: int = 1

    def to_json(self) -> dict[str, Any]:
        """The plan as the manifest stores it. The order of the keys never changes: the JSON is hashed as a whole."""
        return {
            "model": self.model,
            "parameters": self.parameters,
            "adapter_parameters": self.adapter_parameters,
            "r": self.r,
            "device": self.device.to_json(),
            "rented": self.rented,
            "rows": self.rows,
            "tokens_per_epoch": self.tokens_per_epoch,
            "trained_tokens_per_epoch": self.trained_tokens_per_epoch,
            "tokens_plus_minus": self.relative_error,
            "longest_row": self.longest_row,
            "epochs": self.epochs,
            "steps": self.steps,
            **super().to_json(),
            "reasons": list(self.reasons),
            "stages": [stage.to_json() for stage in self.stages],
            "usd": self.usd,
            "prices": self.prices.to_json(),
            "alternatives": [option.to_json() for option in self.alternatives],
            "fallbacks": [variant.to_json() for variant in self.fallbacks],
            "first": None if self.sft is None else self.sft.to_json(),
        } | ({} if self.seeds == 1 else {"seeds": self.seeds})  # so early plans keep their hash

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Plan:
        return cls(
            **vars(PlanVariant.from_json(value)),
            model=value["model"],
            parameters=value["parameters"],
            adapter_parameters=value["adapter_parameters"],
            r=value["r"],
            device=Device.from_json(value["device"]),
            rented=value["rented"],
            rows=value["rows"],
            tokens_per_epoch=value["tokens_per_epoch"],
            trained_tokens_per_epoch=value["trained_tokens_per_epoch"],
            relative_error=value["tokens_plus_minus"],
            longest_row=value["longest_row"],
            epochs=value["epochs"],
            steps=value["steps"],
            reasons=tuple(value["reasons"]),
            stages=tuple(StageCost.from_json(stage) for stage in value["stages"]),
            usd=value["usd"],
            prices=PriceList.from_json(value["prices"]),
            alternatives=tuple(MachineOption.from_json(option) for option in value["alternatives"]),
            fallbacks=tuple(PlanVariant.from_json(variant) for variant in value["fallbacks"]),
            sft=None if value.get("first") is None else Plan.from_json(value["first"]),
            seeds=value.get("seeds", 1),
        )

    @property
    def stage_seconds(self) -> float:
        """Seconds of all stages together."""
        return sum(stage.seconds for stage in self.stages)


def stored_plan(result: Mapping[str, Any] | None) -> Plan | None:
    """The plan in a run's manifest; None if there is none, or one of an early version without a setup."""
    return Plan.from_json(result) if result is not None and "setup" in result else None


def next_smaller_plan(plan: Plan) -> Plan | None:
    """The plan to continue with after running out of memory in spite of `plan`; None if nothing smaller is left.

    A step holds the same sequences, and the precision stays the same as long as it can.
    """
    if not plan.fallbacks:
        return None
    smaller, *rest = plan.fallbacks
    training, *others = plan.stages
    training = replace(training, seconds=smaller.seconds, usd=training.usd * smaller.seconds / training.seconds)
    return replace(
        plan,
        **vars(smaller),
        fallbacks=tuple(rest),
        stages=(training, *others),
        usd=round(sum(stage.usd for stage in (training, *others)), 4),
    )


def with_planned_storage(config: Config, plan: Plan | None) -> Config:
    """`config` with the base's storage and arithmetic as `plan` chose them, so that later stages read the same base."""
    if plan is None:
        return config
    setup = plan.setup
    stored = {"load_in_4bit": setup.precision == "nf4", "bnb_4bit_compute_dtype": setup.compute_dtype}
    return config.with_settings(quantization=stored, training={"precision": setup.precision})
