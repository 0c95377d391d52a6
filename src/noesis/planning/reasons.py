"""Why a plan is as it is, in words: each choice with what its alternative would have cost."""

from __future__ import annotations

from dataclasses import replace

from noesis.core.console import command, duration, size
from noesis.core.text import counted
from noesis.planning.precision import allowed_precisions
from noesis.planning.search import PlanningTask, SetupOption, enumerate_setups, fastest_fit


def reasons(task: PlanningTask, found: list[SetupOption], chosen: SetupOption) -> list[str]:
    """One line per choice."""
    lines = [_precision(task, found, chosen)]
    if task.device.kind == "cuda":
        lines += [*_fp8(task, chosen), _checkpointing(task, found, chosen), _packing(task, chosen)]
        if chosen.setup.optimizer == "adamw_8bit" and chosen.setup.engine == "noesis":
            lines.append("optimizer: AdamW with 8-bit moments, because memory is short")
        lines += _gpus(task, chosen)
    else:
        lines += _cpu(task, chosen)
    if not task.shape.on_engine and chosen.setup.engine == "transformers":
        lines.append("engine: transformers' layers; the engine does not know this model's")
    lines += _speed(task)
    if task.config.training.engine == "unsloth":
        lines.append(
            "engine: unsloth, as configured, in its own environment"
            if chosen.setup.engine == "unsloth"
            else "engine: noesis; unsloth is configured, but it needs an NVIDIA GPU"
        )
    return lines


def _speed(task: PlanningTask) -> list[str]:
    """Whether the training rate was measured on this machine."""
    if task.rented:
        return []
    if task.measured is None:
        return [f"speed: computed; on this machine  {command('plan')} --measure  measures it, in about a minute"]
    setup, date = task.measured.setup, task.measured.date
    return [f"speed: measured here on {date} with a row of {task.measured.tokens:,} tokens in {setup.precision}"]


def _precision(task: PlanningTask, found: list[SetupOption], chosen: SetupOption) -> str:
    name, configured = chosen.setup.precision, task.config.training.precision
    allowed = allowed_precisions(task.config, task.device, here=not task.rented)
    if allowed.problem:
        return f"precision: {allowed.problem}"
    if configured not in ("auto", name):
        return f"precision: {name}; {configured} is configured, but {chosen.setup.engine} does not train in it"
    if configured != "auto":
        return f"precision: {name}, as configured"
    if task.device.kind == "cpu":
        if name == "nf4":
            return "precision: nf4, as load_in_4bit allows; on a CPU it is as fast as bf16"
        if not task.config.lora.quantization.load_in_4bit:
            return f"precision: {name}, because load_in_4bit is false"
        return f"precision: {name}"
    others = [
        _compare([o for o in found if o.setup.precision == other], chosen, other)
        for other in allowed.names
        if other != name
    ]
    if not task.device.fp8:
        others.append(f"{task.device.name} has no FP8")
    return f"precision: {name}" + (f" ({'; '.join(others)})" if others else "")


def _compare(alternatives: list[SetupOption], chosen: SetupOption, name: str) -> str:
    """What taking the fastest of `alternatives` instead of `chosen` would cost."""
    fitting = next((option for option in alternatives if option.fits), None)
    if fitting is None:
        return f"{name} would need {size(min((option.needed_bytes for option in alternatives), default=0))}"
    return f"{name} would take {duration(max(fitting.seconds - chosen.seconds, 0))} longer"


def _checkpointing(task: PlanningTask, found: list[SetupOption], chosen: SetupOption) -> str:
    setup = chosen.setup
    name = setup.gradient_checkpointing
    if task.config.training.gradient_checkpointing == name:
        return f"gradient checkpointing: {name}, as configured"
    if name == "none":
        return "gradient checkpointing: none, all activations fit"
    without = [
        option
        for option in found
        if option.setup.precision == setup.precision and option.setup.gradient_checkpointing == "none"
    ]
    return f"gradient checkpointing: {name} ({_compare(without, chosen, 'none')})"


def _fp8(task: PlanningTask, chosen: SetupOption) -> list[str]:
    """What FP8 would save where it is not used, or what it costs in exactness where it is."""
    t = task.config.training
    inexact = "its gradients are 0.16 from float32's, where 0.06 was the aim (docs/decisions/0013)"
    if chosen.setup.precision == "fp8":
        return [f"fp8: {inexact}; held-out losses differed by less than 1%"]
    if t.precision != "auto" or not task.device.fp8 or not task.fused:
        return []
    quantization = task.config.lora.quantization.model_copy(update={"load_in_4bit": False})
    lora = task.config.lora.model_copy(update={"quantization": quantization})
    config = task.config.model_copy(update={"lora": lora, "training": t.model_copy(update={"precision": "fp8"})})
    fp8 = fastest_fit(enumerate_setups(replace(task, config=config)))
    if not fp8.fits:
        return []
    return [f"fp8: not chosen, {inexact}; precision: fp8 would save {duration(max(chosen.seconds - fp8.seconds, 0))}"]


def _packing(task: PlanningTask, chosen: SetupOption) -> str:
    setup = chosen.setup
    if setup.packing:
        return (
            f"packing: rows of up to {setup.pack_length:,} tokens; "
            f"a step still holds {setup.sequences_per_step} sequences"
        )
    if not task.packs and task.config.training.packing is not False:
        return "packing: no, this GPU can't run the attention that keeps packed sequences apart"
    return f"packing: no, as configured; {counted(setup.micro_batch, 'sequence')} at a time"


def _gpus(task: PlanningTask, chosen: SetupOption) -> list[str]:
    here, used = task.device.gpus, chosen.setup.gpus
    if here < 2:
        return []
    lines = []
    if not task.fused:
        lines.append(f"GPUs: 1 of {here}; only the engine, in bfloat16, trains on several")
    elif used < here:
        lines.append(
            f"GPUs: {used} of {here}, so that each gets an equal share of a step's {task.sequences_per_step} sequences"
        )
    if chosen.sharded:
        lines.append(f"the base is spread over {used} GPUs, because one can't hold it")
    return lines


def _cpu(task: PlanningTask, chosen: SetupOption) -> list[str]:
    setup = chosen.setup
    lines = [f"arithmetic: {setup.compute_dtype}" + ("" if task.device.bf16 else ", this CPU has no bfloat16")]
    if setup.gradient_checkpointing != "none":
        why = "memory is short" if task.config.training.gradient_checkpointing == "auto" else "as configured"
        lines.append(f"gradient checkpointing: {setup.gradient_checkpointing}, {why}")
    return lines
