"""Why a plan is as it is, in words: each choice with what its alternative would have cost."""

from __future__ import annotations

from dataclasses import replace

from noesis.core.console import command, duration, size
from noesis.core.i18n import N_, ngettext
from noesis.planning.precision import allowed_precisions
from noesis.planning.search import PlanningTask, SetupOption, enumerate_setups, fastest_fit


def reasons(task: PlanningTask, found: list[SetupOption], chosen: SetupOption) -> list[str]:
    """One line per choice."""
    lines = [_precision(task, found, chosen)]
    if task.device.kind == "cuda":
        lines += [*_fp8(task, chosen), _checkpointing(task, found, chosen), _packing(task, chosen)]
        if chosen.setup.optimizer == "adamw_8bit" and chosen.setup.engine == "noesis":
            lines.append(N_("optimizer: AdamW with 8-bit moments, because memory is short"))
        lines += _gpus(task, chosen)
    else:
        lines += _cpu(task, chosen)
    if not task.shape.on_engine and chosen.setup.engine == "transformers":
        lines.append(N_("engine: transformers' layers; the engine does not know this model's"))
    lines += _speed(task)
    if task.config.training.engine == "unsloth":
        lines.append(
            N_("engine: unsloth, as configured, in its own environment")
            if chosen.setup.engine == "unsloth"
            else N_("engine: noesis; unsloth is configured, but it needs an NVIDIA GPU")
        )
    return lines


def _speed(task: PlanningTask) -> list[str]:
    """Whether the training rate was measured on this machine."""
    if task.rented:
        return []
    if task.measured is None:
        return [
            N_(
                "speed: computed; on this machine  {command} --measure  measures it, in about a minute",
                command=command("plan"),
            )
        ]
    setup, date = task.measured.setup, task.measured.date
    return [
        N_(
            "speed: measured here on {date} with a row of {tokens:,} tokens in {precision}",
            date=date,
            tokens=task.measured.tokens,
            precision=setup.precision,
        )
    ]


def _precision(task: PlanningTask, found: list[SetupOption], chosen: SetupOption) -> str:
    name, configured = chosen.setup.precision, task.config.training.precision
    allowed = allowed_precisions(task.config, task.device, here=not task.rented)
    if allowed.problem:
        return f"precision: {allowed.problem}"
    if configured not in ("auto", name):
        return N_(
            "precision: {name}; {configured} is configured, but {engine} does not train in it",
            name=name,
            configured=configured,
            engine=chosen.setup.engine,
        )
    if configured != "auto":
        return N_("precision: {name}, as configured", name=name)
    if task.device.kind == "cpu":
        if name == "nf4":
            return N_("precision: nf4, as load_in_4bit allows; on a CPU it is as fast as bf16")
        if not task.config.lora.quantization.load_in_4bit:
            return N_("precision: {name}, because load_in_4bit is false", name=name)
        return f"precision: {name}"
    others = [
        _compare([o for o in found if o.setup.precision == other], chosen, other)
        for other in allowed.names
        if other != name
    ]
    if not task.device.fp8:
        others.append(N_("{name} has no FP8", name=task.device.name))
    return f"precision: {name}" + (f" ({'; '.join(others)})" if others else "")


def _compare(alternatives: list[SetupOption], chosen: SetupOption, name: str) -> str:
    """What taking the fastest of `alternatives` instead of `chosen` would cost."""
    fitting = next((option for option in alternatives if option.fits), None)
    if fitting is None:
        return N_(
            "{name} would need {needed_bytes}",
            name=name,
            needed_bytes=size(min((option.needed_bytes for option in alternatives), default=0)),
        )
    return N_(
        "{name} would take {seconds} longer", name=name, seconds=duration(max(fitting.seconds - chosen.seconds, 0))
    )


def _checkpointing(task: PlanningTask, found: list[SetupOption], chosen: SetupOption) -> str:
    setup = chosen.setup
    name = setup.gradient_checkpointing
    if task.config.training.gradient_checkpointing == name:
        return N_("gradient checkpointing: {name}, as configured", name=name)
    if name == "none":
        return N_("gradient checkpointing: none, all activations fit")
    without = [
        option
        for option in found
        if option.setup.precision == setup.precision and option.setup.gradient_checkpointing == "none"
    ]
    return N_("gradient checkpointing: {name} ({compare})", name=name, compare=_compare(without, chosen, "none"))


def _fp8(task: PlanningTask, chosen: SetupOption) -> list[str]:
    """What FP8 would save where it is not used, or what it costs in exactness where it is."""
    t = task.config.training
    inexact = N_("its gradients are 0.16 from float32's, where 0.06 was the aim (docs/decisions/0013)")
    if chosen.setup.precision == "fp8":
        return [N_("fp8: {inexact}; held-out losses differed by less than 1%", inexact=inexact)]
    if t.precision != "auto" or not task.device.fp8 or not task.fused:
        return []
    quantization = task.config.lora.quantization.model_copy(update={"load_in_4bit": False})
    lora = task.config.lora.model_copy(update={"quantization": quantization})
    config = task.config.model_copy(update={"lora": lora, "training": t.model_copy(update={"precision": "fp8"})})
    fp8 = fastest_fit(enumerate_setups(replace(task, config=config)))
    if not fp8.fits:
        return []
    return [
        N_(
            "fp8: not chosen, {inexact}; precision: fp8 would save {seconds}",
            inexact=inexact,
            seconds=duration(max(chosen.seconds - fp8.seconds, 0)),
        )
    ]


def _packing(task: PlanningTask, chosen: SetupOption) -> str:
    setup = chosen.setup
    if setup.packing:
        return N_(
            "packing: rows of up to {pack_length:,} tokens; a step still holds {sequences_per_step} sequences",
            pack_length=setup.pack_length,
            sequences_per_step=setup.sequences_per_step,
        )
    if not task.packs and task.config.training.packing is not False:
        return N_("packing: no, this GPU can't run the attention that keeps packed sequences apart")
    return N_(
        "packing: no, as configured; {sequences} at a time",
        sequences=ngettext("{count:,} sequence", "{count:,} sequences", setup.micro_batch),
    )


def _gpus(task: PlanningTask, chosen: SetupOption) -> list[str]:
    here, used = task.device.gpus, chosen.setup.gpus
    if here < 2:
        return []
    lines = []
    if not task.fused:
        lines.append(N_("GPUs: 1 of {here}; only the engine, in bfloat16, trains on several", here=here))
    elif used < here:
        lines.append(
            N_(
                "GPUs: {used} of {here}, so that each gets an equal share of a step's {sequences_per_step} sequences",
                used=used,
                here=here,
                sequences_per_step=task.sequences_per_step,
            )
        )
    if chosen.sharded:
        lines.append(N_("the base is spread over {used} GPUs, because one can't hold it", used=used))
    return lines


def _cpu(task: PlanningTask, chosen: SetupOption) -> list[str]:
    setup = chosen.setup
    dtype = setup.compute_dtype
    if task.device.bf16:
        lines = [N_("arithmetic: {dtype}", dtype=dtype)]
    else:
        lines = [N_("arithmetic: {dtype}, this CPU has no bfloat16", dtype=dtype)]
    if setup.gradient_checkpointing != "none":
        why = N_("memory is short") if task.config.training.gradient_checkpointing == "auto" else N_("as configured")
        lines.append(
            N_(
                "gradient checkpointing: {gradient_checkpointing}, {why}",
                gradient_checkpointing=setup.gradient_checkpointing,
                why=why,
            )
        )
    return lines
