"""A plan as `noesis plan` prints it: what is trained, whether it fits, what it costs here and elsewhere, and why."""

from __future__ import annotations

from noesis.core.console import duration, say, size
from noesis.core.text import counted
from noesis.planning.plan import Plan

LABEL = 9  # width of the column before the text
ALTERNATIVES_HEAD = ("", "precision", "fits", "training", "USD")
LEFT_COLUMNS = 3  # the others are numbers


def show_plan(plan: Plan, *, everything: bool = False) -> None:
    """Print a plan; its reasons and alternatives only with `everything`."""
    for line in plan_lines(plan, everything=everything):
        say(line)


def plan_lines(plan: Plan, *, everything: bool) -> list[str]:
    """The lines that `show_plan` prints."""
    lines = [*_contents(plan), _memory(plan), *_stages(plan)]
    if everything:
        lines += ["", *_labelled("why", plan.reasons), "", *_alternatives(plan)]
    return lines


def _line(label: str, text: str) -> str:
    return f"  {label:{LABEL}} {text}".rstrip()


def _labelled(label: str, texts: tuple[str, ...] | list[str]) -> list[str]:
    """One line per text, the first with the label."""
    return [_line("" if i else label, text) for i, text in enumerate(texts)]


def _contents(plan: Plan) -> list[str]:
    setup, device = plan.setup, plan.device
    millions, adapter = plan.parameters / 1e6, plan.adapter_parameters / 1e6
    error = (
        f" ± {plan.relative_error:.0%} (estimated: the model's tokenizer is not here)" if plan.relative_error else ""
    )
    where = f"{setup.gpus} × {device.name}" if setup.gpus > 1 else device.name
    kind = f"{device.threads} threads" if device.kind == "cpu" else "rented" if plan.rented else "here"
    how = [
        f"rows of up to {setup.pack_length:,} tokens"
        if setup.packing
        else f"{counted(setup.micro_batch, 'sequence')} at a time",
        f"checkpointing {setup.gradient_checkpointing}",
    ]
    if setup.optimizer == "adamw_8bit":
        how.append("8-bit AdamW")
    if setup.engine == "unsloth":
        how.append("through Unsloth")
    return [
        _line("model", f"{plan.model}: {millions:,.0f} M parameters, adapter of rank {plan.r} with {adapter:.1f} M"),
        _line("data", f"{counted(plan.rows, 'example')}, {plan.tokens_per_epoch:,} tokens an epoch{error}"),
        _line("", f"{plan.trained_tokens_per_epoch:,} of them trained on, longest row {plan.longest_row:,}"),
        _line(
            "steps",
            f"{counted(plan.epochs, 'epoch')}, {counted(plan.steps, 'step')} of "
            f"{counted(setup.sequences_per_step, 'sequence')}"
            + (f", for each of {plan.seeds} seeds" if plan.seeds > 1 else ""),
        ),
        _line("device", f"{where} ({kind}, {size(device.memory_bytes)} free)"),
        _line("setup", plan.precision),
        _line("", ", ".join(how)),
    ]


def _memory(plan: Plan) -> str:
    terms = ", ".join(f"{name} {size(value)}" for name, value in plan.memory.to_json().items() if value >= 5e7)
    verdict = "fits" if plan.fits else "DOES NOT FIT"
    needed = f"{size(plan.needed_bytes)} of {size(plan.device.memory_bytes)}"
    return _line("memory", f"{needed}: {verdict}; peak {size(plan.memory_bytes)}: {terms}")


def _stages(plan: Plan) -> list[str]:
    rows = [
        f"{stage.name:15} {duration(stage.seconds):>13}  {stage.usd:8.2f} USD  {stage.where}" for stage in plan.stages
    ]
    origin = f"  prices of {plan.prices.date}, {plan.prices.source}" if plan.rented else ""
    rows.append(f"{'in all':15} {duration(plan.stage_seconds):>13}  {plan.usd:8.2f} USD{origin}")
    return [
        _line("speed", f"{plan.tokens_per_s:,.0f} tokens/s after {duration(plan.start_seconds)} of start"),
        *_labelled("time", rows),
    ]


def _alternatives(plan: Plan) -> list[str]:
    table: list[tuple[str, ...]] = [ALTERNATIVES_HEAD]
    for option in plan.alternatives:
        recomputed = "" if option.gradient_checkpointing == "none" else f", {option.gradient_checkpointing}"
        fits = "yes" if option.fits else f"needs {size(option.memory_bytes)}"
        costs = (duration(option.seconds), f"{option.usd:.2f}") if option.fits else ("", "")
        table.append((option.device, option.precision + recomputed, fits, *costs))
    widths = [max(len(cell) for cell in column) for column in zip(*table, strict=True)]
    rows = [
        "  ".join(
            cell.ljust(width) if column < LEFT_COLUMNS else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        )
        for row in table
    ]
    origin = f"training with its start; prices of {plan.prices.date}, {plan.prices.source}"
    return [*_labelled("elsewhere", rows), _line("", origin)]
