"""What a run takes and costs, stage by stage, and what it would elsewhere.

Training is costed by `choose.py`. Judging and releasing are scaled from what the demo took on two processor cores (2026-11: judging 99 s,
merge and GGUF 46 s for a model of 134.5 M parameters), answering on a card from its bandwidth, so take them for the right order of magnitude.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, replace
from typing import Any

from noesis.core.device import Device, processor
from noesis.planning.gpus import gpu_of, prices, rented_gpu
from noesis.planning.search import PlanningTask, SetupOption, enumerate_setups, fastest_fit
from noesis.planning.speed import CONTAINER_SECONDS, IMPORT_SECONDS, READ_BYTES_PER_S

ELSEWHERE = ("A10", "L40S", "A100-80GB", "H100")
TRAIN_MACHINE = (2, 32)  # cores and GiB of memory that are paid beside the card
JUDGE_MACHINE = (2, 32)
MERGE_MACHINE = (4, 24)
JUDGED_CARD = "A10"
# Processor seconds for each million parameters: scoring and answering (per held-out example and per answer), merging and GGUF.
SCORE_SECONDS, ANSWER_SECONDS, MERGE_SECONDS = 0.0225, 0.050, 0.34
MERGE_CORES = 2  # of the machine that MERGE_SECONDS was measured on


@dataclass(frozen=True)
class StageCost:
    """One stage's expected time and price."""

    name: str
    where: str
    seconds: float
    usd: float


def stage_costs(task: PlanningTask, chosen: SetupOption) -> list[StageCost]:
    """Training, judging, and merge with GGUF."""
    if not task.rented:
        seconds = {
            "train": chosen.seconds,
            "judge": _judge_seconds(task, here=True),
            "merge and gguf": _merge_seconds(task, MERGE_CORES),
        }
        return [StageCost(name, "here", expected, 0.0) for name, expected in seconds.items()]
    cores, gib = MERGE_MACHINE
    judge, merge = _judge_seconds(task, here=False), _merge_seconds(task, cores) + CONTAINER_SECONDS
    # the machine is rented with all its cards, used or not
    used, name = task.device.cards, task.device.name
    return [
        StageCost(
            "train",
            f"{used} × {name}" if used > 1 else name,
            chosen.seconds,
            usd_for(task.device, chosen.seconds, used, TRAIN_MACHINE),
        ),
        StageCost("judge", JUDGED_CARD, judge, usd_for(rented_gpu(JUDGED_CARD), judge, 1, JUDGE_MACHINE)),
        StageCost("merge and gguf", f"{cores} cores", merge, usd_for(None, merge, 0, (cores, gib))),
    ]


def other_machines(task: PlanningTask) -> list[dict[str, Any]]:
    """The same run on the machines that are usually asked for; training only, with its start."""
    found = []
    for device, hired in [(processor(), False), *((rented_gpu(name), True) for name in ELSEWHERE)]:
        other = replace(task, device=device, rented=hired)
        choice = fastest_fit(enumerate_setups(other))
        usd = usd_for(device, choice.seconds, 1, TRAIN_MACHINE) if hired else 0.0
        found.append(
            {
                "device": device.name if hired else "this processor",
                "precision": choice.setup.precision,
                "gradient_checkpointing": choice.setup.gradient_checkpointing,
                "memory_bytes": round(choice.memory.needed(card=hired)),
                "fits": choice.fits,
                "tokens_per_s": round(choice.tokens_per_s, 1),
                "seconds": round(choice.seconds, 1),
                "usd": round(usd, 4),
            }
        )
    return found


def usd_per_second(device: Device, usd_per_hour: float | None) -> float:
    """USD a second of this machine: as given, else Modal's prices in one of its containers, else 0."""
    if usd_per_hour is not None:
        return usd_per_hour / 3600
    if "MODAL_TASK_ID" not in os.environ:
        return 0.0
    return (
        usd_for(device, 1.0, device.cards, TRAIN_MACHINE)
        if device.kind == "cuda"
        else usd_for(None, 1.0, 0, MERGE_MACHINE)
    )


def hourly(device: Device) -> float | None:
    """USD an hour of one card, None where the price file has none."""
    price = gpu_of(device).usd_per_s
    return None if price is None else price * 3600


def usd_for(device: Device | None, seconds: float, cards: int, machine: tuple[int, int]) -> float:
    """Price of a machine for so long; a card without a price is counted as free, which the plan says."""
    p, (cores, gib) = prices(), machine
    card = (gpu_of(device).usd_per_s or 0.0) if device is not None else 0.0
    return seconds * (card * cards + cores * p.cpu_core_per_s + gib * p.memory_gib_per_s)


def _judge_seconds(task: PlanningTask, *, here: bool) -> float:
    """Scoring both answers of every held-out example by base and tuned model, and writing answers with both."""
    t, millions = task.config.training, task.shape.parameters / 1e6
    answers = t.tribunal.answers * t.tribunal.max_new_tokens / 200
    writing = ANSWER_SECONDS * millions * answers
    scoring = SCORE_SECONDS * millions * t.data.eval_examples
    if not here:
        scoring /= 50  # on the card, where a processor's two cores took the time above
        if t.tribunal.answers:  # all prompts in one batch: each token of base and tuned model is a pass over the weights, at half the card's bandwidth
            writing = (
                2
                * t.tribunal.max_new_tokens
                * 2
                * task.shape.parameters
                / (0.5 * gpu_of(rented_gpu(JUDGED_CARD)).bandwidth)
            )
    load = 2 * task.shape.parameters / READ_BYTES_PER_S[not here]
    return IMPORT_SECONDS + load + scoring + writing + (0 if here else CONTAINER_SECONDS)


def _merge_seconds(task: PlanningTask, cores: int) -> float:
    return MERGE_SECONDS * task.shape.parameters / 1e6 * MERGE_CORES / cores
