"""Plans from examples: of a run on this machine, and (`noesis plan`) of one whose model and card need not be here."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

from noesis.config import Config
from noesis.constitution.document import Constitution
from noesis.device import Device, detect
from noesis.errors import UsageError
from noesis.models import find_description, find_tokenizer
from noesis.train.cards import rented
from noesis.train.phases import Material, estimated, material_of, pair_work, plan_of
from noesis.train.plan import Plan, read_shape, require_fit
from noesis.train.shapes import Known, Shape, known_model

Records = list[dict[str, Any]]


def planned(config: Config, folder: Path, material: Material, device: Device) -> Plan:
    """The plan of a run on `device`, which is this machine; `folder`: of the model.

    Raises:
        TrainingError: it does not fit.
    """
    # MODAL_TASK_ID: this is one of Modal's containers, paid for by the second
    hired = device.kind == "cuda" and "MODAL_TASK_ID" in os.environ
    shape = read_shape(folder)
    plan = plan_of(config, config.training.model, shape, material, device, rented=hired)
    _require_fit(plan, config, shape, material, device)
    return plan


def plan_ahead(
    config: Config,
    train: Records,
    constitution: Constitution,
    *,
    besides: dict[str, Records] | None = None,
    gpu: str | None = None,
    gpus: int | None = None,
    exactly: bool = False,
) -> tuple[Plan, Callable[[], None]]:
    """The plan of a run that need not exist. Where the model is not on this machine but known, nothing is fetched unless `exactly`.

    Args:
        besides: what the run takes besides its examples.
        gpu: a card of cards.yaml; None: what this machine has.
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
        material = estimated(config, train, constitution, cast(Known, known).ratio, besides=besides)
    else:
        material = material_of(config, folder, train, constitution, besides=besides)
    plan = plan_of(config, name, shape, material, device, rented=gpu is not None)
    return plan, lambda: _require_fit(plan, config, shape, material, device)


def _require_fit(plan: Plan, config: Config, shape: Shape, material: Material, device: Device) -> None:
    """Of both parts, if there are two."""
    if plan.first is not None:
        require_fit(Plan.from_json(plan.first), config, shape, material.rows or [], device)
    require_fit(
        plan, config, shape, material.rows or [] if material.pairs is None else pair_work(material.pairs), device
    )


def _has_config(folder: Path | None) -> bool:
    return folder is not None and (folder / "config.json").is_file()


def _device(gpu: str | None, gpus: int | None) -> Device:
    if gpu is not None:
        return rented(gpu, gpus or 1)
    here = detect()
    if gpus is not None and gpus > here.cards:
        raise UsageError(
            f"--gpus {gpus}: this machine has {here.cards} cards; name another with --gpu, for example --gpu L40S --gpus {gpus}"
        )
    return here if gpus is None else replace(here, cards=gpus)
