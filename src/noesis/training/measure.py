"""How long a step of one row takes on this machine: `noesis plan --measure`.

Two shortened copies of the model, of its first layers and with its own embedding and output layer, give the time of a
layer and of the rest; the whole model takes as many layers as it has.
"""

from __future__ import annotations

import gc
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from noesis.core.config import Config
from noesis.core.console import Progress
from noesis.core.device import Device
from noesis.core.libraries import quiet_libraries
from noesis.planning.plan import Plan
from noesis.planning.speed import MeasuredRow
from noesis.training.job import TrainingSet, TrainJob
from noesis.training.packing import PackedRow, pack

LAYERS = (2, 4)  # of the shortened models
REPEATS = 4  # rows of each, the first of which is not timed
LONGEST = 15.0  # seconds for the rows of one model; then fewer are timed
CPU_TOKENS = 512  # of a row on a CPU, which computes as fast with more


def measure_row(folder: Path, config: Config, plan: Plan, device: Device, *, layers: int) -> MeasuredRow:
    """Measure the setup of a plan.

    Args:
        folder: of the model, with its weights.
        layers: of the whole model.

    Raises:
        ModelError: the weights can't be read.
    """
    quiet_libraries()
    row = _typical_row(plan, device)
    job = TrainJob(folder, TrainingSet(), config, plan, device, Path(), Path())
    counts = sorted({min(n, layers) for n in LAYERS})
    with Progress("measure", REPEATS * len(counts), "rows") as progress:
        times = [_seconds(job, row, n, progress) for n in counts]
    each = (times[-1] - times[0]) / (counts[-1] - counts[0]) if len(counts) > 1 else 0.0
    seconds = times[-1] + (layers - counts[-1]) * max(each, 0.0)
    return MeasuredRow(plan.setup, len(row.input_ids), round(seconds, 5), datetime.now(UTC).date().isoformat())


def _typical_row(plan: Plan, device: Device) -> PackedRow:
    """A row of sequences of the mean length, as full as the plan's rows are on average."""
    mean = max(8, plan.tokens_per_epoch // plan.rows)
    if device.kind == "cpu":
        return _row(1, min(mean, CPU_TOKENS))
    step = plan.setup.sequences_per_step // max(plan.setup.gpus, 1)
    count = min(step, max(1, plan.setup.pack_length // mean)) if plan.setup.packing else plan.setup.micro_batch
    return _row(count, mean)


def _row(sequences: int, length: int) -> PackedRow:
    ids = [3 + i % 200 for i in range(length)]  # any tokens: the time does not depend on which
    return pack([(ids, ids)] * sequences, list(range(sequences)))


def _seconds(job: TrainJob, row: PackedRow, layers: int, progress: Progress) -> float:
    """The fastest of a few rows through the first layers."""
    import torch

    from noesis.training.backends.build_model import build_model

    torch.manual_seed(0)
    model = build_model(job, layers=layers)
    divisor = torch.tensor(1.0, device=model.engine.device)
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-6, fused=job.device.kind == "cuda")
    times: list[float] = []
    began = time.monotonic()
    for _ in range(REPEATS):
        start = _now(job.device)
        model.engine.begin_step()
        model(row, divisor).backward()
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        optimizer.zero_grad()
        times.append(_now(job.device) - start)
        progress.advance(1)
        if len(times) > 1 and time.monotonic() - began > LONGEST:
            break
    del model
    gc.collect()
    if job.device.kind == "cuda":
        torch.cuda.empty_cache()
    return min(times[1:])


def _now(device: Device) -> Any:
    if device.kind == "cuda":
        import torch

        torch.cuda.synchronize()
    return time.perf_counter()
