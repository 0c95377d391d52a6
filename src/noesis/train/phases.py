"""What a run trains, by its method: `sft` on rows, `dpo` on pairs, `sft+dpo` on one after the other; and the plan of each. Torch-free."""

from __future__ import annotations

from dataclasses import replace

from noesis.config import Config
from noesis.device import Device
from noesis.train.pairs import Preferences
from noesis.train.plan import Plan, make_plan
from noesis.train.shapes import Shape
from noesis.train.work import Work

FORWARD = 0.5  # of a training step's time that its forward pass alone takes


def for_preferences(config: Config) -> Config:
    """`config` with the epochs of preference training where the planner looks for them."""
    return config.model_copy(update={"training": config.training.model_copy(update={"num_train_epochs": config.training.dpo.epochs})})


def preference_plan(config: Config, model: str, shape: Shape, data: Preferences, device: Device, *, rented: bool = False) -> Plan:
    """The plan of preference training: a pair is planned as one sequence, and the reference's passes come on top. One card trains.

    Raises:
        TrainingError: it does not fit.
    """
    one = replace(device, cards=min(device.cards, 1))
    plan = make_plan(for_preferences(config), model, shape, data.work, one, rented=rented)
    return with_reference(replace(plan, device=device.as_json()), data.work, sum(pair.tokens for pair in data.held_out))


def with_reference(plan: Plan, work: Work, held_out_tokens: int) -> Plan:
    """`plan` with the time that the reference's pass takes before the first step, and measuring the held-out pairs after each epoch."""
    seconds = FORWARD * (work.tokens + held_out_tokens * (1 + plan.epochs)) / plan.tokens_per_s
    training, *others = plan.stages
    usd = training["usd"] * seconds / training["seconds"]
    training = training | {"seconds": training["seconds"] + seconds, "usd": training["usd"] + usd}
    return replace(
        plan,
        start_seconds=round(plan.start_seconds + seconds, 1),
        seconds=round(plan.seconds + seconds, 1),
        usd=round(plan.usd + usd, 4),
        stages=[training, *others],
        reasons=[*plan.reasons, f"reference: its log-probabilities are computed once, before the first step; with measuring held-out pairs {seconds:.0f} s"],
    )
