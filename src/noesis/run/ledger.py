"""What a run has cost so far: one ledger entry for each stage and process, including processes that were killed.

While a stage runs, `.meter` in the run directory records every few seconds how long it has been running. Whoever opens
the run next finds what a killed process left there and books it, plus one interval, so that nothing spent is forgotten.
Durations come from the monotonic clock: setting the time of day changes nothing.
"""

from __future__ import annotations

import json
import math
import os
import threading
import time
from collections.abc import Iterable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from noesis.core.files import read_text, write_json
from noesis.core.i18n import _

FILE = ".meter"
EVERY_S = 5.0


@dataclass(frozen=True)
class LedgerEntry:
    """What one process spent on one stage.

    Attributes:
        ended: done, failed, interrupted, capped or killed; None while the stage is running.
    """

    id: str
    stage: str
    started: str
    usd_per_s: float
    seconds: float
    usd: float
    ended: str | None = None

    def to_json(self) -> dict[str, Any]:
        return {key: value for key, value in asdict(self).items() if value is not None}

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> LedgerEntry:
        """Raises: KeyError, TypeError, ValueError: not an entry."""
        return cls(
            str(value.get("id", "")),
            str(value["stage"]),
            str(value.get("started", "")),
            _amount(value.get("usd_per_s", 0.0)),
            _amount(value["seconds"]),
            _amount(value["usd"]),
            value.get("ended"),
        )

    def after(self, seconds: float, ended: str | None = None) -> LedgerEntry:
        """The same entry once `seconds` have passed."""
        return replace(self, seconds=round(seconds, 2), usd=round(seconds * self.usd_per_s, 6), ended=ended)


def _amount(value: Any) -> float:
    """Seconds or USD: finite, and not negative, or a cap on their sum would not hold."""
    found = float(value)
    if not (math.isfinite(found) and found >= 0):
        raise ValueError(_("{value!r} is no amount", value=value))
    return found


def parse_entry(text: str) -> LedgerEntry | None:
    """The entry in the text of a `.meter` file; None where it is damaged."""
    try:
        return LedgerEntry.from_json(json.loads(text))
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return None


class StageMeter:
    """Measures one stage in one process."""

    def __init__(self, folder: Path, stage: str, started: str, usd_per_s: float) -> None:
        self.file = folder / FILE
        self.entry = LedgerEntry(f"{time.time_ns():x}-{os.getpid()}", stage, started, usd_per_s, 0.0, 0.0)
        self.started_at = time.monotonic()
        self._done = threading.Event()
        self._note()
        self._thread = threading.Thread(target=self._tick, name="meter", daemon=True)
        self._thread.start()

    def stop(self, ended: str) -> LedgerEntry:
        """The entry for the ledger; `ended`: done, failed, interrupted or capped."""
        self._done.set()
        self._thread.join()
        return self.entry.after(time.monotonic() - self.started_at, ended)

    def _tick(self) -> None:
        while not self._done.wait(EVERY_S):
            try:
                self._note()
            except OSError:  # a full disk: the note can wait, the stage itself will run into it
                continue

    def _note(self) -> None:
        write_json(self.file, self.entry.after(time.monotonic() - self.started_at).to_json())


def unrecorded_cost(folder: Path, ledger: Iterable[LedgerEntry]) -> LedgerEntry | None:
    """The entry of a process that was killed while it worked in `folder`, if there is one that the ledger lacks."""
    try:
        entry = parse_entry(read_text(folder / FILE))
    except (FileNotFoundError, UnicodeDecodeError):
        return None
    if entry is None or any(booked.id == entry.id for booked in ledger):
        return None
    return entry.after(entry.seconds + EVERY_S, "killed")


def total(ledger: Iterable[LedgerEntry]) -> tuple[float, float]:
    """(USD, seconds) of all entries."""
    entries = tuple(ledger)
    return round(sum(e.usd for e in entries), 6), round(sum(e.seconds for e in entries), 2)
