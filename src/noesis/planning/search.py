"""Which setup to train with: every one that the settings and the device allow is costed, and the fastest that fits is taken.

Because memory only decides what fits, more of it can never give a slower plan; and because a step's sequences are the settings' alone,
no choice here changes how many steps there are.
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
from noesis.planning.gpus import Gpu, gpu_of
from noesis.planning.memory import Memory, card_memory, cpu_memory
from noesis.planning.model_shapes import Shape
from noesis.planning.precision import compute_dtype, precisions
from noesis.planning.setup import Checkpointing, Setup
from noesis.planning.speed import EIGHT_BIT_SECONDS, cards_share, cpu_tokens_per_second, row_seconds, start_seconds
from noesis.planning.workload import Workload

PACK_LENGTHS = (1024, 2048, 3072, 4096, 6144, 8192)
FINEST = ("fp32", "bf16", "fp8", "nf4")  # from the least rounding of the base to the most
KEEPING = ("none", "selective", "full")
STEP_DOWN = 0.92  # a smaller plan needs at most this share of the memory


@dataclass(frozen=True)
class SetupOption:
    """A setup with what it should take.

    sharded: the frozen base is spread over the cards, since one does not hold it
    seconds: from start to saved adapter; tokens_per_s: without start, padding not counted
    """

    setup: Setup
    sharded: bool
    memory: Memory
    tokens_per_s: float
    start_seconds: float
    seconds: float
    fits: bool


@dataclass(frozen=True)
class PlanningTask:
    """What is to be planned: all that costs depend on."""

    config: Config
    shape: Shape
    work: Workload
    device: Device
    rented: bool = False
    cpu_flops: float | None = None  # FLOP/s of this processor; None: measure it

    @cached_property
    def adapter(self) -> int:
        return self.shape.adapter_weights(self.config.lora.r, self.config.lora.target_modules)

    @cached_property
    def card(self) -> Gpu:
        return gpu_of(self.device)

    @property
    def per_step(self) -> int:
        """Sequences of one step of the optimizer, over all cards."""
        return self.config.training.per_device_train_batch_size * self.config.training.gradient_accumulation_steps

    @property
    def steps(self) -> int:
        return math.ceil(len(self.work.lengths) / self.per_step) * self.config.training.num_train_epochs

    @property
    def fused(self) -> bool:
        """Whether the engine's kernels can run, which know bfloat16 only; without them one card is used, and nothing is kept selectively."""
        return (
            self.device.cards > 0
            and self.config.training.engine == "noesis"
            and compute_dtype(self.config, self.device) == "bfloat16"
        )

    @property
    def cards(self) -> int:
        """Cards that are used: as many as share a step's sequences evenly."""
        if not self.fused:
            return min(self.device.cards, 1)
        return max(n for n in range(1, self.device.cards + 1) if self.per_step % n == 0)


def enumerate_setups(task: PlanningTask) -> list[SetupOption]:
    """Every allowed setup with its costs, fastest first; of equals the one that rounds the base least, recomputes least, needs least memory."""
    found = list(_on_processor(task) if task.device.kind == "cpu" else _on_cards(task))
    if task.cards > 1:
        found += list(_on_cards(task, sharded=True))
    return sorted(
        found,
        key=lambda o: (
            o.seconds,
            FINEST.index(o.setup.precision),
            KEEPING.index(o.setup.gradient_checkpointing),
            o.memory.total,
        ),
    )


def fastest_fit(found: list[SetupOption]) -> SetupOption:
    """The fastest that fits; if none does, the one that needs least memory."""
    return next((o for o in found if o.fits), None) or min(found, key=lambda o: o.memory.total)


def fallbacks(found: list[SetupOption], start: SetupOption) -> list[SetupOption]:
    """What to try one after the other when `start` runs out of memory after all: each needs clearly less than the one before.

    The precision is kept while anything smaller in it is left: an adapter goes on best on the base that it began on.
    """
    chain: list[SetupOption] = []
    current = start
    while True:
        less = [o for o in found if o.memory.total <= current.memory.total * STEP_DOWN]
        same = [o for o in less if o.setup.precision == current.setup.precision]
        if not less:
            return chain
        current = (same or less)[0]
        chain.append(current)


def _on_processor(task: PlanningTask) -> Iterator[SetupOption]:
    t = task.config.training
    rate = cpu_tokens_per_second(task.shape, task.adapter, task.device, task.cpu_flops)
    start = start_seconds(task.shape, task.device, rented=False)
    for precision in precisions(task.config, task.device)[0]:
        for recompute in ("none", "full") if t.gradient_checkpointing == "auto" else (t.gradient_checkpointing,):
            packing = t.packing is True
            # One row at a time wastes nothing on padding and is as fast; the optimizer's step is the same.
            tokens = (
                min(pack_length := _round_up(max(task.work.longest, 1024)), task.work.step_tokens(task.per_step))
                if packing
                else task.work.longest
            )
            setup = Setup(
                engine="noesis",
                precision=precision,
                compute_dtype=compute_dtype(task.config, task.device, precision),  # type: ignore[arg-type]
                gradient_checkpointing=recompute,
                compile=False,
                packing=packing,
                pack_length=pack_length if packing else 0,
                sequences_per_step=task.per_step,
                micro_batch=1,
                optimizer="adamw",
                cards=0,
            )
            speed = rate * {"none": 1.0, "selective": 0.8, "full": 0.7}[recompute]
            memory = cpu_memory(task.shape, task.adapter, setup, tokens)
            fits = memory.fits(task.device.memory_bytes, card=False)
            yield SetupOption(
                setup, False, memory, speed, start, start + task.work.tokens * t.num_train_epochs / speed, fits
            )


def _on_cards(task: PlanningTask, *, sharded: bool = False) -> Iterator[SetupOption]:
    t, device = task.config.training, task.device
    unsloth = t.engine == "unsloth"
    allowed = precisions(task.config, device, here=not task.rented)[0]
    if unsloth:
        allowed = tuple(p for p in allowed if p in ("nf4", "bf16")) or ("bf16",)
    recompute: tuple[Checkpointing, ...] = (
        ("none", "selective", "full") if t.gradient_checkpointing == "auto" else (t.gradient_checkpointing,)
    )
    if not task.fused:
        recompute = tuple("full" if c == "selective" else c for c in recompute)
    eight_bit = not task.rented and find_spec("bitsandbytes") is None
    for precision, again, optimizer in product(
        allowed,
        dict.fromkeys(recompute),
        ("adamw_8bit",) if unsloth else ("adamw",) if eight_bit else ("adamw", "adamw_8bit"),
    ):
        if sharded and precision not in ("nf4", "bf16"):
            continue
        common = Setup(
            engine=t.engine,
            precision=precision,
            compute_dtype=compute_dtype(task.config, device, precision),  # type: ignore[arg-type]
            gradient_checkpointing=again,
            compile=False,
            packing=True,
            pack_length=0,
            sequences_per_step=task.per_step,
            micro_batch=1,
            optimizer=optimizer,  # type: ignore[arg-type]
            cards=task.cards,
        )
        for setup in _rows(task, common):
            yield _cost(task, setup, sharded)


def _rows(task: PlanningTask, common: Setup) -> Iterator[Setup]:
    """`common` with each way to lay a step's sequences into rows."""
    t, share = task.config.training, task.per_step // common.cards
    if packs(task):
        most = _round_up(task.work.step_tokens(share))
        lengths = {n for n in PACK_LENGTHS if task.work.longest <= n <= most} | {_round_up(task.work.longest)}
        for n in sorted(lengths | ({most} if most < PACK_LENGTHS[-1] else set())):
            yield replace(common, pack_length=n)
    else:
        for n in range(1, min(t.per_device_train_batch_size, share) + 1):
            if share % n == 0:
                yield replace(common, packing=False, micro_batch=n)


def packs(task: PlanningTask) -> bool:
    """Whether rows are packed: unless it was switched off, and where the attention that keeps sequences apart runs (cards with bfloat16)."""
    return task.config.training.packing is not False and task.device.bf16


def _cost(task: PlanningTask, setup: Setup, sharded: bool) -> SetupOption:
    t, work, card = task.config.training, task.work, task.card
    share = task.per_step // setup.cards
    mean = work.tokens / len(work.lengths)
    if setup.packing:
        rows = _packed_rows(work, setup.pack_length, share)
        tokens = min(mean * share / rows, setup.pack_length)  # a row is as long as its sequences
        largest = min(setup.pack_length, work.step_tokens(share))
    else:
        rows = share / setup.micro_batch
        tokens = work.padded(setup.micro_batch) / len(work.lengths) * setup.micro_batch
        largest = work.longest * setup.micro_batch
    step = rows * row_seconds(task.shape, task.adapter, setup, card, tokens, dropout=task.config.lora.lora_dropout > 0)
    if setup.cards > 1:
        step /= cards_share(sharded=sharded)
    if setup.optimizer == "adamw_8bit":
        step += EIGHT_BIT_SECONDS
    steps = len(work.lengths) * t.num_train_epochs / task.per_step  # the last step of an epoch may be short
    start = start_seconds(task.shape, task.device, rented=task.rented)
    double = task.config.lora.quantization.bnb_4bit_use_double_quant
    memory = card_memory(task.shape, task.adapter, setup, largest, double_quant=double, sharded=sharded)
    fits = memory.fits(task.device.memory_bytes, card=True)
    return SetupOption(setup, sharded, memory, mean * task.per_step / step, start, start + steps * step, fits)


@lru_cache(maxsize=256)
def _packed_rows(work: Workload, pack_length: int, share: int) -> float:
    return work.packed_rows(pack_length, share)


def _round_up(tokens: int, to: int = 256) -> int:
    return -(-tokens // to) * to
