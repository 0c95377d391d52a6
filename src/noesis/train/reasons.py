"""Why a plan is as it is, in words: each choice beside what the other would have cost."""

from __future__ import annotations

from collections.abc import Callable

from noesis.console import duration, size
from noesis.train.choose import Option, Task, packs, precisions
from noesis.train.speed import COMPILE_SECONDS


def reasons(task: Task, found: list[Option], chosen: Option) -> list[str]:
    """One line a choice."""
    lines = [_precision(task, found, chosen)]
    if task.device.kind == "cuda":
        lines += [_checkpointing(task, found, chosen), _compile(task, found, chosen), _packing(task, chosen)]
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


def _precision(task: Task, found: list[Option], chosen: Option) -> str:
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
            "precision: nf4, as fast as bf16 on a processor and a quarter of its size"
            if name == "nf4"
            else f"precision: {name}, since load_in_4bit is false"
            if not task.config.lora.quantization.load_in_4bit
            else f"precision: {name}"
        )
    others = [_against(task, found, chosen, other, lambda o, other=other: o.setup.precision == other) for other in allowed if other != name]  # type: ignore[misc]
    if not task.device.fp8:
        others.append(f"{task.device.name} has no FP8")
    return f"precision: {name}" + (f" ({'; '.join(others)})" if others else "")


def _against(task: Task, found: list[Option], chosen: Option, what: str, other: Callable[[Option], bool]) -> str:
    """What taking `what` instead would mean."""
    candidates = [o for o in found if other(o)]
    fitting = next((o for o in candidates if o.fits), None)
    if fitting is None:
        least = min((o.memory.needed(card=task.device.kind == "cuda") for o in candidates), default=0)
        return f"{what} would need {size(least)}"
    return f"{what} would take {duration(max(fitting.seconds - chosen.seconds, 0))} longer"


def _checkpointing(task: Task, found: list[Option], chosen: Option) -> str:
    name = chosen.setup.gradient_checkpointing
    if task.config.training.gradient_checkpointing == name:
        return f"gradient checkpointing: {name}, as configured"
    if name == "none":
        return "gradient checkpointing: none, all activations fit"
    same = [o for o in found if o.setup.precision == chosen.setup.precision]
    return f"gradient checkpointing: {name} ({_against(task, same, chosen, 'none', lambda o: o.setup.gradient_checkpointing == 'none')})"


def _compile(task: Task, found: list[Option], chosen: Option) -> str:
    tokens = task.work.tokens * task.config.training.num_train_epochs
    yes = chosen.setup.compile
    if task.config.training.compile is yes:
        return f"compile: {'yes' if yes else 'no'}, as configured"
    if task.config.training.compile is True:
        return "compile: no; it was asked for, and this engine and card can't"
    other = next((o for o in found if o.fits and o.setup.compile != yes and o.setup.precision == chosen.setup.precision), None)
    if other is None:
        return "compile: yes, without it memory would not do" if yes else "compile: no, this engine or card can't"
    working = [o.seconds - o.start_seconds for o in (other, chosen)]
    if yes:
        return f"compile: yes, {tokens:,} tokens take {duration(working[0] - working[1])} less and compiling costs {COMPILE_SECONDS:.0f} s"
    gain = working[1] - working[0]
    if gain <= 0:
        return "compile: no, rows of one fixed length would need more padding than it saves"
    return f"compile: no, {tokens:,} tokens would take {duration(gain)} less and compiling costs {COMPILE_SECONDS:.0f} s"


def _packing(task: Task, chosen: Option) -> str:
    setup = chosen.setup
    if setup.packing:
        return f"packing: rows of up to {setup.pack_length:,} tokens; a step holds {setup.sequences_per_step} sequences as without"
    if not packs(task) and task.config.training.packing is not False:
        return "packing: no, this card can't run the attention that keeps packed sequences apart"
    return f"packing: no, as configured; {setup.micro_batch} sequence(s) at a time"


def _cards(task: Task, chosen: Option) -> list[str]:
    lines = []
    if task.device.cards > 1:
        if chosen.setup.cards < task.device.cards:
            lines.append(f"cards: {chosen.setup.cards} of {task.device.cards}, so that each gets the same part of a step's {task.per_step} sequences")
        if chosen.sharded:
            lines.append(f"the base is spread over {chosen.setup.cards} cards, since one does not hold it")
    return lines


def _processor(task: Task, chosen: Option) -> list[str]:
    t, setup = task.config.training, chosen.setup
    lines = [f"arithmetic: {setup.compute_dtype}" + ("" if task.device.bf16 else ", this processor has no bfloat16")]
    if setup.gradient_checkpointing != "none":
        lines.append(f"gradient checkpointing: {setup.gradient_checkpointing}, {'as configured' if t.gradient_checkpointing != 'auto' else 'memory is short'}")
    if t.compile is True:
        lines.append("compile: no; it was asked for, and processors run the layers as they are")
    return lines
