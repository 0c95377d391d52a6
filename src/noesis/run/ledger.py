"""What a run has cost so far: the ledger in its manifest, an entry a stage and process, also of processes that were killed.

While a stage runs, `.meter` in the run directory tells every few seconds how long it has been at work. Whoever opens the run next finds
the note of a killed process and books it, with one interval more than it had noted, so that nothing spent is forgotten.
Durations come from the monotonic clock: setting the time of day changes nothing.
"""

from __future__ import annotations

import json
import os
import threading
import time
from pathlib import Path
from typing import Any

from noesis.core.files import write_json

FILE = ".meter"
EVERY_S = 5.0


class StageMeter:
    """Of one stage in one process."""

    def __init__(self, folder: Path, stage: str, started: str, usd_per_s: float) -> None:
        self.file = folder / FILE
        self.entry: dict[str, Any] = {
            "id": f"{time.time_ns():x}-{os.getpid()}",
            "stage": stage,
            "started": started,
            "usd_per_s": usd_per_s,
        }
        self.began = time.monotonic()
        self.done = threading.Event()
        self._note()
        self.thread = threading.Thread(target=self._tick, name="meter", daemon=True)
        self.thread.start()

    def stop(self, ended: str) -> dict[str, Any]:
        """The entry for the ledger; `ended` says how: done, failed, interrupted, capped."""
        self.done.set()
        self.thread.join()
        return self._priced(time.monotonic() - self.began) | {"ended": ended}

    def _tick(self) -> None:
        while not self.done.wait(EVERY_S):
            try:
                self._note()
            except OSError:  # a full disk: the note can wait, the stage itself will meet it
                continue

    def _note(self) -> None:
        write_json(self.file, self._priced(time.monotonic() - self.began))

    def _priced(self, seconds: float) -> dict[str, Any]:
        return self.entry | {"seconds": round(seconds, 2), "usd": round(seconds * self.entry["usd_per_s"], 6)}


def unrecorded_cost(folder: Path, ledger: list[dict[str, Any]]) -> dict[str, Any] | None:
    """The entry of a process that was killed while it worked here, if there is one that the ledger does not hold."""
    try:
        entry = dict(json.loads((folder / FILE).read_text(encoding="utf-8")))
        seconds, rate = float(entry["seconds"]) + EVERY_S, float(entry["usd_per_s"])
    except (FileNotFoundError, ValueError, KeyError, TypeError):
        return None
    if any(booked.get("id") == entry.get("id") for booked in ledger):
        return None
    return entry | {"seconds": round(seconds, 2), "usd": round(seconds * rate, 6), "ended": "killed"}


def total(ledger: list[dict[str, Any]]) -> tuple[float, float]:
    """(USD, seconds) of all entries."""
    return round(sum(float(e["usd"]) for e in ledger), 6), round(sum(float(e["seconds"]) for e in ledger), 2)
