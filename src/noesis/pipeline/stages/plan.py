"""Plans from examples: of a run on this machine, and (`noesis plan`) of one whose model and card need not be here."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

from noesis.constitution.document import Constitution
from noesis.core.config import Config
from noesis.core.device import Device, detect
from noesis.core.errors import UsageError
from noesis.dataset.schema import Dataset
from noesis.llm.hub import find_description, find_tokenizer
from noesis.llm.row_encoder import open_encoder
from noesis.pipeline.session import RunSession
from noesis.pipeline.training_set import build_training_set, estimate_workloads
from noesis.planning.by_method import plan_of
from noesis.planning.display import show_plan
from noesis.planning.gpus import rented_gpu
from noesis.planning.model_shapes import Known, Shape, known_model
from noesis.planning.plan import Plan, read_shape, require_fit, with_planned_storage
from noesis.planning.workload import Workload, Workloads
from noesis.training.methods import saved_states


def plan_run(config: Config, folder: Path, workloads: Workloads, device: Device) -> Plan:
    """The plan of a run on `device`, which is this machine; `folder`: of the model.

    Raises:
        TrainingError: it does not fit.
    """
    # MODAL_TASK_ID: this is one of Modal's containers, paid for by the second
    hired = device.kind == "cuda" and "MODAL_TASK_ID" in os.environ
    shape = read_shape(folder)
    plan = plan_of(config, config.training.model, shape, workloads, device, rented=hired)
    _require_fit(plan, config, shape, workloads, device)
    return plan


def plan_without_run(
    config: Config,
    dataset: Dataset,
    constitution: Constitution,
    *,
    gpu: str | None = None,
    gpus: int | None = None,
    exactly: bool = False,
) -> tuple[Plan, Callable[[], None]]:
    """The plan of a run that need not exist. Where the model is not on this machine but known, nothing is fetched unless `exactly`.

    Args:
        gpu: a card of gpus.yaml; None: what this machine has.
        gpus: how many of them; None: all that are here, or 1.
        exactly: fetch the model's tokenizer (not its weights) rather than estimate tokens; for a quote before a rented card starts.

    Returns:
        the plan, and what raises a TrainingError if it does not fit.
    """
    name, revision = config.training.model, config.training.revision
    device = _device(gpu, gpus)
    folder, known = find_tokenizer(name, revision), known_model(name)
    if (folder is None and exactly) or (known is None and not _has_config(folder)):
        folder = find_description(name, revision)
    shape = known.shape if known is not None and not _has_config(folder) else read_shape(cast(Path, folder))
    if folder is None:
        workloads = estimate_workloads(config, dataset, constitution, cast(Known, known).ratio)
    else:
        workloads = build_training_set(config, dataset, open_encoder(folder), constitution).workloads
    plan = plan_of(config, name, shape, workloads, device, rented=gpu is not None)
    return plan, lambda: _require_fit(plan, config, shape, workloads, device)


def _require_fit(plan: Plan, config: Config, shape: Shape, workloads: Workloads, device: Device) -> None:
    """Of both parts, if there are two."""
    if plan.first is not None:
        require_fit(Plan.from_json(plan.first), config, shape, workloads.sft or Workload((), 0), device)
    require_fit(plan, config, shape, workloads.last, device)


def _has_config(folder: Path | None) -> bool:
    return folder is not None and (folder / "config.json").is_file()


def _device(gpu: str | None, gpus: int | None) -> Device:
    if gpu is not None:
        return rented_gpu(gpu, gpus or 1)
    here = detect()
    if gpus is not None and gpus > here.cards:
        raise UsageError(
            f"--gpus {gpus}: this machine has {here.cards} cards; name another with --gpu, for example --gpu L40S --gpus {gpus}"
        )
    return here if gpus is None else replace(here, cards=gpus)


def run_plan(s: RunSession, *, again: bool = False) -> dict[str, Any]:
    """What will be trained, in how many tokens, and what it is expected to take."""
    stored = s.run.result("plan")
    config = s.config
    if stored is not None and not s.run.is_done("train"):
        same = "setup" in stored and (stored["device"]["name"], stored["device"]["cards"]) == (
            s.device.name,
            s.device.cards,
        )
        again = again or not same  # a run that goes on elsewhere is planned anew, but on the base that it began on
        if saved_states(s.run.checkpoints):
            config = with_planned_storage(config, stored)

    def work() -> dict[str, Any]:
        return plan_run(config, s.model.path, s.training_set.workloads, s.device).as_json()

    result = s.run.perform("plan", work, list, again=again)
    show_plan(result)
    return result
