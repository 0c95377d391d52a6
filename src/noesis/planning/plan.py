"""`noesis plan`: does it fit, in which precision and with what else; tokens, memory, time and USD by stage, here and elsewhere.

Torch-free, and made before anything is loaded or paid for. Training starts from the plan, obeys its `setup`, and leaves what happened
beside it. `choose.py` picks the setup, `memory.py` and `speed.py` cost it, `quote.py` prices it, `reasons.py` says why.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from typing import Any

from noesis.core.config import Config
from noesis.core.console import duration, size
from noesis.core.device import Device, measure_cpu_flops
from noesis.core.errors import TrainingError
from noesis.planning.gpus import prices
from noesis.planning.model_shapes import Shape, read_shape
from noesis.planning.precision import compute_dtype
from noesis.planning.pricing import other_machines, stage_costs
from noesis.planning.reasons import reasons
from noesis.planning.search import PlanningTask, SetupOption, enumerate_setups, fallbacks, fastest_fit
from noesis.planning.setup import Setup
from noesis.planning.workload import Workload

__all__ = [
    "Plan",
    "choose_demo_rank_and_epochs",
    "compute_dtype",
    "draft_plan",
    "make_plan",
    "next_smaller_plan",
    "read_shape",
    "require_fit",
    "with_planned_storage",
]

SWITCHES_OFF: dict[str, Any] = {"precision": "auto", "gradient_checkpointing": "auto", "packing": "auto"}


@dataclass(frozen=True)
class Plan:
    """What a run will do and what it is expected to take."""

    model: str
    parameters: int
    adapter_parameters: int
    r: int
    device: dict[str, Any]
    rented: bool  # the device is paid for by the second
    rows: int
    tokens_per_epoch: int
    trained_tokens_per_epoch: int
    tokens_plus_minus: float  # relative error of the counts; 0: counted with the model's own tokenizer
    longest_row: int
    epochs: int
    steps: int
    setup: Setup
    sharded: bool  # the frozen base is spread over the cards
    precision: str  # in words
    micro_batch: int  # rows at a time
    accumulation: int  # micro-batches of each card in a step of the optimizer
    tokens_per_s: float
    start_seconds: float  # to the first step
    seconds: float  # of training, start included
    memory: dict[str, float]  # bytes by term
    memory_bytes: float  # expected peak, as the run will measure it
    needed_bytes: float  # free memory that it takes, with what the measurement does not see
    fits: bool
    reasons: list[str]
    stages: list[dict[str, Any]]
    usd: float
    prices: dict[str, str]
    alternatives: list[dict[str, Any]]
    fallbacks: list[dict[str, Any]]  # what `smaller` goes through
    first: dict[str, Any] | None = None  # of `method: sft+dpo`: the plan of its first part

    def as_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> Plan:
        return cls(**{**value, "setup": Setup(**value["setup"])})


def make_plan(
    config: Config, model: str, shape: Shape, work: Workload, device: Device, *, rented: bool = False
) -> Plan:
    """The plan of one run.

    Args:
        rented: the device is not here but paid for by the second.

    Raises:
        TrainingError: it does not fit into the device's memory; the message names the nearest plan that does.
    """
    plan = draft_plan(config, model, shape, work, device, rented=rented)
    require_fit(plan, config, shape, work, device)
    return plan


def draft_plan(
    config: Config, model: str, shape: Shape, work: Workload, device: Device, *, rented: bool = False
) -> Plan:
    """The plan of one run, whether it fits or not."""
    task = PlanningTask(config, shape, work, device, rented, measure_cpu_flops())
    found = enumerate_setups(task)
    chosen = fastest_fit(found)
    priced = stage_costs(task, chosen)
    p = prices()
    plan = Plan(
        model=model,
        parameters=shape.parameters,
        adapter_parameters=task.adapter,
        r=config.lora.r,
        device=device.as_json(),
        rented=rented,
        rows=len(work.lengths),
        tokens_per_epoch=work.tokens,
        trained_tokens_per_epoch=work.trained,
        tokens_plus_minus=work.relative_error,
        longest_row=work.longest,
        epochs=config.training.num_train_epochs,
        steps=task.steps,
        **_of(chosen, device),
        reasons=reasons(task, found, chosen),
        stages=[asdict(stage) for stage in priced],
        usd=round(sum(stage.usd for stage in priced), 4),
        prices={"date": p.date, "source": p.source},
        alternatives=other_machines(task),
        fallbacks=[],
    )
    return replace(plan, fallbacks=[_stored(option, device) for option in fallbacks(found, chosen)])


def require_fit(plan: Plan, config: Config, shape: Shape, work: Workload, device: Device) -> None:
    """Refuse a plan that does not fit.

    Raises:
        TrainingError: naming the nearest plan that does, here with other settings or on another machine.
    """
    if plan.fits:
        return
    quantization = config.lora.quantization.model_copy(update={"load_in_4bit": True})
    one_by_one = {"per_device_train_batch_size": 1, "gradient_accumulation_steps": plan.setup.sequences_per_step}
    training = config.training.model_copy(update=SWITCHES_OFF | one_by_one)
    free = config.model_copy(
        update={"lora": config.lora.model_copy(update={"quantization": quantization}), "training": training}
    )
    here = fastest_fit(enumerate_setups(PlanningTask(free, shape, work, device, plan.rented, 1e11)))
    elsewhere = min((a for a in plan.alternatives if a["fits"] and a["usd"] > 0), key=lambda a: a["usd"], default=None)
    if here.fits:
        s = here.setup
        hint = (
            f"the nearest plan that fits needs {size(here.memory.needed(card=device.kind == 'cuda'))}: "
            f"in lora_config.yaml load_in_4bit: {'true' if s.precision == 'nf4' else 'false'}; "
            "in training_config.yaml precision and packing: auto, "
            f"gradient_checkpointing: {s.gradient_checkpointing}, per_device_train_batch_size: 1, gradient_accumulation_steps: {s.sequences_per_step}"
        )
    else:
        hint = "in training_config.yaml set per_device_train_batch_size: 1 and "
        hint += f"gradient_accumulation_steps: {plan.setup.sequences_per_step}, lower max_length, or choose a smaller --model"
    if elsewhere is not None:
        hint += f"; or --gpu {elsewhere['device']}: {elsewhere['precision']}, {duration(elsewhere['seconds'])}, {elsewhere['usd']:.2f} USD"
    raise TrainingError(
        f"not enough memory: the plan needs {size(plan.needed_bytes)} and {device.name} has {size(device.memory_bytes)} free; {hint}"
    )


def next_smaller_plan(plan: Plan) -> Plan | None:
    """The next plan down, for a run that ran out of memory in spite of its plan; None when nothing smaller is left.

    A step holds the same sequences. The precision stays the same as long as it can; whoever trains on stores the plan that was used.
    """
    if not plan.fallbacks:
        return None
    first, *rest = plan.fallbacks
    lower = replace(plan, **{**first, "setup": Setup(**first["setup"])}, fallbacks=rest)
    training, *others = plan.stages
    training = training | {"seconds": lower.seconds, "usd": training["usd"] * lower.seconds / training["seconds"]}
    return replace(lower, stages=[training, *others], usd=round(sum(stage["usd"] for stage in (training, *others)), 4))


def with_planned_storage(config: Config, plan: dict[str, Any] | None) -> Config:
    """`config` with the storage and arithmetic of the base that `plan` settled on, so that later stages read what was trained against."""
    if plan is None or "setup" not in plan:
        return config
    chosen = {
        "load_in_4bit": plan["setup"]["precision"] == "nf4",
        "bnb_4bit_compute_dtype": plan["setup"]["compute_dtype"],
    }
    training = config.training.model_copy(update={"precision": plan["setup"]["precision"]})
    lora = config.lora.model_copy(update={"quantization": config.lora.quantization.model_copy(update=chosen)})
    return config.model_copy(update={"lora": lora, "training": training})


def _of(option: SetupOption, device: Device) -> dict[str, Any]:
    """The fields of a plan that are its option's."""
    setup = option.setup
    return {
        "setup": setup,
        "sharded": option.sharded,
        "precision": _words(setup),
        "micro_batch": setup.micro_batch,
        "accumulation": setup.sequences_per_step // max(setup.cards, 1) // setup.micro_batch,
        "tokens_per_s": round(option.tokens_per_s, 1),
        "start_seconds": round(option.start_seconds, 1),
        "seconds": round(option.seconds, 1),
        "memory": {name: float(round(value)) for name, value in asdict(option.memory).items()},
        "memory_bytes": round(option.memory.total),
        "needed_bytes": round(option.memory.needed(card=device.kind == "cuda")),
        "fits": option.fits,
    }


def _stored(option: SetupOption, device: Device) -> dict[str, Any]:
    return {**_of(option, device), "setup": asdict(option.setup)}


def _words(setup: Setup) -> str:
    return f"{setup.precision} base, {setup.compute_dtype} arithmetic, float32 adapter"


def choose_demo_rank_and_epochs(config: Config, shape: Shape, work: Workload, device: Device) -> tuple[int, int]:
    """(rank, epochs) for `noesis demo`: the largest rank whose single epoch fits the time, then as many epochs as fit."""
    demo = config.training.demo
    budget = demo.train_minutes * 60
    flops = measure_cpu_flops()

    def seconds(r: int, epochs: int) -> float:
        lora = config.lora.model_copy(update={"r": r})
        training = config.training.model_copy(update={"num_train_epochs": epochs})
        return fastest_fit(
            enumerate_setups(
                PlanningTask(
                    config.model_copy(update={"lora": lora, "training": training}), shape, work, device, cpu_flops=flops
                )
            )
        ).seconds

    r = next((r for r in demo.r if seconds(r, 1) <= budget), min(demo.r))
    epochs = max((e for e in range(1, demo.max_epochs + 1) if seconds(r, e) <= budget), default=1)
    return r, epochs
