"""Self-distillation on one GPU or CPU: `noesis train --method distill`."""

from __future__ import annotations

from noesis.core.errors import TrainingError
from noesis.core.i18n import _, retold
from noesis.training.backends.build_model import engine_refusal
from noesis.training.backends.run_trainer import run_trainer
from noesis.training.job import TrainJob, TrainResult


class Distill:
    """On the engine alone, which samples and scores with one copy of the weights."""

    name = "distill"

    def refusal_reason(self, job: TrainJob) -> str | None:
        return "the job has no prompts to distill from" if job.data.prompts is None else None

    def train(self, job: TrainJob) -> TrainResult:
        if reason := engine_refusal(job):
            raise TrainingError(
                _(
                    "method: distill trains on the engine alone, which can't train this: {reason}; "
                    "choose another --method or --model",
                    reason=retold(reason),
                )
            )
        from noesis.training.backends.distill.trainer import build_distill_trainer

        return run_trainer(job, build_distill_trainer)
