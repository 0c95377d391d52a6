"""`noesis cloud watch`: how far the run on the volume is, read from what it publishes about once a minute. And `noesis cloud cost`."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

from noesis.cloud.far import Far, read_text
from noesis.cloud.lease import FILE, FOLDER
from noesis.cloud.summary import SUMMARY, by_stage
from noesis.console import duration
from noesis.errors import RunError
from noesis.meter import FILE as METER
from noesis.run import STAGES

EVERY_S = 20.0
QUIET_S = 240.0  # without a sign of life: four publications


def look(far: Far, *, now: Callable[[], float] = time.time) -> dict[str, Any]:
    """The run on the volume in figures.

    Returns:
        stage, step, steps, loss, tokens_per_s, usd, seconds_left, alive, done, lines
    """
    manifest = manifest_of(far)
    step = _last_step(far)
    lease = _json(far, f"/{FOLDER}/{FILE}")
    alive = float(lease.get("until", 0.0)) > now()
    stages = manifest["stages"]
    running = next((name for name in reversed(STAGES) if stages.get(name, {}).get("status") == "running"), None)
    plan = (stages.get("plan", {}).get("result")) or {}
    finished = (
        not alive and stages.get("report", {}).get("status") == "done" and read_text(far, f"/{SUMMARY}") is not None
    )
    meter = _json(far, f"/{METER}")
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


def lines_of(found: dict[str, Any]) -> list[str]:
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


def manifest_of(far: Far) -> dict[str, Any]:
    """The manifest of the run on the volume.

    Raises:
        RunError: there is none.
    """
    found = _json(far, "/manifest.json")
    if not isinstance(found.get("stages"), dict):
        raise RunError("the volume holds no run yet: type  modal run scripts/modal_train.py --epochs 3")
    return found


def billed(app: str, manifest: dict[str, Any]) -> tuple[float | None, str]:
    """(USD that Modal billed for the app on the days of the run, or None; in words how that came)."""
    import modal

    starts = sorted(str(entry["started"]) for entry in manifest.get("ledger", []) if entry.get("started"))
    if not starts:
        return None, "nothing was started yet"
    first = (
        datetime.fromisoformat(starts[0])
        .astimezone(UTC)
        .replace(hour=0, minute=0, second=0, microsecond=0, tzinfo=None)
    )
    tomorrow = (datetime.now(UTC) + timedelta(days=1)).replace(hour=0, minute=0, second=0, microsecond=0, tzinfo=None)
    try:
        rows = modal.Workspace.from_context().billing.report(start=first, end=tomorrow, resolution="d")
    except modal.exception.Error as error:
        return None, f"modal billing report does not answer here ({' '.join(str(error).split())[:120]})"
    own = [row for row in rows if row.description == app]
    return float(
        sum(row.cost for row in own)
    ), f"by Modal for all runs of the app {app} since {first:%Y-%m-%d}; whole days only, so today's may be missing"


def costs(manifest: dict[str, Any]) -> list[dict[str, Any]]:
    """Of each stage: quoted, and metered as seconds times price."""
    quoted = {
        s["name"].split(" and ")[0]: s
        for s in ((manifest["stages"].get("plan", {}).get("result")) or {}).get("stages", [])
    }
    metered = by_stage(manifest)
    names = [*dict.fromkeys([*metered, *quoted])]
    return [
        {
            "stage": name,
            "quoted_usd": quoted[name]["usd"] if name in quoted else None,
            "quoted_seconds": quoted[name]["seconds"] if name in quoted else None,
            "metered_usd": round(metered[name][0], 6) if name in metered else None,
            "metered_seconds": round(metered[name][1], 2) if name in metered else None,
        }
        for name in names
    ]


def _json(far: Far, path: str) -> dict[str, Any]:
    try:
        found = json.loads(read_text(far, path) or "{}")
    except ValueError:  # it is being replaced
        return {}
    return found if isinstance(found, dict) else {}


def _last_step(far: Far) -> dict[str, Any] | None:
    for line in reversed((read_text(far, "/metrics.jsonl") or "").splitlines()):
        try:
            return dict(json.loads(line))
        except ValueError:
            continue  # half-written
    return None
