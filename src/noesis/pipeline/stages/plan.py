"""Stage plan: of a run on this machine, and (`noesis plan`) of one whose model and GPU need not be here."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from noesis.constitution.document import Constitution
from noesis.core.config import Config
from noesis.core.console import say
from noesis.core.device import Device, detect
from noesis.core.errors import ModelError, UsageError
from noesis.core.families.shape import Shape
from noesis.core.i18n import _
from noesis.dataset.schema import Dataset
from noesis.llm.hub import find_description, find_local_model, find_tokenizer
from noesis.llm.model_config import require_trainable
from noesis.llm.row_encoder import open_encoder
from noesis.pipeline.session import RunSession
from noesis.pipeline.training_set import build_training_set, estimate_workloads, planned_workloads
from noesis.planning.by_method import plan_of
from noesis.planning.display import show_plan
from noesis.planning.draft import require_fit
from noesis.planning.gpus import rented_gpu
from noesis.planning.model_shapes import known_model, read_shape
from noesis.planning.plan import Plan, stored_plan, with_planned_storage
from noesis.planning.speed import store_measured_row
from noesis.planning.workload import Workloads
from noesis.run.manifest import Json
from noesis.training.methods import saved_states


def plan_run(config: Config, folder: Path, workloads: Workloads, device: Device) -> Plan:
    """The plan of a run on `device`, which is this machine.

    Args:
        folder: of the base model.

    Raises:
        TrainingError: it does not fit.
    """
    # MODAL_TASK_ID: this is one of Modal's containers, paid for by the second
    rented = device.kind == "cuda" and "MODAL_TASK_ID" in os.environ
    shape = read_shape(folder)
    plan = plan_of(config, config.training.model, shape, workloads, device, rented=rented)
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
    """The plan of a run that need not exist. Nothing is downloaded for a model of `models.yaml`, unless `exactly`.

    Args:
        gpu: a GPU of gpus.yaml to rent; None: this machine.
        gpus: how many of them; None: all that are here, or 1.
        exactly: download the model's tokenizer (not its weights) if needed, instead of estimating the tokens.

    Returns:
        the plan, and a function that raises a TrainingError if it does not fit.
    """
    device = _device(gpu, gpus)
    shape, workloads = _shape_and_workloads(config, dataset, constitution, exactly=exactly)
    plan = plan_of(config, config.training.model, shape, workloads, device, rented=gpu is not None)
    return plan, lambda: _require_fit(plan, config, shape, workloads, device)


def measure_speed(config: Config, dataset: Dataset, constitution: Constitution) -> None:
    """Measure the training rate of the configured model on this machine, for this and every later plan.

    Raises:
        ModelError: the model's weights are not here.
        TrainingError: it does not fit.
    """
    from noesis.training.measure import measure_row

    plan, require_fit = plan_without_run(config, dataset, constitution)
    require_fit()
    model = find_local_model(config.training.model, config.training.revision)
    if model is None:
        raise ModelError(
            _(
                "{model} is not on this machine, so its speed can't be measured here: without --measure "
                "the plan computes it",
                model=config.training.model,
            )
        )
    shape = read_shape(model.path)
    found = measure_row(model.path, config, plan, plan.device)
    store_measured_row(found, shape, plan.adapter_parameters, plan.device)


def _shape_and_workloads(
    config: Config, dataset: Dataset, constitution: Constitution, *, exactly: bool
) -> tuple[Shape, Workloads]:
    """What a plan needs of model and data, from the model's files if they are here, else from `models.yaml`."""
    name, revision = config.training.model, config.training.revision
    folder, known = find_tokenizer(name, revision), known_model(name)
    if folder is None and known is not None and not exactly:
        return known.shape, estimate_workloads(config, dataset, constitution, known.ratio)
    if folder is None or (known is None and not _has_config(folder)):
        folder = find_description(name, revision)
    if _has_config(folder):
        require_trainable(folder)
    shape = known.shape if known is not None and not _has_config(folder) else read_shape(folder)
    encoder = open_encoder(folder)
    rows = build_training_set(config, dataset, encoder, constitution)
    return shape, planned_workloads(config, dataset, constitution, encoder, rows)


def _has_config(folder: Path) -> bool:
    return (folder / "config.json").is_file()


def _require_fit(plan: Plan, config: Config, shape: Shape, workloads: Workloads, device: Device) -> None:
    """Refuse a plan of which a part does not fit."""
    if plan.sft is not None and workloads.sft is not None:
        require_fit(plan.sft, config, shape, workloads.sft, device)
    require_fit(plan, config, shape, workloads.last, device)


def _device(gpu: str | None, gpus: int | None) -> Device:
    if gpu is not None:
        return rented_gpu(gpu, gpus or 1)
    here = detect()
    if gpus is None:
        return here
    if gpus > here.gpus:
        raise UsageError(
            _(
                "--gpus {gpus}: this machine has {here_gpus}; rent others with --gpu, for example "
                "--gpu L40S --gpus {gpus}",
                gpus=gpus,
                here_gpus=here.gpus,
            )
        )
    return replace(here, gpus=gpus)


def run_plan(s: RunSession, *, again: bool = False) -> Plan | None:
    """The stage: what will be trained, on how many tokens, and what that is expected to take.

    A run that continues on another device is planned again, but with the base stored as it was when training started.

    Returns:
        the plan; None if it was made by an early version of Noesis, whose trained runs keep theirs.
    """
    config, earlier = s.config, s.plan
    if s.run.result("plan") is not None and not s.run.is_done("train"):
        again = again or earlier is None or (earlier.device.name, earlier.device.gpus) != (s.device.name, s.device.gpus)
        if saved_states(s.run.checkpoints):
            config = with_planned_storage(config, earlier)

    def work() -> Json:
        return plan_run(config, s.model.path, s.planned_workloads, s.device).to_json()

    plan = stored_plan(s.run.perform("plan", work, list, again=again))
    if plan is None:
        say(_("  made by an early version of Noesis"))
    else:
        show_plan(plan)
    return plan
