"""What a run has cost and may still cost, as the orchestrator sees it: no call starts whose worst case the cap forbids.

The containers meter themselves in the run's ledger. One that hung or was killed may have left nothing there, and one
that fetches or probes writes no run: it is charged in /.cloud/charges.json, which the next container that writes the
run books.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

from noesis.cloud.limits import PROBE, CallLimit, orchestrator_limit, within
from noesis.cloud.volume.layout import CHARGES, FOLDER
from noesis.core.errors import NoesisError
from noesis.core.files import write_json
from noesis.core.jsonl import read_json_file
from noesis.run.directory import load_run
from noesis.run.ledger import LedgerEntry, total, unrecorded_cost

WRITERS = ("train", "judge", "merge")  # what they cost is in the ledger as soon as they publish
LEDGERLESS = ("prepare", PROBE)  # functions that write no run


def read_charges(root: Path) -> tuple[LedgerEntry, ...]:
    """What was charged for containers and is in no ledger yet."""
    try:
        rows = read_json_file(root / FOLDER / CHARGES)["charges"]
        return tuple(LedgerEntry.from_json(row) for row in rows)
    except (FileNotFoundError, ValueError, KeyError, TypeError, AttributeError):
        return ()


def write_charges(root: Path, charges: tuple[LedgerEntry, ...]) -> None:
    write_json(root / FOLDER / CHARGES, {"charges": [entry.to_json() for entry in charges]})


def metered_usd(root: Path, *, run: bool = True, charges: bool = True) -> float:
    """USD that the run on the volume has cost, with what a container that still works has published.

    Args:
        run: with what it has cost; it may be another than the one that is paid for.
        charges: with those that no ledger has yet.
    """
    entries: list[LedgerEntry] = []
    with suppress(NoesisError, OSError):  # there is no run yet
        entries += load_run(root).manifest.ledger if run else ()
        working = unrecorded_cost(root, entries) if run else None
        entries += [working] if working else []
    known = {entry.id for entry in entries}
    charged = [entry for entry in read_charges(root) if charges and entry.id not in known]
    return total([*entries, *charged])[0]


@dataclass
class Reservation:
    """A call in flight of a function, and what it may cost."""

    function: str
    limit: CallLimit
    began: float
    metered_usd: float


@dataclass
class Spending:
    """The calls in flight, and what the cap leaves beside them.

    Args:
        limit_of: the limit of a call by its function's name.
        cap_usd: None: there is no cap.
        is_own: whether the run on the volume is the one that is paid for; another is moved away when training begins,
            with what it has cost.
    """

    root: Path
    limit_of: Callable[[str], CallLimit]
    cap_usd: float | None
    clock: Callable[[], float] = time.time
    is_own: Callable[[], bool] = lambda: True
    reserved: dict[str, Reservation] = field(default_factory=dict)
    beside_usd: float = 0.0  # of epochs and shards: in the ledger only when judging or merging has booked them
    began: float = field(init=False)

    def __post_init__(self) -> None:
        self.began = self.clock()

    def reserve(self, name: str, function: str, *, running: bool = False) -> CallLimit:
        """The limit under which the call `name` may start.

        Args:
            running: it was started before a restart of the orchestrator.

        Raises:
            CapError: what the cap leaves does not pay for it.
        """
        limit = self.limit_of(function)
        if self.cap_usd is not None and not running:
            limits = [limit, *(r.limit for r in self.reserved.values())]
            own = (self.clock() - self.began + max(each.seconds for each in limits)) * orchestrator_limit().usd_per_s
            left = self.cap_usd - self.metered_usd() - self.beside_usd - own - sum(other.usd for other in limits[1:])
            limit = within(limit, left, name, whole=function == PROBE)
        self.reserved[name] = Reservation(function, limit, self.clock(), self.metered_usd(charges=False))
        return limit

    def metered_usd(self, *, charges: bool = True) -> float:
        """USD that is metered of what is paid for."""
        return metered_usd(self.root, run=self.is_own(), charges=charges)

    def seconds(self, name: str) -> float:
        """How long the call has been waited for."""
        return self.clock() - self.reserved[name].began

    def settle(self, name: str, call: str, *, lost: bool, worked_s: float | None = None) -> None:
        """The call has ended; what it cost is charged if no ledger will show it.

        Args:
            lost: it gave no result.
            worked_s: seconds by its container's own clock; None: unknown, so as long as it was waited for.
        """
        done = self.reserved.pop(name, None)
        if done is None:
            return
        seconds = min(self.clock() - done.began if worked_s is None else worked_s, done.limit.seconds)
        usd = seconds * done.limit.usd_per_s
        charged = lost or done.function in LEDGERLESS
        if name in WRITERS:
            usd -= max(self.metered_usd(charges=False) - done.metered_usd, 0.0)
        elif not charged:
            self.beside_usd += usd
        before = read_charges(self.root)
        if charged and usd > 0 and call not in {entry.id for entry in before}:  # a restarted orchestrator asks again
            started = datetime.fromtimestamp(done.began, UTC).isoformat(timespec="seconds")
            ended = "killed" if lost else "done"
            entry = LedgerEntry(call, name, started, done.limit.usd_per_s, round(seconds, 2), round(usd, 6), ended)
            write_charges(self.root, (*before, entry))
