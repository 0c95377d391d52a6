"""Training jobs on a tiny model, as the train stage makes them."""

from __future__ import annotations

from pathlib import Path

from noesis.core.config import Config
from noesis.core.device import Device, detect
from noesis.llm.token_rows import TokenRow
from noesis.planning.by_method import preference_plan
from noesis.planning.draft import make_plan
from noesis.planning.model_shapes import read_shape
from noesis.planning.plan import Plan
from noesis.training.job import PreferencePairs, TrainingSet, TrainJob, count_workload


def sft_job(
    model: Path, folder: Path, rows: list[TokenRow], config: Config, *, plan: Plan | None = None, **more: object
) -> TrainJob:
    """SFT on `rows`, whose checkpoints and metrics go into `folder`."""
    device = detect()
    plan = plan or make_plan(config, "tiny", read_shape(model), count_workload(rows), device)
    return _job(model, folder, TrainingSet(rows=rows), config, plan, device, **more)


def preference_job(model: Path, folder: Path, pairs: PreferencePairs, config: Config, **more: object) -> TrainJob:
    """DPO on `pairs`, whose checkpoints and metrics go into `folder`."""
    data, device = TrainingSet(pairs=pairs), detect()
    plan = preference_plan(config, "tiny", read_shape(model), pairs.work, device)
    return _job(model, folder, data, config, plan, device, **more)


def _job(
    model: Path, folder: Path, data: TrainingSet, config: Config, plan: Plan, device: Device, **more: object
) -> TrainJob:
    checkpoints, metrics = folder / "checkpoints", folder / "metrics.jsonl"
    return TrainJob(model, data, config, plan, device, checkpoints, metrics, **more)  # type: ignore[arg-type]
