"""Make a plan: `noesis plan`, and the first thing that a run does.

`search.py` chooses the setup, `memory.py` and `speed.py` cost it, `pricing.py` prices it, `reasons.py` explains it.
"""

from __future__ import annotations

from typing import Any

from noesis.core.config import Config
from noesis.core.console import duration, size
from noesis.core.device import Device, measure_cpu_flops
from noesis.core.errors import TrainingError
from noesis.core.families.shape import Shape
from noesis.core.i18n import N_, _
from noesis.planning.gpus import prices
from noesis.planning.plan import Plan, PlanVariant, PriceList
from noesis.planning.pricing import other_machines, stage_costs
from noesis.planning.reasons import reasons
from noesis.planning.search import PlanningTask, enumerate_setups, fallbacks, fastest_fit
from noesis.planning.workload import Workload

ALL_AUTO: dict[str, Any] = {"precision": "auto", "gradient_checkpointing": "auto", "packing": "auto"}


def make_plan(
    config: Config, model: str, shape: Shape, work: Workload, device: Device, *, rented: bool = False
) -> Plan:
    """The plan of one training.

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
    """The plan of one training, whether it fits or not."""
    task = PlanningTask(config, shape, work, device, rented, measure_cpu_flops())
    found = enumerate_setups(task)
    chosen = fastest_fit(found)
    stages = tuple(stage_costs(task, chosen))
    return Plan(
        **vars(PlanVariant.of(chosen)),
        model=model,
        parameters=shape.parameters,
        adapter_parameters=task.adapter_weights,
        r=config.lora.r,
        device=device,
        rented=rented,
        rows=len(work.lengths),
        tokens_per_epoch=work.tokens,
        trained_tokens_per_epoch=work.trained,
        relative_error=work.relative_error,
        longest_row=work.longest,
        epochs=config.training.num_train_epochs,
        steps=task.steps,
        reasons=tuple(reasons(task, found, chosen)),
        stages=stages,
        usd=round(sum(stage.usd for stage in stages), 4),
        prices=PriceList(prices().date, prices().source),
        alternatives=tuple(other_machines(task)),
        fallbacks=tuple(PlanVariant.of(option) for option in fallbacks(found, chosen)),
        seeds=config.training.seeds,
    )


def require_fit(plan: Plan, config: Config, shape: Shape, work: Workload, device: Device) -> None:
    """Refuse a plan that does not fit.

    Raises:
        TrainingError: naming the nearest plan that does, with other settings or on another machine.
    """
    if plan.fits:
        return
    hints = [_nearest_settings(plan, config, shape, work, device)]
    affordable = [option for option in plan.alternatives if option.fits and option.usd > 0]
    if affordable:
        best = min(affordable, key=lambda option: option.usd)
        hints.append(
            N_(
                "or --gpu {device}: {precision}, {seconds}, {usd:.2f} USD",
                device=best.device,
                precision=best.precision,
                seconds=duration(best.seconds),
                usd=best.usd,
            )
        )
    raise TrainingError(
        _(
            "not enough memory: the plan needs {needed_bytes} and {name} has {memory_bytes} free; {hints}",
            needed_bytes=size(plan.needed_bytes),
            name=device.name,
            memory_bytes=size(device.memory_bytes),
            hints="; ".join(hints),
        )
    )


def _nearest_settings(plan: Plan, config: Config, shape: Shape, work: Workload, device: Device) -> str:
    """The settings with which it fits on the same device, or those that help most."""
    sequences = plan.setup.sequences_per_step
    one_at_a_time = {"per_device_train_batch_size": 1, "gradient_accumulation_steps": sequences}
    free = config.with_settings(quantization={"load_in_4bit": True}, training=ALL_AUTO | one_at_a_time)
    nearest = fastest_fit(enumerate_setups(PlanningTask(free, shape, work, device, plan.rented, measure_cpu_flops())))
    if not nearest.fits:
        return N_(
            "in training_config.yaml set per_device_train_batch_size: 1 and "
            "gradient_accumulation_steps: {sequences}, lower max_length, or choose a smaller --model",
            sequences=sequences,
        )
    setup = nearest.setup
    return N_(
        "the nearest plan that fits needs {needed_bytes}: "
        "in lora_config.yaml load_in_4bit: {load_in_4bit}; "
        "in training_config.yaml precision and packing: auto, "
        "gradient_checkpointing: {gradient_checkpointing}, per_device_train_batch_size: 1, "
        "gradient_accumulation_steps: {sequences}",
        needed_bytes=size(nearest.needed_bytes),
        load_in_4bit="true" if setup.precision == "nf4" else "false",
        gradient_checkpointing=setup.gradient_checkpointing,
        sequences=sequences,
    )


def choose_demo_rank_and_epochs(config: Config, shape: Shape, work: Workload, device: Device) -> tuple[int, int]:
    """(rank, epochs) for `noesis demo`: the largest rank whose single epoch fits the time, then the most that fit."""
    demo = config.training.demo
    limit, flops = demo.train_minutes * 60, measure_cpu_flops()

    def seconds(r: int, epochs: int) -> float:
        tried = config.with_settings(lora={"r": r}, training={"num_train_epochs": epochs})
        return fastest_fit(enumerate_setups(PlanningTask(tried, shape, work, device, cpu_flops=flops))).seconds

    r = next((r for r in demo.r if seconds(r, 1) <= limit), min(demo.r))
    epochs = max((e for e in range(1, demo.max_epochs + 1) if seconds(r, e) <= limit), default=1)
    return r, epochs
