"""A plan as `noesis plan` prints it: what is trained, whether it fits, what it costs here and elsewhere, and why."""

from __future__ import annotations

from noesis.core.console import duration, say, size
from noesis.core.i18n import _, ngettext
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
        _(" ± {relative_error:.0%} (estimated: the model's tokenizer is not here)", relative_error=plan.relative_error)
        if plan.relative_error
        else ""
    )
    where = f"{setup.gpus} × {device.name}" if setup.gpus > 1 else device.name
    kind = f"{device.threads} threads" if device.kind == "cpu" else "rented" if plan.rented else "here"
    how = [
        _("rows of up to {pack_length:,} tokens", pack_length=setup.pack_length)
        if setup.packing
        else _(
            "{sequences} at a time", sequences=ngettext("{count:,} sequence", "{count:,} sequences", setup.micro_batch)
        ),
        _("checkpointing {gradient_checkpointing}", gradient_checkpointing=setup.gradient_checkpointing),
    ]
    if setup.optimizer == "adamw_8bit":
        how.append("8-bit AdamW")
    if setup.engine == "unsloth":
        how.append("through Unsloth")
    return [
        _line(
            "model",
            _(
                "{model}: {millions:,.0f} M parameters, adapter of rank {rank} with {adapter:.1f} M",
                model=plan.model,
                millions=millions,
                rank=plan.r,
                adapter=adapter,
            ),
        ),
        _line(
            "data",
            _(
                "{examples}, {tokens_per_epoch:,} tokens an epoch{error}",
                examples=ngettext("{count:,} example", "{count:,} examples", plan.rows),
                tokens_per_epoch=plan.tokens_per_epoch,
                error=error,
            ),
        ),
        _line(
            "",
            _(
                "{trained_tokens_per_epoch:,} of them trained on, longest row {longest_row:,}",
                trained_tokens_per_epoch=plan.trained_tokens_per_epoch,
                longest_row=plan.longest_row,
            ),
        ),
        _line(
            "steps",
            _(
                "{epochs}, {steps} of {sequences}",
                epochs=ngettext("{count:,} epoch", "{count:,} epochs", plan.epochs),
                steps=ngettext("{count:,} step", "{count:,} steps", plan.steps),
                sequences=ngettext("{count:,} sequence", "{count:,} sequences", setup.sequences_per_step),
            ),
        ),
        _line("device", f"{where} ({kind}, {size(device.memory_bytes)} free)"),
        _line("setup", plan.precision),
        _line("", ", ".join(how)),
    ]


def _memory(plan: Plan) -> str:
    terms = ", ".join(f"{name} {size(value)}" for name, value in plan.memory.to_json().items() if value >= 5e7)
    verdict = "fits" if plan.fits else "DOES NOT FIT"
    needed = _(
        "{needed_bytes} of {memory_bytes}",
        needed_bytes=size(plan.needed_bytes),
        memory_bytes=size(plan.device.memory_bytes),
    )
    return _line(
        "memory",
        _(
            "{needed}: {verdict}; peak {memory_bytes}: {terms}",
            needed=needed,
            verdict=verdict,
            memory_bytes=size(plan.memory_bytes),
            terms=terms,
        ),
    )


def _stages(plan: Plan) -> list[str]:
    rows = [
        f"{stage.name:15} {duration(stage.seconds):>13}  {stage.usd:8.2f} USD  {stage.where}" for stage in plan.stages
    ]
    origin = _("  prices of {date}, {source}", date=plan.prices.date, source=plan.prices.source) if plan.rented else ""
    rows.append(f"{'in all':15} {duration(plan.stage_seconds):>13}  {plan.usd:8.2f} USD{origin}")
    return [
        _line(
            "speed",
            _(
                "{tokens_per_s:,.0f} tokens/s after {start_seconds} of start",
                tokens_per_s=plan.tokens_per_s,
                start_seconds=duration(plan.start_seconds),
            ),
        ),
        *_labelled("time", rows),
    ]


def _alternatives(plan: Plan) -> list[str]:
    table: list[tuple[str, ...]] = [ALTERNATIVES_HEAD]
    for option in plan.alternatives:
        recomputed = "" if option.gradient_checkpointing == "none" else f", {option.gradient_checkpointing}"
        fits = "yes" if option.fits else _("needs {memory_bytes}", memory_bytes=size(option.memory_bytes))
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
    origin = _("training with its start; prices of {date}, {source}", date=plan.prices.date, source=plan.prices.source)
    return [*_labelled("elsewhere", rows), _line("", origin)]
