"""Why a plan is as it is, in words: each choice beside what the other would have cost."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial

from noesis.core.console import duration, size
from noesis.planning.precision import precisions
from noesis.planning.search import PlanningTask, SetupOption, enumerate_setups, fastest_fit, packs


def reasons(task: PlanningTask, found: list[SetupOption], chosen: SetupOption) -> list[str]:
    """One line a choice."""
    lines = [_precision(task, found, chosen)]
    if task.device.kind == "cuda":
        lines += [
            *_fp8(task, chosen),
            _checkpointing(task, found, chosen),
            *_compile(task, chosen),
            _packing(task, chosen),
        ]
        if chosen.setup.optimizer == "adamw_8bit" and chosen.setup.engine == "noesis":
            lines.append("optimizer: AdamW with 8-bit moments, since memory is short")
        lines += _cards(task, chosen)
    else:
        lines += _processor(task, chosen)
    if task.config.training.engine == "unsloth":
        lines.append(
            "engine: unsloth, as configured, in an environment of its own"
            if chosen.setup.engine == "unsloth"
            else "engine: noesis; unsloth was asked for and needs an NVIDIA card"
        )
    return lines


def _has_precision(precision: str, option: SetupOption) -> bool:
    return option.setup.precision == precision


def _precision(task: PlanningTask, found: list[SetupOption], chosen: SetupOption) -> str:
    name, wanted = chosen.setup.precision, task.config.training.precision
    allowed, complaint = precisions(task.config, task.device, here=not task.rented)
    if complaint:
        return f"precision: {complaint}"
    if wanted not in ("auto", name):
        return f"precision: {name}; {wanted} was asked for, which {chosen.setup.engine} does not train in"
    if wanted != "auto":
        return f"precision: {name}, as configured"
    if task.device.kind == "cpu":
        return (
            "precision: nf4, as configured in load_in_4bit and as fast as bf16 on a processor"
            if name == "nf4"
            else f"precision: {name}, since load_in_4bit is false"
            if not task.config.lora.quantization.load_in_4bit
            else f"precision: {name}"
        )
    others = [
        _against(task, found, chosen, other, partial(_has_precision, other)) for other in allowed if other != name
    ]
    if not task.device.fp8:
        others.append(f"{task.device.name} has no FP8")
    return f"precision: {name}" + (f" ({'; '.join(others)})" if others else "")


def _against(
    task: PlanningTask, found: list[SetupOption], chosen: SetupOption, what: str, other: Callable[[SetupOption], bool]
) -> str:
    """What taking `what` instead would mean."""
    candidates = [o for o in found if other(o)]
    fitting = next((o for o in candidates if o.fits), None)
    if fitting is None:
        least = min((o.memory.needed(card=task.device.kind == "cuda") for o in candidates), default=0)
        return f"{what} would need {size(least)}"
    return f"{what} would take {duration(max(fitting.seconds - chosen.seconds, 0))} longer"


def _checkpointing(task: PlanningTask, found: list[SetupOption], chosen: SetupOption) -> str:
    name = chosen.setup.gradient_checkpointing
    if task.config.training.gradient_checkpointing == name:
        return f"gradient checkpointing: {name}, as configured"
    if name == "none":
        return "gradient checkpointing: none, all activations fit"
    same = [o for o in found if o.setup.precision == chosen.setup.precision]
    return f"gradient checkpointing: {name} ({_against(task, same, chosen, 'none', lambda o: o.setup.gradient_checkpointing == 'none')})"


def _fp8(task: PlanningTask, chosen: SetupOption) -> list[str]:
    """What FP8 would save where it is left out, and what it costs in exactness where it is not."""
    t = task.config.training
    inexact = "its gradients are 0.16 from float32's, where 0.06 was the aim (docs/decisions/0013)"
    if chosen.setup.precision == "fp8":
        return [f"fp8: {inexact}; held-out losses came out within 1%"]
    if t.precision != "auto" or not task.device.fp8 or not task.fused:
        return []
    quantization = task.config.lora.quantization.model_copy(update={"load_in_4bit": False})
    lora, training = (
        task.config.lora.model_copy(update={"quantization": quantization}),
        t.model_copy(update={"precision": "fp8"}),
    )
    other = fastest_fit(
        enumerate_setups(replace(task, config=task.config.model_copy(update={"lora": lora, "training": training})))
    )
    if not other.fits:
        return []
    return [f"fp8: not chosen, {inexact}; precision: fp8 would save {duration(max(chosen.seconds - other.seconds, 0))}"]


def _compile(task: PlanningTask, chosen: SetupOption) -> list[str]:
    if task.config.training.compile is not True:
        return []
    if task.fused:
        return ["compile: no; it was asked for, but the engine's kernels are fused already and nothing is compiled"]
    return [
        f"compile: no; it was asked for, and {'Unsloth compiles by itself' if chosen.setup.engine == 'unsloth' else 'layers run as they are here'}"
    ]


def _packing(task: PlanningTask, chosen: SetupOption) -> str:
    setup = chosen.setup
    if setup.packing:
        return f"packing: rows of up to {setup.pack_length:,} tokens; a step holds {setup.sequences_per_step} sequences as without"
    if not packs(task) and task.config.training.packing is not False:
        return "packing: no, this card can't run the attention that keeps packed sequences apart"
    return f"packing: no, as configured; {setup.micro_batch} sequence(s) at a time"


def _cards(task: PlanningTask, chosen: SetupOption) -> list[str]:
    lines = []
    if task.device.cards > 1:
        if not task.fused:
            lines.append(f"cards: 1 of {task.device.cards}; only the engine, in bfloat16, trains on several")
        elif chosen.setup.cards < task.device.cards:
            lines.append(
                f"cards: {chosen.setup.cards} of {task.device.cards}, so that each gets the same part of a step's {task.per_step} sequences"
            )
        if chosen.sharded:
            lines.append(f"the base is spread over {chosen.setup.cards} cards, since one does not hold it")
    return lines


def _processor(task: PlanningTask, chosen: SetupOption) -> list[str]:
    t, setup = task.config.training, chosen.setup
    lines = [f"arithmetic: {setup.compute_dtype}" + ("" if task.device.bf16 else ", this processor has no bfloat16")]
    if setup.gradient_checkpointing != "none":
        lines.append(
            f"gradient checkpointing: {setup.gradient_checkpointing}, {'as configured' if t.gradient_checkpointing != 'auto' else 'memory is short'}"
        )
    if t.compile is True:
        lines.append("compile: no; it was asked for, but nothing is compiled on processors")
    return lines
