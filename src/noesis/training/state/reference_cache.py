"""The reference's log-probabilities on disk: a resumed run has bit-identical rewards."""

from __future__ import annotations

from pathlib import Path

from noesis.core.files import sha256_file, sha256_json, write_json
from noesis.core.jsonl import read_json_file
from noesis.training.job import TrainJob
from noesis.training.state.adapter import ADAPTER_FILE

REFERENCE_FILE = "reference.json"
PairLosses = list[
    list[float]
]  # (pairs, then held-out pairs; 2): summed negative log-likelihoods of chosen and rejected


class ReferenceCache:
    """The stored reference of a job: valid for its very pairs, for one adapter and for the arithmetic of its plan.

    Args:
        adapter: folder of the adapter that the reference has; None: the bare base.
    """

    def __init__(self, job: TrainJob, *, adapter: Path | None) -> None:
        pairs, plan = job.pairs, job.plan
        rows = [
            [pair.chosen.input_ids, pair.chosen.labels, pair.rejected.input_ids, pair.rejected.labels]
            for pair in (*pairs.train, *pairs.held_out)
        ]
        adapter_hash = None if adapter is None else sha256_file(adapter / ADAPTER_FILE)
        self.file = job.checkpoints / REFERENCE_FILE
        self.key = sha256_json([rows, adapter_hash, plan.model, plan.setup.precision, plan.setup.compute_dtype])

    def load(self) -> PairLosses | None:
        """What `save` wrote for the same key; None otherwise, then it must be computed."""
        try:
            stored = read_json_file(self.file, constants=False)
            losses: PairLosses = stored["losses"]
            valid = stored["key"] == self.key and stored["sha256"] == sha256_json(losses)
        except (FileNotFoundError, ValueError, KeyError, TypeError, AttributeError):
            return None
        return losses if valid else None

    def save(self, losses: PairLosses) -> None:
        """Write them, whole or not at all."""
        write_json(self.file, {"key": self.key, "sha256": sha256_json(losses), "losses": losses})
