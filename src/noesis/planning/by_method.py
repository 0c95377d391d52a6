"""The plan of each training method: sft, dpo, and one after the other."""

from __future__ import annotations

from dataclasses import replace

from noesis.core.config import Config
from noesis.core.device import Device
from noesis.planning.model_shapes import Shape
from noesis.planning.plan import Plan, draft_plan
from noesis.planning.workload import Workload, Workloads

FORWARD = 0.5  # of a training step's time that its forward pass alone takes


def plan_of(
    config: Config, model: str, shape: Shape, workloads: Workloads, device: Device, *, rented: bool = False
) -> Plan:
    """The plan of the run's method, whether it fits or not. Of `sft+dpo` it is that of the second part, with the first one's in it."""
    if workloads.pairs is None:
        return draft_plan(config, model, shape, workloads.sft or Workload((), 0), device, rented=rented)
    if workloads.sft is None:
        return preference_plan(config, model, shape, workloads, device, rented=rented)
    first = draft_plan(config, model, shape, workloads.sft, replace(device, cards=min(device.cards, 1)), rented=rented)
    # both parts on one base: an adapter is trained further on what it began on
    quantization = config.lora.quantization.model_copy(update={"load_in_4bit": first.setup.precision == "nf4"})
    same = {
        "lora": config.lora.model_copy(update={"quantization": quantization}),
        "training": config.training.model_copy(update={"precision": first.setup.precision}),
    }
    second = preference_plan(config.model_copy(update=same), model, shape, workloads, device, rented=rented)
    training, *others = second.stages
    before = first.stages[0]
    training = training | {"seconds": training["seconds"] + before["seconds"], "usd": training["usd"] + before["usd"]}
    return replace(
        second,
        first=replace(first, alternatives=[], device=device.as_json()).as_json(),
        seconds=round(second.seconds + first.seconds, 1),
        usd=round(second.usd + before["usd"], 4),
        fits=first.fits and second.fits,
        stages=[training, *others],
        reasons=[
            *second.reasons,
            f"first SFT: {first.rows} rows, {first.steps} steps, {first.seconds:.0f} s, which time and price contain",
        ],
    )


def preference_plan(
    config: Config, model: str, shape: Shape, workloads: Workloads, device: Device, *, rented: bool = False
) -> Plan:
    """The plan of preference training: a pair is planned as one sequence, and the reference's passes come on top. One card trains."""
    assert workloads.pairs is not None
    work = workloads.pairs
    one = replace(device, cards=min(device.cards, 1))
    epochs = config.training.model_copy(update={"num_train_epochs": config.training.dpo.epochs})
    plan = draft_plan(config.model_copy(update={"training": epochs}), model, shape, work, one, rented=rented)
    seconds = FORWARD * (work.tokens + workloads.held_out_tokens * (1 + plan.epochs)) / plan.tokens_per_s
    training, *others = plan.stages
    usd = training["usd"] * seconds / training["seconds"]
    reasons = [f"reference: computed once, before the first step; with measuring the held-out pairs {seconds:.0f} s"]
    if device.cards > 1:
        reasons.append(f"cards: 1 of {device.cards}; preference training runs on one")
    return replace(
        plan,
        device=device.as_json(),
        start_seconds=round(plan.start_seconds + seconds, 1),
        seconds=round(plan.seconds + seconds, 1),
        usd=round(plan.usd + usd, 4),
        stages=[training | {"seconds": training["seconds"] + seconds, "usd": training["usd"] + usd}, *others],
        reasons=[*plan.reasons, *reasons],
    )
