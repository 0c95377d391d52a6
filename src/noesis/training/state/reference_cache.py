"""The reference's log-probabilities on disk, `checkpoints/reference.json`, so that a run that goes on has the same rewards to the bit."""

from __future__ import annotations

import json
from pathlib import Path

from noesis.core.files import sha256_file, sha256_json, write_json
from noesis.planning.plan import Plan
from noesis.training.job import PreferencePairs
from noesis.training.state.adapter import ADAPTER_FILE

Losses = list[list[float]]  # (pairs, then held-out pairs; 2): summed negative log-likelihoods of chosen and rejected


def load_reference(file: Path, data: PreferencePairs, start: Path | None, plan: Plan) -> Losses | None:
    """What `keep_reference` wrote for these very pairs, this adapter and this arithmetic; None otherwise, then it is computed anew."""
    try:
        stored = json.loads(file.read_text(encoding="utf-8"))
        losses: Losses = stored["losses"]
        same = stored["key"] == _key(data, start, plan) and stored["sha256"] == sha256_json(losses)
    except (FileNotFoundError, ValueError, KeyError, TypeError):
        return None
    return losses if same else None


def save_reference(file: Path, data: PreferencePairs, start: Path | None, plan: Plan, losses: Losses) -> None:
    """Write them, whole or not at all."""
    file.parent.mkdir(parents=True, exist_ok=True)
    write_json(file, {"key": _key(data, start, plan), "sha256": sha256_json(losses), "losses": losses})


def _key(data: PreferencePairs, start: Path | None, plan: Plan) -> str:
    rows = [
        [pair.chosen.input_ids, pair.chosen.labels, pair.rejected.input_ids, pair.rejected.labels]
        for pair in (*data.train, *data.held_out)
    ]
    adapter = None if start is None else sha256_file(start / ADAPTER_FILE)
    return sha256_json([rows, adapter, plan.model, plan.setup.precision, plan.setup.compute_dtype])
