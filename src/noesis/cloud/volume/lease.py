"""One run at a time on a volume: a lease that its holder renews, and that expires by itself if the holder was killed.

A volume has no locks: the last writer of a file wins. So a lease is written, committed, and read back a moment later; a
call that then finds another holder in it has lost. The holder is the orchestrator's call id, which stays the same when
its container is preempted and the call starts again.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path

from noesis.cloud.volume.layout import FOLDER, LEASE
from noesis.cloud.volume.writer import seconds_of_writers
from noesis.core.console import command, duration, say
from noesis.core.errors import RunError
from noesis.core.files import read_text, write_json
from noesis.core.i18n import _

LASTS_S = 720.0  # until it expires, unless renewed: longer than any silence of a holder that is alive
LEAVING_S = 45.0  # after an orderly stop, while started calls may still be saving
RENEW_S = 60.0
SETTLE_S = 1.5  # between writing and reading back


@dataclass(frozen=True)
class LeaseRecord:
    """lease.json on the volume.

    until: Unix time at which it expires
    calls: what its holder has started: name → id of the Modal call
    """

    holder: str = ""
    until: float = 0.0
    calls: Mapping[str, str] = field(default_factory=dict)

    def to_json(self) -> dict[str, object]:
        return asdict(self)

    @classmethod
    def parse(cls, text: str | None) -> LeaseRecord:
        """The record in `text`; nobody's, expired, where there is none or it is damaged."""
        try:
            found = json.loads(text or "{}")
            calls = {str(name): str(call) for name, call in found.get("calls", {}).items()}
            return cls(str(found.get("holder", "")), float(found.get("until", 0.0)), calls)
        except (ValueError, TypeError, AttributeError):
            return cls()


@dataclass
class Lease:
    """Who works on the volume at `root`, and which calls it has started, so that it finds them after a restart."""

    root: Path
    holder: str
    commit: Callable[[], None]
    reload: Callable[[], None]
    calls: dict[str, str] = field(default_factory=dict)
    clock: Callable[[], float] = time.time
    sleep: Callable[[float], None] = time.sleep
    renewed: float = 0.0

    def take(self) -> None:
        """Wait for a holder that is stopping, then take the lease.

        Raises:
            RunError: another run holds it.
        """
        while (left := self._seconds_of_others()) > 0:
            if left > LEAVING_S:
                raise RunError(
                    _(
                        "another run is using this volume (last sign of life {lasts_s} ago): "
                        "see it with  {command}, or stop it with  {stop}. "
                        "If it was killed, the same command works in {left}",
                        lasts_s=duration(LASTS_S - left),
                        command=command("cloud", "watch"),
                        stop=command("cloud", "stop"),
                        left=duration(left),
                    )
                )
            say(_("  waiting {left} for the previous run to save", left=duration(left)))
            self.sleep(min(left, 5.0))
            self.reload()
        own = self._read()
        if own.holder == self.holder:
            self.calls = dict(own.calls)
        self._write(LASTS_S)
        self.sleep(SETTLE_S)
        self.reload()
        self._require_own()

    def renew(self) -> None:
        """Renew the lease if that is due.

        Raises:
            RunError: another run took it, after this one had not renewed it for too long.
        """
        if self.clock() - self.renewed >= RENEW_S:
            self._require_own()
            self._write(LASTS_S)

    def add_call(self, name: str, call: str) -> None:
        """Record a call that was started."""
        self.calls[name] = call
        self._write(LASTS_S)

    def remove_call(self, name: str) -> None:
        """Remove a call that has ended, so that it may be made again."""
        self.calls.pop(name, None)
        self._write(LASTS_S)

    def release(self, *, leaving: bool = False) -> None:
        """Give the lease back; with `leaving` after LEAVING_S: started calls are saving, or this call restarts."""
        if not leaving:
            self.calls = {}
        self._write(LEAVING_S if leaving else 0.0)

    def _seconds_of_others(self) -> float:
        """Seconds until the lease of another holder expires, and with it the last container that it started."""
        lease = self._read()
        if lease.holder == self.holder:
            return 0.0
        return max(lease.until - self.clock(), seconds_of_writers(self.root, self.clock()))

    def _require_own(self) -> None:
        if self._read().holder != self.holder:
            raise RunError(
                _(
                    "another run started on this volume at the same moment; it continues and this one stops: "
                    "see it with  {command}",
                    command=command("cloud", "watch"),
                )
            )

    def _read(self) -> LeaseRecord:
        try:
            return LeaseRecord.parse(read_text(self.root / FOLDER / LEASE))
        except (FileNotFoundError, UnicodeDecodeError):
            return LeaseRecord()

    def _write(self, lasts: float) -> None:
        self.renewed = self.clock()
        record = LeaseRecord(self.holder, self.renewed + lasts, self.calls)
        write_json(self.root / FOLDER / LEASE, record.to_json())
        self.commit()
