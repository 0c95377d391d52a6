"""One container writes the run at a time: each leaves a heartbeat on the volume, and the newest goes on.

Modal starts a preempted call again while its first container may still be saving, and a call whose answer was lost may
have been started twice. Every container has a file of its own in /.cloud/writers/: the last writer of a file wins. A
newer container waits until no older one is alive; an older one that sees a newer saves, leaves, and is heard no more.
"""

from __future__ import annotations

import os
import time
import uuid
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path

from noesis.cloud.volume.layout import FOLDER, WRITERS
from noesis.core.console import duration, say
from noesis.core.errors import RunError
from noesis.core.files import write_json
from noesis.core.i18n import _
from noesis.core.jsonl import read_json_file
from noesis.core.rooted import remove

LASTS_S = 720.0  # until a writer counts as dead; longer than any silence of one that is not: see tests/cloud
BEAT_S = 60.0
GRACE_S = 45.0  # that Modal leaves the first container of an input, which runs again elsewhere, is shorter
KEPT_S = 7 * 24 * 3600.0  # older records are removed


class SupersededError(RunError):
    """A newer container writes this run."""


class OpenFilesError(RunError):
    """The volume can't be reloaded while one of its files is open here."""


@dataclass(frozen=True)
class WriterRecord:
    """A container that writes the run, or has.

    turn: when its call was started, on the orchestrator's clock
    began: when it started itself, on its own clock: a preempted call starts again
    source: the Modal input that it works on
    until: when it counts as dead
    """

    id: str
    turn: float
    began: float
    source: str
    until: float

    @property
    def order(self) -> tuple[float, float, str]:
        """Later is newer."""
        return (self.turn, self.began, self.id)


def writers(root: Path) -> list[WriterRecord]:
    """Every record on the volume at `root`; what can't be read is nobody's."""
    found = []
    for file in sorted((root / FOLDER / WRITERS).glob("[!.]*.json")):
        try:
            raw = read_json_file(file)
            numbers = (float(raw["turn"]), float(raw["began"]))
            found.append(WriterRecord(str(raw["id"]), *numbers, str(raw["source"]), float(raw["until"])))
        except (OSError, ValueError, TypeError, KeyError):
            continue
    return found


def seconds_of_writers(root: Path, now: float) -> float:
    """Seconds until no container writes the run any more, unless one of them goes on."""
    found = writers(root)
    return max((min(_dead_at(record, found) - now, LASTS_S) for record in found), default=0.0)


def _dead_at(record: WriterRecord, records: list[WriterRecord]) -> float:
    """When a container is heard no more: its heartbeat has run out, or a newer one of its input has waited for it."""
    newer = [r.began + GRACE_S for r in records if r.source == record.source != "" and r.order > record.order]
    return min([record.until, *newer])


@dataclass
class Writer:
    """This container, as one that writes the run on the volume at `root`."""

    root: Path
    commit: Callable[[], None]
    reload: Callable[[], None]
    turn: float = 0.0
    source: str = ""
    clock: Callable[[], float] = time.time
    sleep: Callable[[float], None] = time.sleep
    id: str = field(default_factory=lambda: uuid.uuid4().hex[:16])
    began: float = 0.0
    until: float = 0.0

    def take(self) -> None:
        """Announce this container and wait until no older one is alive.

        Raises:
            SupersededError: there is a newer one.
        """
        self.began = self.clock()
        self._write(LASTS_S)
        self.require_newest()
        said = False
        while (left := self._seconds_of_older()) > 0:
            if not said:
                say(_("  waiting for an earlier container of this run to save (at most {left})", left=duration(left)))
                said = True
            self.sleep(min(left, 2.0))
            self.reload()
            if self.until - self.clock() < LASTS_S - BEAT_S:
                self._write(LASTS_S)
            self.require_newest()

    def beat(self) -> None:
        """Say that this container is alive.

        Raises:
            SupersededError: there is a newer one.
        """
        self._write(LASTS_S)
        with suppress(OpenFilesError):  # a stage reads a merged model in place: the next heartbeat sees the others
            self.reload()
        self.require_newest()

    def leave(self) -> None:
        """Say that this container writes no more."""
        self._write(0.0)
        for record in writers(self.root):
            if self.clock() - record.until > KEPT_S:
                remove(self.root / FOLDER / WRITERS / f"{record.id}.json")

    def require_newest(self) -> None:
        """Raises: SupersededError: there is a newer container."""
        if self._newer():
            raise SupersededError(_("another container continues this run; this one has saved and stops"))

    def may_publish(self) -> bool:
        """Whether a newer container, if there is one, still waits for this one."""
        newer = self._newer()
        patience = min((self._waits(own=record, other=self._record(self.until)) for record in newer), default=0.0)
        return not newer or self.clock() < patience

    def _seconds_of_older(self) -> float:
        now, own, found = self.clock(), self._record(self.until), writers(self.root)
        older = [record for record in found if record.order < own.order]
        waits = (min(self._waits(own=own, other=record), _dead_at(record, found)) for record in older)
        return max((until - now for until in waits), default=0.0)

    @staticmethod
    def _waits(*, own: WriterRecord, other: WriterRecord) -> float:
        """Until when the newer container `own` waits for the older one `other`."""
        same = own.source == other.source and own.source != ""
        latest = own.began + (GRACE_S if same else LASTS_S)
        return min(other.until, latest)

    def _newer(self) -> list[WriterRecord]:
        own = self._record(self.until)
        return [record for record in writers(self.root) if record.order > own.order]

    def _record(self, until: float) -> WriterRecord:
        return WriterRecord(self.id, self.turn, self.began, self.source, until)

    def _write(self, lasts: float) -> None:
        until = self.clock() + lasts
        write_json(self.root / FOLDER / WRITERS / f"{self.id}.json", asdict(self._record(until)))
        self.commit()
        self.until = until


def this_input() -> str:
    """The Modal input that this container works on; "" outside of Modal."""
    if "MODAL_TASK_ID" not in os.environ:
        return ""
    import modal

    return modal.current_input_id() or ""
