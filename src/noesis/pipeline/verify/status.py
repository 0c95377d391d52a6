"""`noesis status RUN`: every stage as it is now. Sizes and times are compared, and only what changed is hashed."""

from __future__ import annotations

from dataclasses import dataclass

from noesis.core.i18n import N_
from noesis.run.directory import Run
from noesis.run.ledger import total
from noesis.run.stages import STAGES


@dataclass(frozen=True)
class StageState:
    """One stage as it is now.

    Attributes:
        status: done, stale, failed, interrupted, running or not run; `changed`: done, but its outputs are not intact.
        inputs: stage that it read from → whether that is still what it read.
        wrong: outputs that are missing or changed.
    """

    name: str
    status: str
    inputs: dict[str, bool]
    wrong: list[str]
    seconds: float
    usd: float


def status(run: Run) -> list[StageState]:
    """Every stage in order, then other work whose cost was booked (epochs judged during training, answers, …)."""
    recorded = [*run.manifest.stages, *(entry.stage for entry in run.manifest.ledger)]
    return [_state(run, name) for name in dict.fromkeys([*STAGES, *recorded])]


def _state(run: Run, name: str) -> StageState:
    record = run.manifest.stages.get(name)
    ledger = [entry for entry in run.manifest.ledger if entry.stage == name]
    usd, seconds = total(ledger)
    if record is None:  # done on another machine, from a copy of the run: its cost is all that is here
        return StageState(name, (ledger[-1].ended or "done") if ledger else N_("not run"), {}, [], seconds, usd)
    state = run.state(name)
    wrong = run.changed(name) if state in ("done", "stale") else []
    inputs = {other: is_as_read(run, other, read) for other, read in record.inputs.items()}
    state = "changed" if wrong and state == "done" else state
    return StageState(name, state, inputs, wrong, seconds or record.seconds, usd)


def is_as_read(run: Run, stage: str, digest: str) -> bool:
    """Whether `stage` still is what another stage read: by its record, and by its files."""
    return run.manifest.is_as_read(stage, digest) and not run.changed(stage)
