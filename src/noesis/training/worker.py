"""One process of torchrun: `python -m noesis.training.worker JOB.json OUTCOME.json` (started by backends/torchrun.py).

Every process reads the job; the main one writes the outcome: `{"result": …}`, or `{"error": …, "capped": …}`.
"""

from __future__ import annotations

import json
import signal
import sys
from pathlib import Path
from typing import Any

from noesis.core.console import guard_terminal
from noesis.core.errors import CapError, NoesisError
from noesis.core.files import write_text
from noesis.core.signals import Interrupt, Terminated
from noesis.training.distributed import is_main_process
from noesis.training.job import TrainJob


def run_worker(job_file: Path, outcome_file: Path) -> None:
    """Train this process's share of the job."""
    import torch.distributed

    from noesis.training.trainer import train

    try:
        result = train(TrainJob.from_json(json.loads(job_file.read_text(encoding="utf-8"))))
    except NoesisError as error:
        _write(outcome_file, {"error": str(error), "capped": isinstance(error, CapError)})
        raise SystemExit(1) from None
    finally:
        if torch.distributed.is_initialized():
            torch.distributed.destroy_process_group()
    if is_main_process():
        _write(outcome_file, {"result": result.to_json()})


def _write(file: Path, outcome: dict[str, Any]) -> None:
    write_text(file, json.dumps(outcome))


if __name__ == "__main__":
    guard_terminal()
    Interrupt.silent = True  # the command has said it
    try:
        run_worker(Path(sys.argv[1]), Path(sys.argv[2]))
    except KeyboardInterrupt:
        sys.exit(128 + signal.SIGINT)
    except Terminated:
        sys.exit(128 + signal.SIGTERM)
