"""`noesis cloud watch`: the state of the run on the volume, read from what it publishes about once a minute."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

from noesis.cloud.volume.layout import ENDED, FOLDER, LEASE, SUMMARY
from noesis.cloud.volume.lease import LeaseRecord
from noesis.cloud.volume.remote import RemoteFiles, UnreadableManifest, manifest_of, read_text
from noesis.core.console import duration, printable, say
from noesis.core.errors import RunError
from noesis.core.i18n import _, retold
from noesis.run.ledger import FILE as METER
from noesis.run.ledger import parse_entry
from noesis.run.manifest import Manifest
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
    stages: the state of each stage that has started; stale where what it read has changed since
    usd: spent so far; None where the manifest could not be read
    problem: why the manifest could not be read; only `alive` and `training` are known then
    error: what the last run on the volume ended with, once it has ended
    """

    stage: str | None
    alive: bool
    done: bool
    usd: float | None
    quoted_usd: float | None
    steps: int | None
    training: TrainingProgress | None
    stages: dict[str, str]
    problem: str | None = None
    error: str | None = None

    def to_json(self) -> dict[str, Any]:
        """Flat: the fields of `training` are with the others. Without a problem or an error there is no such field."""
        found = asdict(self)
        training = found.pop("training") or {}
        return {k: v for k, v in (found | training).items() if v is not None or k not in ("problem", "error")}


def follow(files: RemoteFiles, *, once: bool = False, sleep: Callable[[float], None] = time.sleep) -> RunProgress:
    """Print the run's state whenever it changes, until the run ends or, with `once`, a single time."""
    printed: list[str] = []
    while True:
        progress = read_progress(files)
        lines = progress_lines(progress)
        if lines != printed:
            for line in ("", *lines):
                say(line)
            printed = lines
        if once or not progress.alive:
            return progress
        sleep(EVERY_S)


def read_progress(files: RemoteFiles, *, now: Callable[[], float] = time.time) -> RunProgress:
    """The state of the run on the volume.

    Raises:
        RunError: the volume holds no run.
    """
    alive = LeaseRecord.parse(read_text(files, f"/{FOLDER}/{LEASE}")).until > now()
    error = None if alive else _last_error(files)
    try:
        manifest = manifest_of(files)
    except UnreadableManifest as unreadable:
        training = _training_progress(files, None, False)
        return RunProgress(None, alive, False, None, None, None, training, {}, str(unreadable), error)
    except RunError as absent:
        if error is None:
            raise
        return RunProgress(None, alive, False, None, None, None, None, {}, str(absent), error)
    stages = {name: manifest.state(name) for name in manifest.stages}
    plan = manifest.result("plan") or {}
    running = next((name for name in reversed(STAGES) if stages.get(name) == "running"), None)
    return RunProgress(
        stage=running,
        alive=alive,
        done=not alive and stages.get("report") == "done" and read_text(files, f"/{SUMMARY}") is not None,
        usd=_spent_usd(files, manifest),
        quoted_usd=plan.get("usd"),
        steps=plan.get("steps"),
        training=_training_progress(files, plan.get("steps"), running == "train"),
        stages=stages,
        error=error,
    )


def progress_lines(progress: RunProgress) -> list[str]:
    """The state as lines for a terminal."""
    if progress.done:
        state = _("done")
    elif not progress.alive:
        state = _("nothing is running on this volume")
    elif progress.problem is not None:
        state = _("a run is using this volume")
    else:
        state = _("running: {stage}", stage=progress.stage or _("between two stages"))
    if progress.problem is not None:
        lines = [f"  {state}", f"  {retold(progress.problem)}"]
    else:
        done, stale = ([name for name in STAGES if progress.stages.get(name) == status] for status in ("done", "stale"))
        lines = [_("  {state}; done: {done}", state=state, done=", ".join(done) or _("nothing yet"))]
        if stale:
            lines.append(_("  stale: {stale} (what they read has changed since)", stale=", ".join(stale)))
    if (t := progress.training) is not None:
        step = f"{t.step}/{progress.steps}" if progress.steps else str(t.step)
        left = _(" · {seconds_left} of training left", seconds_left=duration(t.seconds_left)) if t.seconds_left else ""
        lines.append(
            _(
                "  step {step} · epoch {epoch:.2f} · loss {loss:.3f} · {tokens_per_s:,.0f} tokens/s{left}",
                step=step,
                epoch=t.epoch,
                loss=t.loss,
                tokens_per_s=t.tokens_per_s,
                left=left,
            )
        )
    if progress.usd is not None:
        quoted = (
            _(" of {quoted_usd:.2f} quoted", quoted_usd=progress.quoted_usd) if progress.quoted_usd is not None else ""
        )
        lines.append(_("  spent {usd:.2f} USD{quoted}", usd=progress.usd, quoted=quoted))
    if progress.error is not None:
        lines.append(_("  the last run ended: {error}", error=printable(retold(progress.error))))
    stopped = [name for name, status in progress.stages.items() if status in ("interrupted", "failed", "running")]
    if not progress.alive and not progress.done and stopped:
        lines.append(
            _("  {stopped} stopped before its end: the same  modal run  continues from there", stopped=stopped[0])
        )
    return lines


def _last_error(files: RemoteFiles) -> str | None:
    try:
        found = json.loads(read_text(files, f"/{FOLDER}/{ENDED}") or "{}").get("error")
    except (ValueError, AttributeError):
        return None
    return found if isinstance(found, str) else None


def _spent_usd(files: RemoteFiles, manifest: Manifest) -> float:
    """What is in the ledger, and what the running stage has metered since."""
    running = parse_entry(read_text(files, f"/{METER}") or "")
    recorded = running is None or any(entry.id == running.id for entry in manifest.ledger)
    return round(manifest.cost_usd + (0.0 if running is None or recorded else running.usd), 4)


def _training_progress(files: RemoteFiles, steps: int | None, running: bool) -> TrainingProgress | None:
    """The last whole line of metrics.jsonl, with an estimate of the time left."""
    for line in reversed((read_text(files, "/metrics.jsonl") or "").split("\n")):
        try:
            last = dict(json.loads(line))
            step, tokens, speed = int(last["step"]), int(last["tokens"]), float(last["tokens_per_s"])
            epoch, loss = float(last["epoch"]), float(last["loss"])
        except (ValueError, TypeError, KeyError):
            continue  # half-written
        tokens_left = tokens / max(step, 1) * max((steps or 0) - step, 0)
        left = round(tokens_left / max(speed, 1e-9), 1) if running else 0.0
        return TrainingProgress(step, epoch, loss, speed, left)
    return None
