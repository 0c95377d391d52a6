"""Training on every card of this host: one process a card by torchrun, started and ended by the command that the user ran.

python -m torch.distributed.run --standalone --nproc-per-node 2 -m noesis.training.worker JOB.json     (what `on_all_cards` runs)
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
from dataclasses import asdict
from pathlib import Path
from typing import Any

from noesis.core.config import Config
from noesis.core.device import Device
from noesis.core.errors import CapError, TrainingError
from noesis.llm.token_rows import TokenRow
from noesis.planning.budget import Budget
from noesis.planning.plan import Plan


def train_on_all_gpus(
    folder: Path,
    rows: list[TokenRow],
    config: Config,
    plan: Plan,
    device: Device,
    *,
    checkpoints: Path,
    metrics: Path,
    budget: Budget | None = None,
    parent: Path | None = None,
) -> dict[str, Any]:
    """`train` in one process a card; returns what the first of them returned.

    Raises:
        TrainingError: a process failed; its own message if it had one.
        CapError: the processes stopped at the budget.
    """
    with tempfile.TemporaryDirectory() as place:
        job, answer = Path(place) / "job.json", Path(place) / "answer.json"
        job.write_text(
            json.dumps(
                {
                    "folder": str(folder),
                    "rows": [asdict(row) for row in rows],
                    "config": config.model_dump(mode="json"),
                    "plan": plan.to_json(),
                    "device": device.to_json(),
                    "checkpoints": str(checkpoints),
                    "metrics": str(metrics),
                    "budget": budget.to_json() if budget else None,
                    "parent": str(parent) if parent else None,
                    "answer": str(answer),
                }
            ),
            encoding="utf-8",
        )
        cards = str(plan.setup.gpus)
        command = [
            sys.executable,
            "-m",
            "torch.distributed.run",
            "--standalone",
            "--nproc-per-node",
            cards,
            "-m",
            "noesis.training.worker",
            str(job),
        ]
        process = subprocess.Popen(
            command, env={**os.environ, "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", "4")}
        )
        try:
            process.wait()
        except BaseException:  # Ctrl-C and the like: the processes save their last whole step and end before this one
            process.send_signal(signal.SIGINT)
            process.wait()
            raise
        found = (
            json.loads(answer.read_text(encoding="utf-8"))
            if answer.is_file()
            else {"error": f"a process ended with code {process.returncode}; see above"}
        )
    if found.get("capped"):
        raise CapError(found["error"])
    if "error" in found:
        raise TrainingError(f"training on {cards} cards failed: {found['error']}")
    return dict(found)
