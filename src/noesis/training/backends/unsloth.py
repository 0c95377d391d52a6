"""`engine: unsloth`: the same rows in, the same adapters and metrics out, trained by Unsloth in an environment of its own.

Unsloth needs older transformers and TRL than this project, so it is never imported here: a process of the other environment runs
`unsloth_worker.py`. The environment is named by NOESIS_UNSLOTH_PYTHON.
"""

from __future__ import annotations

import json
import math
import os
import shutil
import subprocess
import tempfile
from dataclasses import asdict
from pathlib import Path
from typing import Any

from noesis.core.config import Config
from noesis.core.errors import CapError, TrainingError
from noesis.llm.token_rows import TokenRow
from noesis.planning.budget import Budget
from noesis.planning.plan import Plan
from noesis.run.metrics import read_metrics

PYTHON = "NOESIS_UNSLOTH_PYTHON"
HOW = f"make one with  python -m venv unsloth-env && unsloth-env/bin/pip install -r constraints-unsloth.txt  and set {PYTHON}=unsloth-env/bin/python"


def train_with_unsloth(
    folder: Path,
    rows: list[TokenRow],
    config: Config,
    plan: Plan,
    *,
    checkpoints: Path,
    metrics: Path,
    budget: Budget | None = None,
) -> dict[str, Any]:
    """Train and leave `checkpoints/epoch_0 …` and metrics.jsonl.

    Returns:
        figures of the run, as `trainer.train` returns them.

    Raises:
        CapError: the budget is spent.
        TrainingError: the environment is not there or lacks Unsloth, or its process failed.
    """
    python = _environment()
    t, setup = config.training, plan.setup
    with tempfile.TemporaryDirectory() as place:
        job, answer = Path(place) / "job.json", Path(place) / "answer.json"
        settings = {
            "folder": str(folder),
            "rows": [asdict(row) for row in rows],
            "longest": plan.longest_row,
            "four_bits": setup.precision == "nf4",
            "recompute": setup.gradient_checkpointing != "none",
            "batch": setup.micro_batch,
            "accumulation": max(1, setup.sequences_per_step // setup.micro_batch),
            "optimizer": {"adamw": "adamw_torch_fused", "adamw_8bit": "adamw_8bit"}[setup.optimizer],
            "warmup_steps": round(t.warmup_ratio * plan.steps),
            "lora": config.lora.model_dump(mode="json", include={"r", "lora_alpha", "lora_dropout", "target_modules"}),
            "training": t.model_dump(
                mode="json",
                include={
                    "num_train_epochs",
                    "learning_rate",
                    "lr_scheduler_type",
                    "weight_decay",
                    "max_grad_norm",
                    "seed",
                },
            ),
            "checkpoints": str(checkpoints),
            "metrics": str(metrics),
            "answer": str(answer),
        }
        job.write_text(json.dumps(settings), encoding="utf-8")
        left = None if budget is None or budget.left_seconds() == math.inf else max(budget.left_seconds(), 0.0)
        try:
            done = subprocess.run(
                [python, str(Path(__file__).with_name("unsloth_worker.py")), str(job)],
                cwd=place,
                check=False,
                timeout=left,
            )
        except subprocess.TimeoutExpired:
            assert budget is not None
            raise CapError(
                f"Unsloth was stopped at what was agreed: {budget.describe()}; the same command with more goes on from its last saved step"
            ) from None
        if done.returncode != 0 or not answer.is_file():
            raise TrainingError(
                f"Unsloth's process ended with code {done.returncode}; what it said is above. Without it: engine: noesis in training_config.yaml"
            )
        result = dict(json.loads(answer.read_text(encoding="utf-8")))
    shutil.rmtree(checkpoints / "resume", ignore_errors=True)
    losses = [line["loss"] for line in read_metrics(metrics)]
    return result | {"epochs": t.num_train_epochs, "first_loss": losses[0], "final_loss": losses[-1]}


def _environment() -> str:
    """The interpreter of Unsloth's environment."""
    python = os.environ.get(PYTHON)
    if not python:
        raise TrainingError(
            f"engine: unsloth needs an environment of its own: {HOW}; or set engine: noesis in training_config.yaml"
        )
    if shutil.which(python) is None:
        raise TrainingError(f"{PYTHON}={python} is no program that can be run: {HOW}")
    code = "import importlib.util, sys; sys.exit(importlib.util.find_spec('unsloth') is None)"
    if subprocess.run([python, "-c", code], check=False).returncode != 0:
        raise TrainingError(f"{PYTHON}={python} has no package unsloth: {HOW}")
    return python
