"""One run at a time on a volume: a lease, renewed while its holder lives, that runs out by itself when the holder was killed.

A volume has no locks: the last writer of a file wins. So a lease is written, committed, and read back a moment later; who finds another
name in it has lost. The holder is the conductor's call, which keeps its name when its container is taken away and the call starts again.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from noesis.cloud.volume.layout import FOLDER
from noesis.core.console import duration, say
from noesis.core.errors import RunError
from noesis.core.files import write_json

FILE = "lease.json"
LASTS_S = 600.0  # without renewal
LEAVING_S = 45.0  # after a polite end: what it started may still be saving
RENEW_S = 60.0
SETTLE_S = 1.5  # between writing and reading back


@dataclass
class Lease:
    """Who works on the volume at `root`, and the calls that were started for it: with them a conductor that starts again finds its work."""

    root: Path
    holder: str
    commit: Callable[[], None]
    reload: Callable[[], None]
    calls: dict[str, str] = field(default_factory=dict)
    clock: Callable[[], float] = time.time
    sleep: Callable[[float], None] = time.sleep
    renewed: float = 0.0

    def take(self) -> None:
        """Wait for a holder that is leaving, then hold the volume.

        Raises:
            RunError: someone else is at work.
        """
        while (left := self._others()) > 0:
            if left > LEAVING_S:
                raise RunError(
                    f"another run is at work on this volume (it was alive {duration(LASTS_S - left)} ago): see it with  noesis cloud watch, or end it with  "
                    f"modal app stop. Where it was killed, the same command works in {duration(left)}"
                )
            say(f"  waiting {duration(left)} for the run that was here before to save")
            self.sleep(min(left, 5.0))
            self.reload()
        own = self._read()
        if own.get("holder") == self.holder:
            self.calls = dict(own.get("calls", {}))
        self._write(LASTS_S)
        self.sleep(SETTLE_S)
        self.reload()
        self._require_own()

    def renew(self) -> None:
        """Stay the holder; called now and then.

        Raises:
            RunError: someone else took the volume, after this process had been silent for too long.
        """
        if self.clock() - self.renewed >= RENEW_S:
            self._require_own()
            self._write(LASTS_S)

    def note(self, name: str, call: str) -> None:
        """Remember a call that was started."""
        self.calls[name] = call
        self._write(LASTS_S)

    def forget(self, name: str) -> None:
        """A call that has ended and may be made again."""
        self.calls.pop(name, None)
        self._write(LASTS_S)

    def release(self, *, leaving: bool = False) -> None:
        """Give the volume back; `leaving`: what was started may go on for a moment, or this very call comes back."""
        if not leaving:
            self.calls = {}
        self._write(LEAVING_S if leaving else 0.0)

    def _others(self) -> float:
        """Seconds until the lease of another holder ends."""
        lease = self._read()
        return 0.0 if lease.get("holder") == self.holder else float(lease.get("until", 0.0)) - self.clock()

    def _require_own(self) -> None:
        if self._read().get("holder") != self.holder:
            raise RunError(
                "another run began on this volume at the same moment and goes on; this one ends: see it with  noesis cloud watch"
            )

    def _read(self) -> dict[str, Any]:
        try:
            found = json.loads((self.root / FOLDER / FILE).read_text(encoding="utf-8"))
        except (FileNotFoundError, ValueError):
            return {}
        return found if isinstance(found, dict) else {}

    def _write(self, lasts: float) -> None:
        self.renewed = self.clock()
        write_json(
            self.root / FOLDER / FILE, {"holder": self.holder, "until": self.renewed + lasts, "calls": self.calls}
        )
        self.commit()
