"""SFT in this process; under torchrun, on this process's share of each step."""

from __future__ import annotations

from noesis.training.backends.run_trainer import run_trainer
from noesis.training.job import TrainJob, TrainResult


class Sft:
    """Takes every SFT job: each step's sequences are packed into rows."""

    name = "sft"

    def refusal_reason(self, job: TrainJob) -> str | None:
        return None

    def train(self, job: TrainJob) -> TrainResult:
        from noesis.training.backends.sft_trainer import build_sft_trainer

        return run_trainer(job, build_sft_trainer)
