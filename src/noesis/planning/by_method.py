"""The plan of each training method: `sft`, `dpo`, and `sft+dpo`, which is one after the other."""

from __future__ import annotations

from dataclasses import replace

from noesis.core.config import Config
from noesis.core.device import Device
from noesis.core.families.shape import Shape
from noesis.core.i18n import N_
from noesis.planning.draft import draft_plan
from noesis.planning.plan import Plan
from noesis.planning.pricing import FORWARD_SHARE, MachineOption, more_training, seconds_of_seeds
from noesis.planning.search import PlanningTask, shares_passes
from noesis.planning.workload import PairWorkload, Workload, Workloads


def plan_of(
    config: Config, model: str, shape: Shape, workloads: Workloads, device: Device, *, rented: bool = False
) -> Plan:
    """The plan of the run's method and seeds, whether it fits or not.

    With `sft+dpo` it is the plan of the second part, and `Plan.sft` is that of the first.
    """
    return _of_seeds(_plan_of_one(config, model, shape, workloads, device, rented=rented), config)


def _of_seeds(plan: Plan, config: Config) -> Plan:
    """The plan of all seeds, from that of one."""
    if config.training.seeds == 1:
        return plan
    training = plan.stages[0]
    seconds = seconds_of_seeds(config, plan.setup, training.seconds, plan.start_seconds)
    more = seconds - training.seconds
    told = {"count": config.training.seeds, "seconds": seconds}
    if shares_passes(config, plan.setup):
        reason = N_("seeds: {count} adapters, which share their passes over the base; {seconds:.0f} s together", **told)
    else:
        reason = N_("seeds: {count} adapters, which are trained one after the other; {seconds:.0f} s together", **told)
    return replace(
        _with_more_training(plan, more, training.usd * more / training.seconds),
        seconds=round(plan.seconds + more, 1),
        reasons=(*plan.reasons, reason),
    )


def _plan_of_one(
    config: Config, model: str, shape: Shape, workloads: Workloads, device: Device, *, rented: bool
) -> Plan:
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
        alternatives=tuple(_both(a, b) for a, b in zip(first.alternatives, second.alternatives, strict=True)),
    )


def _both(first: MachineOption, second: MachineOption) -> MachineOption:
    """Two trainings on one machine, one after the other."""
    return replace(
        second,
        memory_bytes=max(first.memory_bytes, second.memory_bytes),
        fits=first.fits and second.fits,
        seconds=round(first.seconds + second.seconds, 1),
        usd=round(first.usd + second.usd, 4),
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
    more = more_training(PlanningTask(config, shape, work, used, rented), plan.tokens_per_s)
    reasons = []
    if work.own_answers:
        answers = N_("{count:,} answers", count=work.own_answers)
        reasons.append(
            N_(
                "replay: the base writes {answers} first, counted at full length; {writing:.0f} s",
                answers=answers,
                writing=more.writing,
            )
        )
    if work.sampled:
        tokens = config.training.distill.max_new_tokens
        reasons += [
            N_(
                "distill: answers of {tokens} tokens at most, sampled at every step; {sampling:.0f} s",
                tokens=tokens,
                sampling=more.sampling,
            ),
            N_("distill: the base reads them after critique and revision; {reading:.0f} s", reading=more.reading),
        ]
        if device.gpus > 1:
            reasons.append(N_("GPUs: 1 of {gpus}; self-distillation runs on one", gpus=device.gpus))
    elif work.anchored:
        reasons.append(
            N_(
                "kl_weight: the base reads {anchored:,} tokens of an epoch as well; {reading:.0f} s",
                anchored=work.anchored,
                reading=more.reading,
            )
        )
    if not reasons:
        return plan
    training, seconds = plan.stages[0], more.seconds
    tokens = plan.tokens_per_epoch * plan.epochs
    return replace(
        _with_more_training(plan, seconds, training.usd * seconds / training.seconds),
        tokens_per_s=round(tokens / (tokens / plan.tokens_per_s + more.sampling + more.reading), 1),
        start_seconds=round(plan.start_seconds + more.writing, 1),
        seconds=round(plan.seconds + seconds, 1),
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
    one = replace(device, gpus=min(device.gpus, 1))
    seconds = more_training(PlanningTask(config, shape, pairs, one, rented), plan.tokens_per_s).reading
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
