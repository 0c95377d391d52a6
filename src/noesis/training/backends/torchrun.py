"""SFT on every GPU of this host: one process for each, started by torchrun and stopped with the user's command.

python -m torch.distributed.run --standalone --nproc-per-node 2 -m noesis.training.worker JOB.json OUTCOME.json
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from noesis.core.errors import CapError, TrainingError
from noesis.core.files import write_text
from noesis.training.backends.build_model import engine_refusal
from noesis.training.distributed import is_worker
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
        gpus = job.plan.setup.gpus
        with tempfile.TemporaryDirectory() as folder:
            job_file, outcome_file = Path(folder) / "job.json", Path(folder) / "outcome.json"
            write_text(job_file, json.dumps(job.to_json()))
            command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(gpus)]
            command += ["-m", "noesis.training.worker", str(job_file), str(outcome_file)]
            outcome = _run(command, outcome_file)
        if outcome.get("capped"):
            raise CapError(outcome["error"])
        if "error" in outcome:
            raise TrainingError(f"training on {gpus} GPUs failed: {outcome['error']}")
        return TrainResult.from_json(outcome["result"])


def _run(command: list[str], outcome_file: Path) -> dict[str, Any]:
    """Run torchrun to its end; what the main process wrote, or an error where it wrote nothing."""
    process = subprocess.Popen(command, env={**os.environ, "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", "4")})
    try:
        process.wait()
    except BaseException:  # Ctrl-C and the like: the processes save their last whole step and end before this one
        process.send_signal(signal.SIGINT)
        process.wait()
        raise
    if not outcome_file.is_file():
        return {"error": f"a process ended with code {process.returncode}; see above"}
    return dict(json.loads(outcome_file.read_text(encoding="utf-8")))
