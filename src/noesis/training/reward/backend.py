"""Training of a reward model, `noesis tribunal train-judge`, on one GPU or CPU."""

from __future__ import annotations

from noesis.training.backends.run_trainer import run_trainer
from noesis.training.job import TrainJob, TrainResult


class RewardBackend:
    """Takes the jobs that name a `RewardHead`."""

    name = "reward"

    def refusal_reason(self, job: TrainJob) -> str | None:
        return "the job trains a model that writes" if job.reward is None else None

    def train(self, job: TrainJob) -> TrainResult:
        from noesis.training.reward.trainer import build_reward_trainer

        return run_trainer(job, build_reward_trainer)
