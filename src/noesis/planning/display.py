"""A plan as `noesis plan` prints it: what is trained, does it fit, what it takes and costs, what it would elsewhere, and why."""

from __future__ import annotations

from typing import Any

from noesis.core.console import duration, say, size

HEAD = ("", "precision", "fits", "training", "USD")


def show_plan(p: dict[str, Any], *, everything: bool = False) -> None:
    """Print a plan."""
    for line in plan_lines(p, everything=everything):
        say(line)


def plan_lines(p: dict[str, Any], *, everything: bool) -> list[str]:
    """The lines of a plan (`Plan.as_json`); its alternatives and reasons only where `everything` is asked for."""
    if "setup" not in p:
        return ["  made by an earlier version of Noesis"]
    lines = [*_what(p), *_memory(p), *_stages(p)]
    if everything:
        lines += ["", *_reasons(p), "", *_alternatives(p)]
    return lines


def _what(p: dict[str, Any]) -> list[str]:
    setup, device = p["setup"], p["device"]
    about = (
        f" ± {p['tokens_plus_minus']:.0%} (estimated: the model's tokenizer is not here)"
        if p["tokens_plus_minus"]
        else ""
    )
    where = f"{setup['cards']} × {device['name']}" if setup["cards"] > 1 else device["name"]
    kind = f"{device['threads']} threads" if device["kind"] == "cpu" else "rented" if p["rented"] else "here"
    rows = (
        f"rows of up to {setup['pack_length']:,} tokens"
        if setup["packing"]
        else f"{setup['micro_batch']} sequence(s) at a time"
    )
    extras = [rows, f"checkpointing {setup['gradient_checkpointing']}"]
    extras += ["8-bit AdamW"] if setup["optimizer"] == "adamw_8bit" else []
    extras += ["through Unsloth"] if setup["engine"] == "unsloth" else []
    return [
        f"  model     {p['model']}: {p['parameters'] / 1e6:,.0f} M parameters, adapter of rank {p['r']} with {p['adapter_parameters'] / 1e6:.1f} M",
        f"  data      {p['rows']} examples, {p['tokens_per_epoch']:,} tokens an epoch{about}",
        f"            {p['trained_tokens_per_epoch']:,} of them trained on, longest row {p['longest_row']:,}",
        f"  steps     {p['epochs']} epoch(s), {p['steps']} steps of {setup['sequences_per_step']} sequences",
        f"  device    {where} ({kind}, {size(device['memory_bytes'])} free)",
        f"  setup     {p['precision']}",
        f"            {', '.join(extras)}",
    ]


def _memory(p: dict[str, Any]) -> list[str]:
    terms = ", ".join(f"{name} {size(value)}" for name, value in p["memory"].items() if value >= 5e7)
    verdict = "fits" if p["fits"] else "DOES NOT FIT"
    free = p["device"]["memory_bytes"]
    return [
        f"  memory    {size(p['needed_bytes'])} of {size(free)}: {verdict}; peak {size(p['memory_bytes'])}: {terms}"
    ]


def _stages(p: dict[str, Any]) -> list[str]:
    lines = [f"  speed     {p['tokens_per_s']:,.0f} tokens/s after {duration(p['start_seconds'])} of start"]
    for i, stage in enumerate(p["stages"]):
        label = "time" if i == 0 else ""
        lines.append(
            f"  {label:9} {stage['name']:15} {duration(stage['seconds']):>13}  {stage['usd']:8.2f} USD  {stage['where']}"
        )
    total = sum(stage["seconds"] for stage in p["stages"])
    origin = f"  prices of {p['prices']['date']}, {p['prices']['source']}" if p["rented"] else ""
    lines.append(f"  {'':9} {'in all':15} {duration(total):>13}  {p['usd']:8.2f} USD{origin}")
    return lines


def _reasons(p: dict[str, Any]) -> list[str]:
    return [f"  {'why' if i == 0 else '':9} {line}" for i, line in enumerate(p["reasons"])]


def _alternatives(p: dict[str, Any]) -> list[str]:
    table = [HEAD]
    for a in p["alternatives"]:
        how = a["precision"] + ("" if a["gradient_checkpointing"] == "none" else f", {a['gradient_checkpointing']}")
        costs = (duration(a["seconds"]), f"{a['usd']:.2f}") if a["fits"] else ("", "")
        table.append((a["device"], how, "yes" if a["fits"] else f"needs {size(a['memory_bytes'])}", *costs))
    widths = [max(len(row[i]) for row in table) for i in range(len(HEAD))]
    lines = []
    for i, row in enumerate(table):
        cells = [
            cell.ljust(width) if column < 3 else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        lines.append(f"  {'elsewhere' if i == 0 else '':9} {'  '.join(cells)}".rstrip())
    lines.append(f"  {'':9} training with its start; prices of {p['prices']['date']}, {p['prices']['source']}")
    return lines
