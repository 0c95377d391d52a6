"""Preference training (DPO) on pairs of token rows: `noesis train --method dpo|sft+dpo`."""

from __future__ import annotations

from noesis.training.backends.run_trainer import run_trainer
from noesis.training.job import TrainJob, TrainResult


class PreferenceBackend:
    """DPO on one GPU or CPU."""

    name = "preference"

    def refusal_reason(self, job: TrainJob) -> str | None:
        return "the job has no preference pairs" if job.data.pairs is None else None

    def train(self, job: TrainJob) -> TrainResult:
        from noesis.training.backends.preference_trainer import build_with_reference

        return run_trainer(job, build_with_reference, load_parent=False)
