"""What a run takes and costs, stage by stage, and what its training would take on other machines.

Training is costed by `search.py`. The other stages are fitted to SmolLM2 on two cores of an AMD EPYC and on an H100
with 16 cores (2026-11); for models ten times larger they are right within a factor of two (`benchmarks/README.md`).
"""

from __future__ import annotations

import os
from dataclasses import asdict, dataclass, replace
from typing import Any, NamedTuple

from noesis.core.config import Config
from noesis.core.device import Device, cpu_device
from noesis.core.i18n import N_
from noesis.planning.gpus import gpu_of, prices, rented_gpu
from noesis.planning.search import PlanningTask, SetupOption, enumerate_setups, fastest_fit, shares_passes
from noesis.planning.setup import Setup
from noesis.planning.speed import CONTAINER_SECONDS, RENTED_IMPORT_SECONDS, load_seconds
from noesis.planning.workload import PairWorkload


class Machine(NamedTuple):
    """The part of a rented machine that is billed in addition to its GPUs."""

    cores: int
    memory_gib: int


JUDGE_MACHINE, MERGE_MACHINE = Machine(2, 32), Machine(4, 24)
RENTED = "NOESIS_RENTED"  # environment variable in a container: the GPUs that were asked for, separated by commas
UPGRADED = {"H200": "H100"}  # a GPU that the provider may give in place of another, at the other's price
JUDGE_GPU = "A10"
CHOOSE_AND_JUDGE, MERGE_AND_GGUF = (
    N_("choose and judge"),
    N_("merge and gguf"),
)  # stages of a run that share a rented machine
ALTERNATIVES = ("A10", "L40S", "A100-80GB", "H100")

FORWARD_SHARE = 0.5  # of a training step's time that the forward pass alone takes
# The stages after training.
FORWARD_SPEED = 2.4  # of scoring a row over training on it, on a CPU
FORWARD_LAUNCH = 2.4e-3  # seconds per layer and scored row, on a GPU
CHOOSE_START, JUDGE_START = {"cpu": 6.0, "cuda": 2.5}, {"cpu": 6.0, "cuda": 1.0}
# llama.cpp with a model of 134.5 M weights on two cores: tokens a second of four answers at once, and of prompts.
ANSWER_RATE, PROMPT_RATE, RATED_WEIGHTS, RATED_CORES = 190.0, 400.0, 134.5e6, 2
MOST_CORES = 8  # that answering gains from: it is bound by memory
PROMPT_TOKENS = 430  # of a prompt with the system prompt
DECODE_START, DECODE_LAUNCH = 1.0, 1.0e-4  # of a batch on a GPU, seconds; per token and layer
DECODE_TRAFFIC = 1.5  # bytes moved per byte of the weights and token
MERGED_LOAD = 0.5e-9  # seconds per weight to read and merge a model before it answers on a GPU
KEYED_ROWS, KEYED_TOKENS = 2, 60  # rows that a keyed item takes, and tokens of each
KEYED_PASS = 0.5  # of a scored row's time on a GPU that such a row takes: they are short, and go several at once
MERGE_SERIAL, MERGE_PARALLEL = 6e-9, 52e-9  # seconds per weight, and times cores
SAMPLED_LAUNCHES, SAMPLED_SPEED = 4.0, 0.5  # of the engine's sampling beside decoding and training (estimates)
CERTIFY_START = 12.0  # strings, templates, audits
CERTIFIED_TOKENS = 2100  # compared in each file, answers included
WRITE_SECONDS = 9e-9  # per weight and file
REFERENCES = 2  # models in float32 that files are compared with: the adapter on its base, and the merged one
LLAMA_FLOPS, REFERENCE_FLOPS = 100e9, 60e9  # reached on RATED_CORES
REFERENCE_START, GPU_REFERENCE_START = 16.0, 3.0  # seconds: loading, greedy answers
REFERENCE_LOAD = 4e-9  # seconds per weight to read one onto a GPU


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
    """Training, choosing epoch and strength, judging, merging, GGUF and certificate; rented, two on one machine."""
    epochs = task.config.training.num_train_epochs * task.config.training.seeds  # whose adapters are scored
    if not task.rented:
        on_gpu, cores = task.device.kind == "cuda", task.device.threads
        after = {
            "choose": choose_seconds(task, epochs=epochs),
            "dial": dial_seconds(task),
            "judge": judge_seconds(task),
            "merge": merge_seconds(task, cores),
            "gguf": gguf_seconds(task, cores, on_gpu=on_gpu),
        }
        seconds = {"train": chosen.seconds} | after
        return [StageCost(name, N_("here"), round(value, 1), 0.0) for name, value in seconds.items()]
    gpus, name = task.device.gpus, task.device.name  # all GPUs of the machine are paid for, used or not
    train_usd = usd_for(task.device, chosen.seconds, gpus, train_machine(gpus))
    start = CONTAINER_SECONDS + RENTED_IMPORT_SECONDS
    judges = replace(task, device=rented_gpu(JUDGE_GPU))
    judge = start + choose_seconds(judges, epochs=epochs) + dial_seconds(judges) + judge_seconds(judges)
    cores = MERGE_MACHINE.cores
    merge = CONTAINER_SECONDS + merge_seconds(task, cores) + gguf_seconds(task, cores, on_gpu=False)
    return [
        StageCost("train", f"{gpus} × {name}" if gpus > 1 else name, chosen.seconds, train_usd),
        StageCost(CHOOSE_AND_JUDGE, JUDGE_GPU, judge, usd_for(rented_gpu(JUDGE_GPU), judge, 1, JUDGE_MACHINE)),
        StageCost(MERGE_AND_GGUF, N_("{cores:g} cores", cores=cores), merge, usd_for(None, merge, 0, MERGE_MACHINE)),
    ]


def other_machines(task: PlanningTask) -> list[MachineOption]:
    """The same training on this machine's CPU and on each of `ALTERNATIVES`."""
    here = _on_machine(replace(task, device=cpu_device(), rented=False), N_("this CPU"))
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


@dataclass(frozen=True)
class MoreTraining:
    """Seconds that training takes beside the passes over its rows.

    writing: the base's own answers, before the first step
    sampling: of self-distillation, the model's answers
    reading: without gradients: what the base reads to be held to, or to score; of pairs, the reference and the
        held-out ones
    """

    writing: float = 0.0
    sampling: float = 0.0
    reading: float = 0.0

    @property
    def seconds(self) -> float:
        return self.writing + self.sampling + self.reading


def more_training(task: PlanningTask, tokens_per_s: float) -> MoreTraining:
    """What the task's method adds at this speed of training."""
    work, epochs = task.work, task.config.training.num_train_epochs
    if isinstance(work, PairWorkload):  # the reference once over all pairs, and the held-out pairs after every epoch
        evaluated = work.tokens + work.held_out_tokens * (1 + epochs)
        return MoreTraining(reading=FORWARD_SHARE * evaluated / tokens_per_s)
    steps = max(1, task.steps)
    sampling = 0.0
    if work.sampled:
        answers = task.config.training.distill.max_new_tokens
        sampling = steps * sampled_seconds(task, work.sampled * epochs / steps, answers)
    reading = FORWARD_SHARE * work.anchored * epochs / tokens_per_s
    return MoreTraining(own_answer_seconds(task, work.own_answers), sampling, reading)


def seconds_of_seeds(config: Config, setup: Setup, seconds: float, start: float) -> float:
    """Seconds of training all seeds, by those of one, start included; in shared passes they start once."""
    more = config.training.seeds - 1
    return seconds + more * (seconds - (start if shares_passes(config, setup) else 0.0))


def _on_machine(task: PlanningTask, name: str) -> MachineOption:
    choice = fastest_fit(enumerate_setups(task))
    more = more_training(task, choice.tokens_per_s)
    one, start = choice.seconds + more.seconds, choice.start_seconds + more.writing
    seconds = seconds_of_seeds(task.config, choice.setup, one, start)
    usd = usd_for(task.device, seconds, 1, train_machine(1)) if task.rented else 0.0
    return MachineOption(
        device=name,
        precision=choice.setup.precision,
        gradient_checkpointing=choice.setup.gradient_checkpointing,
        memory_bytes=round(choice.needed_bytes),
        fits=choice.fits,
        tokens_per_s=round(choice.tokens_per_s, 1),
        seconds=round(seconds, 1),
        usd=round(usd, 4),
    )


# --- the stages after training


def choose_seconds(task: PlanningTask, *, epochs: int) -> float:
    """Scoring both answers of every held-out example with the base and with each epoch's adapter."""
    rows: int = 2 * task.config.training.data.eval_examples
    mean = task.work.tokens / len(task.work.lengths)
    passes, kind = epochs + 1, task.device.kind
    if kind == "cuda":
        row = max(FORWARD_LAUNCH * task.shape.layers, 2 * task.shape.parameters * mean / task.gpu.half)
        return CHOOSE_START[kind] + load_seconds(task.shape, rented=task.rented) + passes * rows * row
    rate = FORWARD_SPEED * task.cpu_tokens_per_second
    return CHOOSE_START[kind] + load_seconds(task.shape, rented=False) + passes * rows * mean / rate


def dial_seconds(task: PlanningTask) -> float:
    """Measuring each strength of the grid on held-out pairs, keyed items and the base's own answers; scoring the last.

    What choosing the epoch has measured, of the base and of the trained strength, is not measured again.
    """
    section = task.config.training.strength
    if section.fixed == 1.0:
        return 0.0
    kind, mean = task.device.kind, task.work.tokens / len(task.work.lengths)
    loading = CHOOSE_START[kind] + load_seconds(task.shape, rented=task.rented and kind == "cuda")
    pairs = 2 * task.config.training.data.eval_examples  # of the strength that is used
    short = 0
    if section.fixed is None:
        pairs += 2 * section.pairs * sum(x != 1.0 for x in section.grid)
        short = (1 + len(section.grid)) * (section.items * KEYED_ROWS + section.answers)
        loading *= 2
    if kind == "cuda":
        row = max(FORWARD_LAUNCH * task.shape.layers, 2 * task.shape.parameters * mean / task.gpu.half)
        return loading + (pairs + KEYED_PASS * short) * row
    return loading + (pairs * mean + short * KEYED_TOKENS) / (FORWARD_SPEED * task.cpu_tokens_per_second)


def judge_seconds(task: PlanningTask) -> float:
    """Answers of base and tuned model to held-out prompts, and the small tasks by both.

    One model is loaded for each part, and turned into the other.
    """
    tribunal, seconds = task.config.training.tribunal, 0.0
    if tribunal.answers:
        seconds += _start(task) + 2 * _answering(task, tribunal.answers, tribunal.max_new_tokens)
    if tribunal.kept_items:
        rows = 2 * KEYED_ROWS * tribunal.kept_items
        seconds += CHOOSE_START[task.device.kind] + load_seconds(task.shape, rented=task.rented)
        if task.device.kind == "cuda":
            seconds += KEYED_PASS * rows * FORWARD_LAUNCH * task.shape.layers
        else:
            seconds += rows * KEYED_TOKENS / (FORWARD_SPEED * task.cpu_tokens_per_second)
    return seconds


def own_answer_seconds(task: PlanningTask, answers: int) -> float:
    """Answers of the base that it is then held to or trained on."""
    if not answers:
        return 0.0
    return _start(task) + _answering(task, answers, task.config.training.replay.max_new_tokens)


def sampled_seconds(task: PlanningTask, answers: float, tokens: int) -> float:
    """One step's answers of self-distillation, by the engine itself, which writes them all at once."""
    if task.device.kind == "cuda":
        token = DECODE_LAUNCH * task.shape.layers + DECODE_TRAFFIC * 2 * task.shape.parameters / task.gpu.bandwidth
        return SAMPLED_LAUNCHES * tokens * token
    return answers * tokens / (SAMPLED_SPEED * task.cpu_tokens_per_second)


def _start(task: PlanningTask) -> float:
    """Loading a model that answers."""
    on_gpu = task.device.kind == "cuda"
    return JUDGE_START[task.device.kind] + load_seconds(task.shape, rented=task.rented and on_gpu)


def _answering(task: PlanningTask, answers: int, tokens: int) -> float:
    """So many answers of one model, of so many tokens each: on a GPU one batch."""
    shape = task.shape
    if task.device.kind == "cuda":
        token = DECODE_LAUNCH * shape.layers + DECODE_TRAFFIC * 2 * shape.parameters / task.gpu.bandwidth
        return DECODE_START + MERGED_LOAD * shape.parameters + tokens * token
    speed = RATED_WEIGHTS / shape.parameters / RATED_CORES
    answering = tokens / (ANSWER_RATE * speed * min(task.device.threads, MOST_CORES))
    reading = PROMPT_TOKENS / (PROMPT_RATE * speed * task.device.threads)
    return answers * (answering + reading)


def merge_seconds(task: PlanningTask, cores: float) -> float:
    """Merging the adapter on a CPU, and reading the result back."""
    return task.shape.parameters * (MERGE_SERIAL + MERGE_PARALLEL / cores)


def gguf_seconds(task: PlanningTask, cores: float, *, on_gpu: bool) -> float:
    """Writing the GGUF files and their certificate. llama.cpp computes on the CPU, the reference on a GPU if it may."""
    weights, files = task.shape.parameters, len(task.config.training.gguf.quantizations)
    flops, more_cores = CERTIFIED_TOKENS * 2 * weights, (cores / RATED_CORES) ** 0.5
    compared: float = files * (flops / (LLAMA_FLOPS * more_cores) + WRITE_SECONDS * weights)
    reference: float = REFERENCE_START + flops / (REFERENCE_FLOPS * more_cores)
    if on_gpu:
        reference = GPU_REFERENCE_START + REFERENCE_LOAD * weights
    return CERTIFY_START + compared + REFERENCES * reference
