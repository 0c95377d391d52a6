"""`noesis cloud watch`: how far the run on the volume is, read from what it publishes about once a minute. And `noesis cloud cost`."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from typing import Any

from noesis.cloud.volume.layout import FOLDER, SUMMARY
from noesis.cloud.volume.lease import FILE
from noesis.cloud.volume.remote import RemoteFiles, manifest_of, read_json, read_text
from noesis.core.console import duration
from noesis.run.ledger import FILE as METER
from noesis.run.stages import STAGES

EVERY_S = 20.0
QUIET_S = 240.0  # without a sign of life: four publications


def read_progress(far: RemoteFiles, *, now: Callable[[], float] = time.time) -> dict[str, Any]:
    """The run on the volume in figures.

    Returns:
        stage, step, steps, loss, tokens_per_s, usd, seconds_left, alive, done, lines
    """
    manifest = manifest_of(far)
    step = _last_step(far)
    lease = read_json(far, f"/{FOLDER}/{FILE}")
    alive = float(lease.get("until", 0.0)) > now()
    stages = manifest["stages"]
    running = next((name for name in reversed(STAGES) if stages.get(name, {}).get("status") == "running"), None)
    plan = (stages.get("plan", {}).get("result")) or {}
    finished = (
        not alive and stages.get("report", {}).get("status") == "done" and read_text(far, f"/{SUMMARY}") is not None
    )
    meter = read_json(far, f"/{METER}")
    booked = {entry.get("id") for entry in manifest.get("ledger", [])}
    usd = float(manifest.get("cost_usd", 0.0)) + (
        float(meter.get("usd", 0.0)) if meter.get("id") not in booked else 0.0
    )
    found: dict[str, Any] = {
        "stage": running,
        "alive": alive,
        "done": finished,
        "usd": round(usd, 4),
        "quoted_usd": plan.get("usd"),
        "steps": plan.get("steps"),
    }
    if step:
        left = max(int(plan.get("steps") or 0) - int(step["step"]), 0)
        tokens = int(step["tokens"]) / max(int(step["step"]), 1) * left
        found |= {name: step[name] for name in ("step", "epoch", "loss", "tokens_per_s")}
        found["seconds_left"] = round(tokens / max(float(step["tokens_per_s"]), 1e-9), 1) if running == "train" else 0.0
    return found | {"stages": {name: entry.get("status") for name, entry in stages.items()}}


def progress_lines(found: dict[str, Any]) -> list[str]:
    """What `look` found, in words."""
    done = [name for name in STAGES if found["stages"].get(name) == "done"]
    state = (
        "done"
        if found["done"]
        else f"at work: {found['stage'] or 'between two stages'}"
        if found["alive"]
        else "nobody is at work on this volume"
    )
    lines = [f"  {state}; done: {', '.join(done) or 'nothing yet'}"]
    if found.get("step"):
        left = f" · {duration(found['seconds_left'])} of training left" if found["seconds_left"] else ""
        lines.append(
            f"  step {found['step']}/{found['steps']} · epoch {found['epoch']:.2f} · loss {found['loss']:.3f} · {found['tokens_per_s']:,.0f} tokens/s{left}"
        )
    quoted = f" of {found['quoted_usd']:.2f} quoted" if found["quoted_usd"] is not None else ""
    lines.append(f"  spent {found['usd']:.2f} USD{quoted}")
    interrupted = [name for name, status in found["stages"].items() if status in ("interrupted", "failed", "running")]
    if not found["alive"] and not found["done"] and interrupted:
        lines.append(f"  {interrupted[0]} stopped before its end: the same  modal run  goes on from there")
    return lines


def _last_step(far: RemoteFiles) -> dict[str, Any] | None:
    for line in reversed((read_text(far, "/metrics.jsonl") or "").split("\n")):
        try:
            return dict(json.loads(line))
        except ValueError:
            continue  # half-written
    return None
