"""How long a step takes on this machine: `noesis plan --measure` trains a few, as a run would, and keeps nothing."""

from __future__ import annotations

import tempfile
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

from noesis.core.config import Config
from noesis.core.console import say
from noesis.core.device import Device
from noesis.core.errors import TrainingError
from noesis.core.i18n import _
from noesis.llm.token_rows import TokenRow
from noesis.planning.plan import Plan
from noesis.planning.speed import MeasuredRow
from noesis.planning.workload import first_fit
from noesis.run.metrics import read_metrics
from noesis.training.job import TrainingSet, TrainJob

STEPS, WARM = {"cpu": 4, "cuda": 12}, {"cpu": 1, "cuda": 4}  # trained, and of these not timed
# Lengths around the mean, on a GPU: rows that are all alike fill without a gap, and memory is never asked for anew.
SPREAD = (1.0, 0.55, 1.35, 0.8, 1.6, 0.7)
CPU_TOKENS = 512  # of a row on a CPU, which computes as fast with more


def measure_row(folder: Path, config: Config, plan: Plan, device: Device) -> MeasuredRow:
    """Measure the setup of a plan.

    Args:
        folder: of the model, with its weights.

    Raises:
        As `trainer.train`.
    """
    from noesis.training.trainer import train

    steps, warm = STEPS[device.kind], WARM[device.kind]
    mean, setup = max(8, plan.tokens_per_epoch // plan.rows), plan.setup
    if device.kind == "cpu":
        mean, setup = min(mean, CPU_TOKENS), replace(setup, sequences_per_step=1)
    per_step = setup.sequences_per_step
    spread = SPREAD if device.kind == "cuda" else (1.0,)
    lengths = [min(round(mean * spread[i % len(spread)]), plan.longest_row) for i in range(per_step * steps)]
    ids = [3 + i % 200 for i in range(max(lengths))]  # any tokens: the time does not depend on which
    rows = [TokenRow(ids[:n], ids[:n]) for n in lengths]
    few = replace(
        plan,
        setup=setup,
        epochs=1,
        rows=len(rows),
        steps=steps,
        tokens_per_epoch=sum(lengths),
        longest_row=max(lengths),
        sft=None,
    )
    say(_("  {steps} steps to measure with; nothing of them is kept", steps=steps))
    with tempfile.TemporaryDirectory(prefix="noesis-measure-") as place:
        lines = Path(place) / "metrics.jsonl"
        train(TrainJob(folder, TrainingSet(rows), config, few, device, Path(place) / "checkpoints", lines))
        found = read_metrics(lines)
    if len(found) <= warm:
        raise TrainingError(_("too few steps were trained to measure with"))
    clock = [line["tokens"] / line["tokens_per_s"] for line in found]
    seconds = (clock[-1] - clock[warm - 1]) / (len(found) - warm)
    share, tokens = per_step // max(setup.gpus, 1), found[-1]["tokens"] - found[warm - 1]["tokens"]
    row = len(first_fit(lengths[:share], setup.pack_length)) if setup.packing else -(-share // setup.micro_batch)
    of_each = row * max(setup.gpus, 1) * (len(found) - warm)  # rows of all timed steps and GPUs
    return MeasuredRow(setup, tokens // of_each, round(seconds / row, 5), datetime.now(UTC).date().isoformat())
