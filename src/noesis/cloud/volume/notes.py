"""Small files that containers of one run leave for each other on the volume."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from noesis.cloud.volume.layout import EPOCHS, FOLDER, OPENED
from noesis.core.files import write_json
from noesis.core.jsonl import read_json_file
from noesis.run.ledger import LedgerEntry
from noesis.tribunal.heldout import Preference


@dataclass(frozen=True)
class OpenedRun:
    """Which training call opened the run on the volume: files that were there before are not that call's work.

    ticket: the orchestrator's call id
    starts: containers that this call has had, one after the other; each but the first replaced one that was preempted
    epochs: that the run trains
    """

    ticket: str
    starts: int
    epochs: int

    @classmethod
    def read(cls, root: Path) -> OpenedRun | None:
        """The note on the volume at `root`; None before the first training."""
        file = root / FOLDER / OPENED
        if not file.is_file():
            return None
        found = read_json_file(file, constants=False)
        return cls(str(found["ticket"]), int(found["starts"]), int(found["epochs"]))

    def write(self, root: Path) -> None:
        write_json(root / FOLDER / OPENED, {"ticket": self.ticket, "starts": self.starts, "epochs": self.epochs})


@dataclass(frozen=True)
class JudgedEpoch:
    """One epoch, judged while the next one trained.

    preference: held-out loss and preference of base and tuned model
    ledger: what judging it cost; booked in the run's ledger by the merge
    """

    epoch: int
    preference: Preference
    ledger: tuple[LedgerEntry, ...]

    def to_json(self) -> dict[str, Any]:
        return {
            "epoch": self.epoch,
            "preference": self.preference.to_json(),
            "ledger": [entry.to_json() for entry in self.ledger],
        }

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> JudgedEpoch:
        ledger = tuple(LedgerEntry.from_json(entry) for entry in value["ledger"])
        return cls(int(value["epoch"]), Preference.from_json(value["preference"]), ledger)

    def write(self, root: Path) -> None:
        write_json(judged_epoch_file(root, self.epoch), self.to_json())


def judged_epoch_file(root: Path, epoch: int) -> Path:
    return root / EPOCHS / f"epoch_{epoch}.json"


def judged_epochs(root: Path) -> list[JudgedEpoch]:
    """The epochs that were judged, in order."""
    files = (root / EPOCHS).glob("epoch_[0-9]*.json")
    found = [JudgedEpoch.from_json(read_json_file(file, constants=False)) for file in files]
    return sorted(found, key=lambda judged: judged.epoch)
