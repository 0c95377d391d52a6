"""SFT on every GPU of this host, or of several: a process for each, started by torchrun, stopped with the command.

python -m torch.distributed.run --standalone --nproc-per-node 2 -m noesis.training.worker JOB.json OUTCOME.json
"""

from __future__ import annotations

import json
import tempfile
from dataclasses import replace
from pathlib import Path

from noesis.core.errors import CapError, TrainingError
from noesis.core.files import write_text
from noesis.core.i18n import _
from noesis.training.backends.build_model import engine_refusal
from noesis.training.backends.nodes import hand_over, run_processes
from noesis.training.distributed import Nodes, is_worker
from noesis.training.job import TrainJob, TrainResult


class Torchrun:
    """Runs one process per GPU; each takes its share of every step."""

    name = "torchrun"

    def refusal_reason(self, job: TrainJob) -> str | None:
        if job.plan.setup.gpus <= 1:
            return "the plan uses one GPU"
        if is_worker():
            return "this process is one of torchrun's already"
        return engine_refusal(job) if job.plan.sharded else None

    def train(self, job: TrainJob) -> TrainResult:
        gpus, nodes = job.plan.setup.gpus, Nodes.here()
        with tempfile.TemporaryDirectory() as folder:
            job_file, outcome_file = Path(folder) / "job.json", Path(folder) / "outcome.json"
            write_text(job_file, json.dumps(job.to_json()))
            hand_over(json.dumps(replace(job, budget=None).to_json()))
            outcome = run_processes(nodes.arguments(gpus), job_file, outcome_file)
        if outcome.get("capped"):
            raise CapError(outcome["error"])
        if "error" in outcome:
            raise TrainingError(_("training on {gpus} GPUs failed: {outcome}", gpus=gpus, outcome=outcome["error"]))
        return TrainResult.from_json(outcome["result"])
