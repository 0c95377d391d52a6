"""`noesis cloud watch`: the state of the run on the volume, read from what it publishes about once a minute."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

from noesis.cloud.volume.layout import FOLDER, LEASE, SUMMARY
from noesis.cloud.volume.remote import RemoteFiles, manifest_of, read_json, read_text
from noesis.core.console import duration, say
from noesis.run.ledger import FILE as METER
from noesis.run.stages import STAGES

EVERY_S = 20.0  # between two readings of the volume


@dataclass(frozen=True)
class TrainingProgress:
    """The last step that training published."""

    step: int
    epoch: float
    loss: float
    tokens_per_s: float
    seconds_left: float  # 0.0 once training has ended


@dataclass(frozen=True)
class RunProgress:
    """The state of the run on the volume.

    stage: the one that is running, None between two stages
    alive: whether a container holds the volume's lease
    stages: the status of each stage that has started
    """

    stage: str | None
    alive: bool
    done: bool
    usd: float
    quoted_usd: float | None
    steps: int | None
    training: TrainingProgress | None
    stages: dict[str, str]

    def to_json(self) -> dict[str, Any]:
        """Flat: the fields of `training` stand with the others."""
        found = asdict(self)
        training = found.pop("training")
        return found | (training or {})


def follow(files: RemoteFiles, *, once: bool = False, sleep: Callable[[float], None] = time.sleep) -> RunProgress:
    """Print the run's state whenever it changes, until the run ends or, with `once`, a single time."""
    printed: list[str] = []
    while True:
        progress = read_progress(files)
        lines = progress_lines(progress)
        if lines != printed:
            say("\n".join(["", *lines]))
            printed = lines
        if once or not progress.alive:
            return progress
        sleep(EVERY_S)


def read_progress(files: RemoteFiles, *, now: Callable[[], float] = time.time) -> RunProgress:
    """The state of the run on the volume.

    Raises:
        RunError: the volume holds no run.
    """
    manifest = manifest_of(files)
    stages = {name: str(entry.get("status")) for name, entry in manifest["stages"].items()}
    plan = manifest["stages"].get("plan", {}).get("result") or {}
    alive = float(read_json(files, f"/{FOLDER}/{LEASE}").get("until", 0.0)) > now()
    running = next((name for name in reversed(STAGES) if stages.get(name) == "running"), None)
    return RunProgress(
        stage=running,
        alive=alive,
        done=not alive and stages.get("report") == "done" and read_text(files, f"/{SUMMARY}") is not None,
        usd=_spent_usd(files, manifest),
        quoted_usd=plan.get("usd"),
        steps=plan.get("steps"),
        training=_training_progress(files, int(plan.get("steps") or 0), running == "train"),
        stages=stages,
    )


def progress_lines(progress: RunProgress) -> list[str]:
    """The state as lines for a terminal."""
    if progress.done:
        state = "done"
    elif progress.alive:
        state = f"running: {progress.stage or 'between two stages'}"
    else:
        state = "nothing is running on this volume"
    finished = [name for name in STAGES if progress.stages.get(name) == "done"]
    lines = [f"  {state}; done: {', '.join(finished) or 'nothing yet'}"]
    if (t := progress.training) is not None:
        left = f" · {duration(t.seconds_left)} of training left" if t.seconds_left else ""
        lines.append(
            f"  step {t.step}/{progress.steps} · epoch {t.epoch:.2f} · loss {t.loss:.3f} · "
            f"{t.tokens_per_s:,.0f} tokens/s{left}"
        )
    quoted = f" of {progress.quoted_usd:.2f} quoted" if progress.quoted_usd is not None else ""
    lines.append(f"  spent {progress.usd:.2f} USD{quoted}")
    stopped = [name for name, status in progress.stages.items() if status in ("interrupted", "failed", "running")]
    if not progress.alive and not progress.done and stopped:
        lines.append(f"  {stopped[0]} stopped before its end: the same  modal run  continues from there")
    return lines


def _spent_usd(files: RemoteFiles, manifest: dict[str, Any]) -> float:
    """What the ledger holds, and what the running stage has metered since."""
    meter = read_json(files, f"/{METER}")
    recorded = {entry.get("id") for entry in manifest.get("ledger", [])}
    running = float(meter.get("usd", 0.0)) if meter.get("id") not in recorded else 0.0
    return round(float(manifest.get("cost_usd", 0.0)) + running, 4)


def _training_progress(files: RemoteFiles, steps: int, running: bool) -> TrainingProgress | None:
    """The last whole line of metrics.jsonl, with an estimate of the time left."""
    for line in reversed((read_text(files, "/metrics.jsonl") or "").split("\n")):
        try:
            last = dict(json.loads(line))
        except ValueError:
            continue  # half-written
        step, speed = int(last["step"]), float(last["tokens_per_s"])
        tokens_left = int(last["tokens"]) / max(step, 1) * max(steps - step, 0)
        left = round(tokens_left / max(speed, 1e-9), 1) if running else 0.0
        return TrainingProgress(step, float(last["epoch"]), float(last["loss"]), speed, left)
    return None
