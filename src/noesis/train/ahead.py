"""Plans from examples: of a run on this machine, and (`noesis plan`) of one whose model and card need not be here."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

from noesis.config import Config
from noesis.constitution.conversation import Encoded
from noesis.constitution.document import Constitution
from noesis.constitution.tokenizer import load_tokenizer
from noesis.device import Device, detect
from noesis.errors import UsageError
from noesis.models import find_description, find_tokenizer
from noesis.train.cards import rented
from noesis.train.plan import Plan, draft, make_plan, read_shape, require_fit
from noesis.train.rows import training_rows
from noesis.train.shapes import Known, known_model
from noesis.train.work import Work, estimate

Records = list[dict[str, Any]]


def planned(config: Config, folder: Path, train: Records, constitution: Constitution, device: Device) -> Plan:
    """The plan of a run on `device`, which is this machine; tokens are counted with the tokenizer in `folder`.

    Raises:
        TrainingError: it does not fit.
    """
    # MODAL_TASK_ID: this is one of Modal's containers, paid for by the second
    hired = device.kind == "cuda" and "MODAL_TASK_ID" in os.environ
    return make_plan(config, config.training.model, read_shape(folder), rows_of(config, folder, train, constitution), device, rented=hired)


def plan_ahead(
    config: Config, train: Records, constitution: Constitution, *, gpu: str | None = None, gpus: int | None = None, exactly: bool = False
) -> tuple[Plan, Callable[[], None]]:
    """The plan of a run that need not exist. Where the model is not on this machine but known, nothing is fetched unless `exactly`.

    Args:
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
    work: Work | list[Encoded]
    if folder is None:
        work = estimate(train, constitution, cast(Known, known).ratio, include_critique=config.training.constitutional_ai.include_critique)
    else:
        work = rows_of(config, folder, train, constitution)
    plan = draft(config, name, shape, work, device, rented=gpu is not None)
    return plan, lambda: require_fit(plan, config, shape, work, device)


def _has_config(folder: Path | None) -> bool:
    return folder is not None and (folder / "config.json").is_file()


def rows_of(config: Config, folder: Path, train: Records, constitution: Constitution) -> list[Encoded]:
    """The token rows that are trained on, by the tokenizer in `folder`."""
    t = config.training
    return training_rows(train, load_tokenizer(folder), constitution, include_critique=t.constitutional_ai.include_critique, max_length=t.max_length)


def _device(gpu: str | None, gpus: int | None) -> Device:
    if gpu is not None:
        return rented(gpu, gpus or 1)
    here = detect()
    if gpus is not None and gpus > here.cards:
        raise UsageError(f"--gpus {gpus}: this machine has {here.cards} cards; name another with --gpu, for example --gpu L40S --gpus {gpus}")
    return here if gpus is None else replace(here, cards=gpus)
