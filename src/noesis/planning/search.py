"""The search for a setup: every one that settings and device allow is costed, and the fastest that fits is chosen.

Memory decides only what fits, so more of it never gives a slower plan. The sequences of a step come from the settings
alone, so no choice here changes the number of steps.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache
from importlib.util import find_spec
from itertools import product

from noesis.core.config import Config
from noesis.core.device import Device
from noesis.core.families.shape import Shape
from noesis.planning.gpus import Gpu, gpu_of
from noesis.planning.memory import Memory, cpu_memory, gpu_memory
from noesis.planning.precision import allowed_precisions, compute_dtype
from noesis.planning.setup import Attention, Checkpointing, Engine, Optimizer, Precision, Setup, has_flash4
from noesis.planning.speed import (
    EIGHT_BIT_SECONDS,
    FLASH4_SECONDS,
    MeasuredRow,
    cpu_tokens_per_second,
    measured_row,
    row_seconds,
    scaling_efficiency,
    start_seconds,
)
from noesis.planning.workload import Workload

PACK_LENGTHS = (1024, 2048, 3072, 4096, 6144, 8192)
BY_EXACTNESS = ("fp32", "bf16", "fp8", "nf4")  # the base is rounded least to most
BY_RECOMPUTATION = ("none", "selective", "full")
FALLBACK_SHARE = 0.92  # a fallback needs at most this share of the memory
CPU_RECOMPUTE_SPEED = {"none": 1.0, "selective": 0.8, "full": 0.7}


@dataclass(frozen=True)
class SetupOption:
    """A setup with its expected costs.

    sharded: the frozen base is spread over the GPUs because one can't hold it
    tokens_per_s: without start, padding not counted
    seconds: from start to saved adapter
    """

    setup: Setup
    sharded: bool
    memory: Memory
    tokens_per_s: float
    start_seconds: float
    seconds: float
    fits: bool

    @property
    def needed_bytes(self) -> float:
        """Free memory of the device that this takes."""
        return self.memory.needed(on_gpu=self.setup.gpus > 0)


@dataclass(frozen=True)
class PlanningTask:
    """What is to be planned: everything that costs depend on."""

    config: Config
    shape: Shape
    work: Workload
    device: Device
    rented: bool = False
    cpu_flops: float | None = None  # FLOP/s of this CPU; None: measure it

    @cached_property
    def adapter_weights(self) -> int:
        return self.shape.adapter_weights(self.config.lora.r, self.config.lora.target_modules)

    @cached_property
    def gpu(self) -> Gpu:
        return gpu_of(self.device)

    @cached_property
    def measured(self) -> MeasuredRow | None:
        """What `noesis plan --measure` found for this model on this machine."""
        return None if self.rented else measured_row(self.shape, self.adapter_weights, self.device, self.engine)

    @property
    def cpu_tokens_per_second(self) -> float:
        """Training rate on a CPU where nothing is recomputed, in tokens of whole rows: measured, else computed."""
        if self.measured is None:
            return cpu_tokens_per_second(self.shape, self.adapter_weights, self.device, self.cpu_flops)
        speed = CPU_RECOMPUTE_SPEED[self.measured.setup.gradient_checkpointing]
        return self.measured.tokens / self.measured.seconds / speed

    @property
    def sequences_per_step(self) -> int:
        """Sequences of one optimizer step over all GPUs."""
        return self.config.training.per_device_train_batch_size * self.config.training.gradient_accumulation_steps

    @property
    def steps(self) -> int:
        return math.ceil(len(self.work.lengths) / self.sequences_per_step) * self.config.training.num_train_epochs

    @property
    def engine(self) -> Engine:
        """What computes: as configured; transformers' layers where the engine does not know the model's."""
        configured = self.config.training.engine
        return "transformers" if configured == "noesis" and not self.shape.on_engine else configured

    @property
    def fused(self) -> bool:
        """Whether the engine's kernels can run; without them one GPU is used, and never `selective` checkpointing."""
        return (
            self.device.gpus > 0 and self.engine == "noesis" and compute_dtype(self.config, self.device) == "bfloat16"
        )

    @property
    def gpus(self) -> int:
        """GPUs that are used: the most that share a step's sequences evenly."""
        if not self.fused:
            return min(self.device.gpus, 1)
        return max(n for n in range(1, self.device.gpus + 1) if self.sequences_per_step % n == 0)

    @property
    def packs(self) -> bool:
        """Whether rows are packed on GPUs: where the attention that keeps sequences apart runs, unless switched off."""
        return self.config.training.packing is not False and self.device.bf16


def shares_passes(config: Config, setup: Setup) -> bool:
    """Whether several seeds are trained in the same passes over the base; else one follows the other."""
    t = config.training
    return setup.fused and setup.gpus == 1 and not setup.offloads and t.method == "sft" and not t.replay.kl_weight


def enumerate_setups(task: PlanningTask) -> list[SetupOption]:
    """Every allowed setup with its costs, fastest first.

    Equally fast ones are ordered by how little they round the base, how little they recompute, and how little they
    need.
    """
    found = list(_cpu_setups(task) if task.device.kind == "cpu" else _gpu_setups(task))
    if task.gpus > 1 and not task.work.anchored:  # all GPUs must ask for a layer's weights equally often
        found += list(_gpu_setups(task, sharded=True))
    return sorted(
        found,
        key=lambda option: (
            option.seconds,
            BY_EXACTNESS.index(option.setup.precision),
            BY_RECOMPUTATION.index(option.setup.gradient_checkpointing),
            option.memory.total,
        ),
    )


def fastest_fit(found: list[SetupOption]) -> SetupOption:
    """The fastest setup that fits; if none does, the one that needs least memory."""
    return next((option for option in found if option.fits), None) or min(found, key=lambda o: o.memory.total)


def fallbacks(found: list[SetupOption], start: SetupOption) -> list[SetupOption]:
    """The setups to try in turn when `start` runs out of memory after all; each needs clearly less than the one before.

    The precision stays the same as long as it can: an adapter continues best on the base that it started on.
    """
    chain: list[SetupOption] = []
    current = start
    while True:
        smaller = [o for o in found if o.memory.total <= current.memory.total * FALLBACK_SHARE]
        if not smaller:
            return chain
        same_precision = [o for o in smaller if o.setup.precision == current.setup.precision]
        current = (same_precision or smaller)[0]
        chain.append(current)


def _cpu_setups(task: PlanningTask) -> Iterator[SetupOption]:
    t, work = task.config.training, task.work
    full_speed = task.cpu_tokens_per_second
    start = start_seconds(task.shape, task.device, rented=False)
    # One row at a time wastes nothing on padding and is as fast, so rows are packed only on request.
    packing = t.packing is True
    pack_length = _round_up(max(work.longest, 1024)) if packing else 0
    tokens = min(pack_length, work.step_tokens(task.sequences_per_step)) if packing else work.longest
    checkpointings: tuple[Checkpointing, ...] = (
        ("none", "full") if t.gradient_checkpointing == "auto" else (t.gradient_checkpointing,)
    )
    for precision, checkpointing in product(allowed_precisions(task.config, task.device).names, checkpointings):
        setup = Setup(
            engine="noesis" if task.shape.on_engine else "transformers",
            precision=precision,
            compute_dtype=compute_dtype(task.config, task.device, precision),
            gradient_checkpointing=checkpointing,
            packing=packing,
            pack_length=pack_length,
            sequences_per_step=task.sequences_per_step,
            micro_batch=1,
            optimizer="adamw",
            gpus=0,
        )
        speed = full_speed * CPU_RECOMPUTE_SPEED[checkpointing]
        memory = cpu_memory(task.shape, task.adapter_weights, setup, tokens)
        yield SetupOption(
            setup,
            sharded=False,
            memory=memory,
            tokens_per_s=speed,
            start_seconds=start,
            seconds=start + work.tokens * t.num_train_epochs / speed,
            fits=memory.fits(task.device.memory_bytes, on_gpu=False),
        )


def _gpu_setups(task: PlanningTask, *, sharded: bool = False) -> Iterator[SetupOption]:
    for precision, checkpointing, optimizer, attention in product(
        _gpu_precisions(task, sharded=sharded), _gpu_checkpointings(task), _gpu_optimizers(task), _attentions(task)
    ):
        common = Setup(
            engine=task.engine,
            precision=precision,
            compute_dtype=compute_dtype(task.config, task.device, precision),
            gradient_checkpointing=checkpointing,
            packing=True,
            pack_length=0,
            sequences_per_step=task.sequences_per_step,
            micro_batch=1,
            optimizer=optimizer,
            gpus=task.gpus,
            attention=attention,
        )
        for setup in _row_layouts(task, common):
            yield _gpu_option(task, setup, sharded=sharded)


def _gpu_precisions(task: PlanningTask, *, sharded: bool) -> tuple[Precision, ...]:
    names = allowed_precisions(task.config, task.device, here=not task.rented).names
    if task.config.training.engine == "unsloth":
        names = tuple(name for name in names if name in ("nf4", "bf16")) or ("bf16",)
    return tuple(name for name in names if name in ("nf4", "bf16")) if sharded else names


def _gpu_checkpointings(task: PlanningTask) -> tuple[Checkpointing, ...]:
    configured = task.config.training.gradient_checkpointing
    if configured == "auto":
        return ("none", "selective", "full") if task.fused else ("none", "full")
    return (configured,) if task.fused or configured != "selective" else ("full",)


def _gpu_optimizers(task: PlanningTask) -> tuple[Optimizer, ...]:
    if task.config.training.engine == "unsloth":
        return ("adamw_8bit",)
    if not task.rented and find_spec("bitsandbytes") is None:
        return ("adamw",)
    return ("adamw", "adamw_8bit")


def _attentions(task: PlanningTask) -> tuple[Attention, ...]:
    return ("flash2", "flash4") if not task.rented and task.fused and task.gpu.flash4 and has_flash4() else ("flash2",)


def _row_layouts(task: PlanningTask, common: Setup) -> Iterator[Setup]:
    """`common` with each way to lay a step's sequences out in rows."""
    work, share = task.work, task.sequences_per_step // common.gpus
    if not task.packs:
        for n in range(1, min(task.config.training.per_device_train_batch_size, share) + 1):
            if share % n == 0:
                yield replace(common, packing=False, micro_batch=n)
        return
    longest_row = _round_up(work.step_tokens(share))  # a whole step in one row
    lengths = {n for n in PACK_LENGTHS if work.longest <= n <= longest_row} | {_round_up(work.longest)}
    if longest_row < PACK_LENGTHS[-1]:
        lengths.add(longest_row)
    for n in sorted(lengths):
        yield replace(common, pack_length=n)


def _gpu_option(task: PlanningTask, setup: Setup, *, sharded: bool) -> SetupOption:
    work, lora = task.work, task.config.lora
    share = task.sequences_per_step // setup.gpus
    mean = work.tokens / len(work.lengths)
    if setup.packing:
        rows = _packed_rows(work, setup.pack_length, share)
        tokens = min(mean * share / rows, setup.pack_length)  # a row is as long as its sequences
        largest = min(setup.pack_length, work.step_tokens(share))
    else:
        rows = share / setup.micro_batch
        tokens = work.padded(setup.micro_batch) / len(work.lengths) * setup.micro_batch
        largest = work.longest * setup.micro_batch
    step = rows * row_seconds(task.shape, task.adapter_weights, setup, task.gpu, tokens, dropout=lora.lora_dropout > 0)
    if task.measured is not None:  # one figure for all setups, so that their order stays as computed
        step *= task.measured.ratio(task.shape, task.adapter_weights, task.gpu)
    if setup.gpus > 1:
        step /= scaling_efficiency(sharded=sharded)
    if setup.optimizer == "adamw_8bit":
        step += EIGHT_BIT_SECONDS
    # fractional: the last step of an epoch may be short
    steps = len(work.lengths) * task.config.training.num_train_epochs / task.sequences_per_step
    start = start_seconds(task.shape, task.device, rented=task.rented, fused=setup.fused)
    if setup.attention == "flash4":
        start += FLASH4_SECONDS
    adapters = task.config.training.seeds if shares_passes(task.config, setup) else 1  # in memory at once
    memory = gpu_memory(
        task.shape,
        task.adapter_weights * adapters,
        setup,
        largest,
        double_quant=lora.quantization.bnb_4bit_use_double_quant,
        sharded=sharded,
    )
    return SetupOption(
        setup,
        sharded=sharded,
        memory=memory,
        tokens_per_s=mean * task.sequences_per_step / step,
        start_seconds=start,
        seconds=start + steps * step,
        fits=memory.fits(task.device.memory_bytes, on_gpu=True),
    )


@lru_cache(maxsize=256)
def _packed_rows(work: Workload, pack_length: int, share: int) -> float:
    return work.packed_rows(pack_length, share)


def _round_up(tokens: int, to: int = 256) -> int:
    return -(-tokens // to) * to
