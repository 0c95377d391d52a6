"""The plan of each training method: `sft`, `dpo`, and `sft+dpo`, which is one after the other."""

from __future__ import annotations

from dataclasses import replace

from noesis.core.config import Config
from noesis.core.device import Device
from noesis.core.families.shape import Shape
from noesis.core.i18n import N_
from noesis.planning.draft import draft_plan
from noesis.planning.plan import Plan
from noesis.planning.pricing import own_answer_seconds, sampled_seconds
from noesis.planning.search import PlanningTask
from noesis.planning.workload import PairWorkload, Workload, Workloads

FORWARD_SHARE = 0.5  # of a training step's time that the forward pass alone takes


def plan_of(
    config: Config, model: str, shape: Shape, workloads: Workloads, device: Device, *, rented: bool = False
) -> Plan:
    """The plan of the run's method, whether it fits or not.

    With `sft+dpo` it is the plan of the second part, and `Plan.sft` is that of the first.
    """
    if workloads.pairs is None:
        gpus = 1 if workloads.last.sampled else None
        return sft_plan(config, model, shape, workloads.last, device, rented=rented, gpus=gpus)
    if workloads.sft is None:
        return preference_plan(config, model, shape, workloads.pairs, device, rented=rented)
    first = sft_plan(config, model, shape, workloads.sft, device, rented=rented, gpus=1)
    # both parts use the same base: an adapter continues on what it started on
    config = config.with_settings(
        quantization={"load_in_4bit": first.setup.precision == "nf4"}, training={"precision": first.setup.precision}
    )
    second = preference_plan(config, model, shape, workloads.pairs, device, rented=rented)
    summary = N_(
        "SFT: {rows} rows, {steps} steps, {seconds:.0f} s, included in time and price",
        rows=first.rows,
        steps=first.steps,
        seconds=first.seconds,
    )
    training = first.stages[0]
    return replace(
        _with_more_training(second, training.seconds, training.usd),
        sft=replace(first, alternatives=()),
        seconds=round(second.seconds + first.seconds, 1),
        fits=first.fits and second.fits,
        reasons=(*second.reasons, summary),
    )


def sft_plan(
    config: Config,
    model: str,
    shape: Shape,
    work: Workload,
    device: Device,
    *,
    rented: bool = False,
    gpus: int | None = None,
) -> Plan:
    """The plan of supervised training, with what the base adds: its own answers, and reading what it holds to.

    Args:
        gpus: how many are used at most; None: all.
    """
    used = device if gpus is None else replace(device, gpus=min(device.gpus, gpus))
    plan = replace(draft_plan(config, model, shape, work, used, rented=rented), device=device)
    reasons = []
    writing = reading = 0.0
    if work.own_answers:
        writing = own_answer_seconds(PlanningTask(config, shape, work, used, rented), work.own_answers)
        answers = N_("{count:,} answers", count=work.own_answers)
        reasons.append(
            N_(
                "replay: the base writes {answers} first, counted at full length; {writing:.0f} s",
                answers=answers,
                writing=writing,
            )
        )
    if work.sampled:
        tokens, task = config.training.distill.max_new_tokens, PlanningTask(config, shape, work, used, rented)
        steps = max(1, plan.steps)
        sampling = steps * sampled_seconds(task, work.sampled * plan.epochs / steps, tokens)
        reading = FORWARD_SHARE * work.anchored * plan.epochs / plan.tokens_per_s
        reasons += [
            N_(
                "distill: answers of {tokens} tokens at most, sampled at every step; {sampling:.0f} s",
                tokens=tokens,
                sampling=sampling,
            ),
            N_("distill: the base reads them after critique and revision; {reading:.0f} s", reading=reading),
        ]
        if device.gpus > 1:
            reasons.append(N_("GPUs: 1 of {gpus}; self-distillation runs on one", gpus=device.gpus))
        reading += sampling
    elif work.anchored:
        reading = FORWARD_SHARE * work.anchored * plan.epochs / plan.tokens_per_s
        reasons.append(
            N_(
                "kl_weight: the base reads {anchored:,} tokens of an epoch as well; {reading:.0f} s",
                anchored=work.anchored,
                reading=reading,
            )
        )
    if not reasons:
        return plan
    training = plan.stages[0]
    more = writing + reading
    return replace(
        _with_more_training(plan, more, training.usd * more / training.seconds),
        start_seconds=round(plan.start_seconds + writing, 1),
        seconds=round(plan.seconds + more, 1),
        reasons=(*plan.reasons, *reasons),
    )


def preference_plan(
    config: Config, model: str, shape: Shape, pairs: PairWorkload, device: Device, *, rented: bool = False
) -> Plan:
    """The plan of preference training, which runs on one GPU.

    A pair is planned as one sequence, and the passes of the reference are added.
    """
    config = config.with_settings(training={"num_train_epochs": config.training.dpo.epochs})
    plan = _on_one_gpu(config, model, shape, pairs, device, rented=rented)
    # without gradients: the reference once over all pairs, and the held-out pairs after every epoch
    evaluated = pairs.tokens + pairs.held_out_tokens * (1 + plan.epochs)
    seconds = FORWARD_SHARE * evaluated / plan.tokens_per_s
    reasons = [
        N_("reference: computed once before the first step; {seconds:.0f} s with the held-out pairs", seconds=seconds)
    ]
    if device.gpus > 1:
        reasons.append(N_("GPUs: 1 of {gpus}; preference training runs on one", gpus=device.gpus))
    training = plan.stages[0]
    return replace(
        _with_more_training(plan, seconds, training.usd * seconds / training.seconds),
        start_seconds=round(plan.start_seconds + seconds, 1),
        seconds=round(plan.seconds + seconds, 1),
        reasons=(*plan.reasons, *reasons),
    )


def reward_plan(
    config: Config, model: str, shape: Shape, pairs: PairWorkload, device: Device, *, rented: bool = False
) -> Plan:
    """The plan of training a reward model (`noesis tribunal train-judge`): as of preferences, without a reference."""
    plan = _on_one_gpu(config, model, shape, pairs, device, rented=rented)
    seconds = FORWARD_SHARE * pairs.held_out_tokens * plan.epochs / plan.tokens_per_s
    training = plan.stages[0].plus(seconds, plan.stages[0].usd * seconds / plan.stages[0].seconds)
    return replace(plan, stages=(training,), usd=round(training.usd, 4), seconds=round(plan.seconds + seconds, 1))


def _on_one_gpu(config: Config, model: str, shape: Shape, work: Workload, device: Device, *, rented: bool) -> Plan:
    """The plan for one of the device's GPUs; the plan still names them all, since all are paid for."""
    plan = draft_plan(config, model, shape, work, replace(device, gpus=min(device.gpus, 1)), rented=rented)
    return replace(plan, device=device)


def _with_more_training(plan: Plan, seconds: float, usd: float) -> Plan:
    """The plan whose first stage, training, takes and costs this much more."""
    training, *others = plan.stages
    return replace(plan, stages=(training.plus(seconds, usd), *others), usd=round(plan.usd + usd, 4))
