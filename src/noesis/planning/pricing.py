"""What a run takes and costs, stage by stage, and what its training would take on other machines.

Training is costed by `search.py`. Judging, merging and GGUF are scaled from what the demo took on two CPU cores
(2026-11: judging 99 s, merge and GGUF 46 s for a model of 134.5 M parameters), and answering on a GPU from its
bandwidth: right in order of magnitude only.
"""

from __future__ import annotations

import os
from dataclasses import asdict, dataclass, replace
from typing import Any, NamedTuple

from noesis.core.device import Device, cpu_device
from noesis.planning.gpus import gpu_of, prices, rented_gpu
from noesis.planning.search import PlanningTask, SetupOption, enumerate_setups, fastest_fit
from noesis.planning.speed import CONTAINER_SECONDS, IMPORT_SECONDS, load_seconds


class Machine(NamedTuple):
    """The part of a rented machine that is billed in addition to its GPUs."""

    cores: int
    memory_gib: int


JUDGE_MACHINE, MERGE_MACHINE = Machine(2, 32), Machine(4, 24)
RENTED = "NOESIS_RENTED"  # environment variable in a container: the GPUs that were asked for, separated by commas
UPGRADED = {"H200": "H100"}  # a GPU that the provider may give in place of another, at the other's price
JUDGE_GPU = "A10"
ALTERNATIVES = ("A10", "L40S", "A100-80GB", "H100")
# CPU seconds per million parameters: scoring a held-out example, generating an answer, merging and GGUF.
SCORE_SECONDS, ANSWER_SECONDS, MERGE_SECONDS = 0.0225, 0.050, 0.34
ANSWER_TOKENS = 200  # of the answers behind ANSWER_SECONDS
MERGE_CORES = 2  # of the machine behind MERGE_SECONDS
GPU_SCORING_SPEEDUP = 50  # of the judge's GPU over the two cores behind SCORE_SECONDS
BANDWIDTH_SHARE = 0.5  # of the judge's GPU, reached while it generates


@dataclass(frozen=True)
class StageCost:
    """A stage's expected time and price."""

    name: str
    where: str
    seconds: float
    usd: float

    def plus(self, seconds: float, usd: float) -> StageCost:
        """The stage with this much more to do."""
        return replace(self, seconds=self.seconds + seconds, usd=self.usd + usd)

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> StageCost:
        return cls(**value)


@dataclass(frozen=True)
class MachineOption:
    """What the same training would take on another machine, its start included.

    memory_bytes: free memory that it needs
    """

    device: str
    precision: str
    gradient_checkpointing: str
    memory_bytes: int
    fits: bool
    tokens_per_s: float
    seconds: float
    usd: float

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> MachineOption:
        return cls(**value)


def train_machine(gpus: int) -> Machine:
    """The machine around `gpus` GPUs: each is driven by a process of its own, which loads the base."""
    return Machine(2 * gpus, 32 * gpus)


def stage_costs(task: PlanningTask, chosen: SetupOption) -> list[StageCost]:
    """Training, judging, and merge with GGUF."""
    if not task.rented:
        return [
            StageCost("train", "here", chosen.seconds, 0.0),
            StageCost("judge", "here", _judge_seconds_here(task), 0.0),
            StageCost("merge and gguf", "here", _merge_seconds(task, MERGE_CORES), 0.0),
        ]
    gpus, name = task.device.gpus, task.device.name  # all GPUs of the machine are paid for, used or not
    train_usd = usd_for(task.device, chosen.seconds, gpus, train_machine(gpus))
    judge = _judge_seconds_rented(task)
    merge = _merge_seconds(task, MERGE_MACHINE.cores) + CONTAINER_SECONDS
    return [
        StageCost("train", f"{gpus} × {name}" if gpus > 1 else name, chosen.seconds, train_usd),
        StageCost("judge", JUDGE_GPU, judge, usd_for(rented_gpu(JUDGE_GPU), judge, 1, JUDGE_MACHINE)),
        StageCost("merge and gguf", f"{MERGE_MACHINE.cores} cores", merge, usd_for(None, merge, 0, MERGE_MACHINE)),
    ]


def other_machines(task: PlanningTask) -> list[MachineOption]:
    """The same training on this machine's CPU and on each of `ALTERNATIVES`."""
    here = _on_machine(replace(task, device=cpu_device(), rented=False), "this CPU")
    rented = [_on_machine(replace(task, device=rented_gpu(name), rented=True), name) for name in ALTERNATIVES]
    return [here, *rented]


def usd_per_second(device: Device, usd_per_hour: float | None) -> float:
    """Price of this machine: as given, else Modal's in one of its containers, else 0.

    A GPU that was given in place of the one asked for is billed as that one.
    """
    if usd_per_hour is not None:
        return usd_per_hour / 3600
    if "MODAL_TASK_ID" not in os.environ:
        return 0.0
    if device.kind == "cuda":
        asked = {name.partition(":")[0].upper() for name in os.environ.get(RENTED, "").split(",")}
        name = gpu_of(device).name
        billed = UPGRADED.get(name)
        if billed in asked and name not in asked:
            device = replace(device, name=billed)
        return usd_for(device, 1.0, device.gpus, train_machine(device.gpus))
    return usd_for(None, 1.0, 0, MERGE_MACHINE)


def usd_for(device: Device | None, seconds: float, gpus: int, machine: tuple[float, float]) -> float:
    """Price of a machine for this time. A GPU without a price counts as free.

    Args:
        device: its GPUs; None: it has none.
        gpus: how many of them.
        machine: CPU cores and GiB of memory.
    """
    p, (cores, gib) = prices(), machine
    gpu = (gpu_of(device).usd_per_s or 0.0) if device is not None else 0.0
    return seconds * (gpu * gpus + cores * p.cpu_core_per_s + gib * p.memory_gib_per_s)


def _on_machine(task: PlanningTask, name: str) -> MachineOption:
    choice = fastest_fit(enumerate_setups(task))
    usd = usd_for(task.device, choice.seconds, 1, train_machine(1)) if task.rented else 0.0
    return MachineOption(
        device=name,
        precision=choice.setup.precision,
        gradient_checkpointing=choice.setup.gradient_checkpointing,
        memory_bytes=round(choice.needed_bytes),
        fits=choice.fits,
        tokens_per_s=round(choice.tokens_per_s, 1),
        seconds=round(choice.seconds, 1),
        usd=round(usd, 4),
    )


def _judge_seconds_here(task: PlanningTask) -> float:
    """On the CPU: scoring both answers of every held-out example, and answering prompts, with base and tuned model."""
    tribunal, millions = task.config.training.tribunal, task.shape.parameters / 1e6
    answering = ANSWER_SECONDS * millions * (tribunal.answers * tribunal.max_new_tokens / ANSWER_TOKENS)
    return IMPORT_SECONDS + load_seconds(task.shape, rented=False) + _scoring_seconds(task) + answering


def _judge_seconds_rented(task: PlanningTask) -> float:
    """The same on the judge's GPU, in a container of its own."""
    tribunal, answering = task.config.training.tribunal, 0.0
    if tribunal.answers:  # all prompts in one batch: each token is a pass over the weights, of base and of tuned model
        passes = 2 * tribunal.max_new_tokens
        bandwidth = BANDWIDTH_SHARE * gpu_of(rented_gpu(JUDGE_GPU)).bandwidth
        answering = passes * 2 * task.shape.parameters / bandwidth
    scoring = _scoring_seconds(task) / GPU_SCORING_SPEEDUP
    return IMPORT_SECONDS + load_seconds(task.shape, rented=True) + scoring + answering + CONTAINER_SECONDS


def _scoring_seconds(task: PlanningTask) -> float:
    return SCORE_SECONDS * (task.shape.parameters / 1e6) * task.config.training.data.eval_examples


def _merge_seconds(task: PlanningTask, cores: float) -> float:
    return MERGE_SECONDS * task.shape.parameters / 1e6 * MERGE_CORES / cores
