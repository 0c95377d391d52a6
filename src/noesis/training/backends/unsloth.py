"""`engine: unsloth`: SFT by Unsloth (https://unsloth.ai); the same rows in, the same adapters and metrics out.

Unsloth needs older versions of transformers and TRL than this project, so it is never imported here: a process of the
other environment runs `unsloth_worker.py`. NOESIS_UNSLOTH_PYTHON names that environment's interpreter.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import tempfile
import threading
from collections import deque
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any

from noesis.core.console import Progress, complain
from noesis.core.errors import CapError, TrainingError
from noesis.core.files import write_text
from noesis.core.i18n import N_, _
from noesis.core.rooted import remove
from noesis.run.metrics import read_metrics
from noesis.training.backends.trainer_arguments import shared_arguments
from noesis.training.job import TrainJob, TrainResult
from noesis.training.tracking.trackers import report

PYTHON = "NOESIS_UNSLOTH_PYTHON"
PRINTED_S = 5.0  # for the last lines; a child of its own may hold the pipe open
LAST_LINES, LOOKS_S = 40, 0.5  # of its output, shown where it fails; between two looks at its metrics
HOW = N_(
    "make one with  python -m venv unsloth-env && unsloth-env/bin/pip install -r constraints-unsloth.txt  "
    "and set {python}=unsloth-env/bin/python",
    python=PYTHON,
)


class Unsloth:
    """Unsloth in a process of its own environment. It stops at the budget, but not at a signal within a step."""

    name = "unsloth"

    def refusal_reason(self, job: TrainJob) -> str | None:
        return None if job.plan.setup.engine == "unsloth" else _("training_config.yaml does not set engine: unsloth")

    def train(self, job: TrainJob) -> TrainResult:
        """As `Backend.train`.

        Raises:
            TrainingError: the environment is missing or lacks Unsloth, or its process failed.
        """
        python = _find_environment()
        with tempfile.TemporaryDirectory() as folder:
            job_file, result_file = Path(folder) / "job.json", Path(folder) / "result.json"
            message = {"job": job.to_json(), "trl": shared_arguments(job), "result": str(result_file)}
            write_text(job_file, json.dumps(message))
            # -P: this file's folder, where `unsloth` is this file, stays off the worker's import path
            command = [python, "-P", str(Path(__file__).with_name("unsloth_worker.py")), str(job_file)]
            figures = _run(job, command, Path(folder), result_file)
        remove(job.resume_folder)  # Unsloth's states, which nothing else can read
        lines = read_metrics(job.metrics)
        if names := job.config.training.report_to:
            report(names, job.config, job.metrics.parent, [(line["step"], line) for line in lines])
        losses = [line["loss"] for line in lines]
        return TrainResult(epochs=job.plan.epochs, first_loss=losses[0], final_loss=losses[-1], **figures)


def _run(job: TrainJob, command: list[str], folder: Path, result_file: Path) -> dict[str, Any]:
    """Run Unsloth's process to its end; the figures that it wrote."""
    pipes: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
    environment = {**os.environ, "PYTHONUNBUFFERED": "1", "PYTHONIOENCODING": "utf-8"}
    process = subprocess.Popen(
        command, cwd=folder, env=environment, encoding="utf-8", errors="replace", stdin=subprocess.DEVNULL, **pipes
    )
    printed = _Kept(process.stdout)
    try:
        _follow(process, job)
    finally:
        process.kill()
        process.wait()
        printed.join(PRINTED_S)
    if process.returncode != 0 or not result_file.is_file():
        for line in printed.lines:
            complain(line)
        raise TrainingError(
            _(
                "Unsloth's process ended with code {code}; its last lines are above. "
                "To train without it: engine: noesis in training_config.yaml",
                code=process.returncode,
            )
        )
    return dict(json.loads(result_file.read_text(encoding="utf-8")))


def _follow(process: subprocess.Popen[str], job: TrainJob) -> None:
    """Show the progress of Unsloth's process until it ends.

    Raises:
        CapError: the budget is spent.
    """
    done, total = 0, job.plan.tokens_per_epoch * job.plan.epochs
    with Progress("train", total, "tok", every_s=15) as progress:
        while process.poll() is None:
            if job.budget is not None and job.budget.left_seconds() <= 0:
                raise CapError(
                    _(
                        "Unsloth was stopped at the agreed cap: {spent}; "
                        "the same command with a higher cap resumes from its last saved step",
                        spent=job.budget.describe(),
                    )
                )
            with suppress(subprocess.TimeoutExpired):
                process.wait(LOOKS_S)
            if lines := read_metrics(job.metrics):
                progress.advance(lines[-1]["tokens"] - done, f"loss {lines[-1]['loss']:.3f}")
                done = lines[-1]["tokens"]


class _Kept(threading.Thread):
    """The last lines that a process prints, which else fill the terminal."""

    def __init__(self, out: Iterable[str] | None) -> None:
        super().__init__(daemon=True)
        self.out, self.lines = out or (), deque[str](maxlen=LAST_LINES)
        self.start()

    def run(self) -> None:
        self.lines.extend(line.rstrip("\r\n") for line in self.out)


def _find_environment() -> str:
    """The interpreter of Unsloth's environment.

    Raises:
        TrainingError: none is named, it can't be run, or it lacks Unsloth.
    """
    python = os.environ.get(PYTHON)
    if not python:
        raise TrainingError(
            _(
                "engine: unsloth needs an environment of its own: {how}; or set engine: noesis in training_config.yaml",
                how=_(HOW),
            )
        )
    if shutil.which(python) is None:
        raise TrainingError(_("{variable}={python} can't be run: {how}", variable=PYTHON, python=python, how=_(HOW)))
    code = "import importlib.util, sys; sys.exit(importlib.util.find_spec('unsloth') is None)"
    if subprocess.run([python, "-P", "-c", code], check=False).returncode != 0:
        raise TrainingError(
            _("{variable}={python} has no package unsloth: {how}", variable=PYTHON, python=python, how=_(HOW))
        )
    return python
