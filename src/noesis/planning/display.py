"""A plan as `noesis plan` prints it: what is trained, whether it fits, what it costs here and elsewhere, and why."""

from __future__ import annotations

from noesis.core.console import duration, say, size
from noesis.core.i18n import N_, _, ngettext, number, retold
from noesis.planning.budget import in_reais
from noesis.planning.plan import Plan

LABEL = 9  # width of the column before the text
ALTERNATIVES_HEAD = ("", N_("precision"), N_("fits"), N_("training"), N_("USD"))
TERMS = {  # of memory
    "base": N_("base"),
    "adapter": N_("adapter"),
    "activations": N_("activations"),
    "logits": N_("logits"),
    "runtime": N_("runtime"),
    "working": N_("working"),
}
LEFT_COLUMNS = 3  # the others are numbers


def show_plan(plan: Plan, *, everything: bool = False, brl_per_usd: float | None = None) -> None:
    """Print a plan; its reasons and alternatives only with `everything`."""
    for line in plan_lines(plan, everything=everything, brl_per_usd=brl_per_usd):
        say(line)


def plan_lines(plan: Plan, *, everything: bool, brl_per_usd: float | None = None) -> list[str]:
    """The lines that `show_plan` prints; with a rate, the sum in R$ as well."""
    lines = [*_contents(plan), _memory(plan), *_stages(plan, brl_per_usd)]
    if everything:
        lines += ["", *_labelled(_("why"), [retold(reason) for reason in plan.reasons]), "", *_alternatives(plan)]
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
    kind = f"{device.threads} threads" if device.kind == "cpu" else _("rented") if plan.rented else _("here")
    how = [
        _("rows of up to {pack_length:,} tokens", pack_length=setup.pack_length)
        if setup.packing
        else _(
            "{sequences} at a time", sequences=ngettext("{count:,} sequence", "{count:,} sequences", setup.micro_batch)
        ),
        _("checkpointing {gradient_checkpointing}", gradient_checkpointing=setup.gradient_checkpointing),
    ]
    if setup.optimizer == "adamw_8bit":
        how.append(_("8-bit AdamW"))
    if setup.engine == "unsloth":
        how.append(_("through Unsloth"))
    return [
        _line(
            _("model"),
            _(
                "{model}: {millions:,.0f} M parameters, adapter of rank {rank} with {adapter:.1f} M",
                model=plan.model,
                millions=millions,
                rank=plan.r,
                adapter=adapter,
            ),
        ),
        _line(
            _("data"),
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
            _("steps"),
            _(
                "{epochs}, {steps} of {sequences}",
                epochs=ngettext("{count:,} epoch", "{count:,} epochs", plan.epochs),
                steps=ngettext("{count:,} step", "{count:,} steps", plan.steps),
                sequences=ngettext("{count:,} sequence", "{count:,} sequences", setup.sequences_per_step),
            )
            + (_(", for each of {seeds} seeds", seeds=plan.seeds) if plan.seeds > 1 else ""),
        ),
        _line(
            _("device"), _("{where} ({kind}, {memory} free)", where=where, kind=kind, memory=size(device.memory_bytes))
        ),
        _line(_("setup"), retold(plan.precision)),
        _line("", ", ".join(how)),
    ]


def _memory(plan: Plan) -> str:
    terms = ", ".join(
        f"{_(TERMS.get(name, name))} {size(value)}" for name, value in plan.memory.to_json().items() if value >= 5e7
    )
    verdict = _("fits") if plan.fits else _("DOES NOT FIT")
    needed = _(
        "{needed_bytes} of {memory_bytes}",
        needed_bytes=size(plan.needed_bytes),
        memory_bytes=size(plan.device.memory_bytes),
    )
    return _line(
        _("memory"),
        _(
            "{needed}: {verdict}; peak {memory_bytes}: {terms}",
            needed=needed,
            verdict=verdict,
            memory_bytes=size(plan.memory_bytes),
            terms=terms,
        ),
    )


def stage_title(name: str) -> str:
    """A stage is named as its command in every language; only several together are put into words."""
    return retold(name) if " " in name else name


def dollars(usd: float) -> str:
    """An amount in a column of them."""
    return _("{usd:8.2f} USD", usd=usd)


def _stages(plan: Plan, brl_per_usd: float | None) -> list[str]:
    rows = [
        f"{stage_title(stage.name):15} {duration(stage.seconds):>13}  {dollars(stage.usd)}  {retold(stage.where)}"
        for stage in plan.stages
    ]
    origin = (
        _("  prices of {date}, {source}", date=plan.prices.date, source=retold(plan.prices.source))
        if plan.rented
        else ""
    )
    usd = dollars(plan.usd) + in_reais(plan.usd, brl_per_usd)
    rows.append(f"{_('in all'):15} {duration(plan.stage_seconds):>13}  {usd}{origin}")
    return [
        _line(
            _("speed"),
            _(
                "{tokens_per_s:,.0f} tokens/s after {start_seconds} of start",
                tokens_per_s=plan.tokens_per_s,
                start_seconds=duration(plan.start_seconds),
            ),
        ),
        *_labelled(_("time"), rows),
    ]


def _alternatives(plan: Plan) -> list[str]:
    table: list[tuple[str, ...]] = [tuple(_(name) if name else "" for name in ALTERNATIVES_HEAD)]
    for option in plan.alternatives:
        recomputed = "" if option.gradient_checkpointing == "none" else f", {option.gradient_checkpointing}"
        fits = _("yes") if option.fits else _("needs {memory_bytes}", memory_bytes=size(option.memory_bytes))
        costs = (duration(option.seconds), number(option.usd, ".2f")) if option.fits else ("", "")
        table.append((retold(option.device), option.precision + recomputed, fits, *costs))
    widths = [max(len(cell) for cell in column) for column in zip(*table, strict=True)]
    rows = [
        "  ".join(
            cell.ljust(width) if column < LEFT_COLUMNS else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        )
        for row in table
    ]
    origin = _(
        "training with its start; prices of {date}, {source}", date=plan.prices.date, source=retold(plan.prices.source)
    )
    return [*_labelled(_("elsewhere"), rows), _line("", origin)]
