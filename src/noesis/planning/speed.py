"""Training speed, and the time before the first step, for a setup that has not run yet.

LoRA on a frozen base costs 4 FLOPs per token and frozen weight (the forward pass, and the backward pass to the
activations) and 6 per token and adapter weight; recomputing everything (`gradient_checkpointing: full`) adds 2 for
each. On a GPU the time is that of the matrix products at a share of the GPU's rate, plus the memory traffic of
everything between them at the GPU's bandwidth, plus, for NF4, unpacking each matrix once per row and direction; small
models take as long as the host needs to launch their kernels. The engine's constants were fitted to an H200, Unsloth's
to an H100 (Llama-3.1-8B, rank 64, rows of 8192 tokens), launching to SmolLM2 and Qwen2.5-1.5B;
tests/planning/test_memory_and_speed.py holds the model to all.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from noesis.core.device import Device, measure_cpu_flops
from noesis.core.families.shape import Shape
from noesis.core.files import make_folder, sha256_json, write_json
from noesis.core.jsonl import read_json_file
from noesis.core.libraries import library_versions
from noesis.core.machine.folders import cache_folder
from noesis.planning.gpus import Gpu
from noesis.planning.memory import DTYPE_BYTES, layer_activations
from noesis.planning.setup import Setup

# Share of `measure_cpu_flops` that a training step reaches, with and without bfloat16 in hardware (the latter an
# estimate). Fitted to SmolLM2 at rank 64 on 2 idle cores (AMD EPYC with AVX512-bf16): 270 tokens/s where numpy reaches
# 190 to 205 GFLOP/s.
CPU_EFFICIENCY = {True: 0.89, False: 0.45}
CPU_START_SECONDS = 12.0  # imports, loading and quantising the base, the first step's warm-up

# The engine (`Setup.fused`), fitted on one H200 to FP8, bf16, and NF4 with full checkpointing, unless marked as an
# estimate.
PRODUCTS = 0.93  # share reached of the rate of a large matrix product (FP8: of its rate without fast accumulation)
TRAFFIC = 15.8  # bytes moved per byte that is saved for the backward pass, attention included
DROPOUT_SHARE = 0.028  # extra time with LoRA dropout
UNPACK_BYTES = 6.7  # bytes moved per NF4 weight that is unpacked
ROW_TOKENS = 300  # a row takes as long as with this many more: short ones do not fill the GPU (fitted to 4,918 tokens)
# Seconds per layer and row, below which the CPU can't issue kernels fast enough (Unsloth: an estimate).
LAUNCH = {"noesis": 5.0e-3, "transformers": 7.2e-3, "unsloth": 1.5e-3}
# FlashAttention 4 beside torch's own, fitted on an H100 to Llama-3.1-8B: the share of a row's time that is left, and
# the seconds that compiling its kernels adds to each start.
FLASH4_SHARE, FLASH4_SECONDS = 0.965, 6.0
CAPPED = 2.5e-6  # seconds per layer and token of capped attention (`engine/blockwise.py`), on an H100
SCALING = 0.956  # share of the ideal rate on two GPUs; assumed for more as well
SHARDED_SCALING = 0.934  # the same with the base spread over the GPUs

# Unsloth, fitted on an H100; transformers' own layers, on an H200 to Qwen2.5-1.5B.
SLOW_PRODUCTS, SLOW_ROW_TOKENS = 0.72, 200
TRAFFIC_UNSLOTH, TRAFFIC_PLAIN = 21.2, 38.5

EIGHT_BIT_SECONDS = 0.005  # per step, for the 8-bit optimizer's quantisation

IMPORT_SECONDS, RENTED_IMPORT_SECONDS = 10.0, 15.0  # torch, transformers, peft, CUDA's start (rented: an estimate)
KERNEL_SECONDS, RENTED_KERNEL_SECONDS = (
    8.0,
    11.0,
)  # the engine's kernels: 5 where they were compiled before, 12 where not
LOCAL_BYTES_PER_S, VOLUME_BYTES_PER_S = 2e9, 1e9  # reading weights from a local disk or a network volume (estimates)
CONTAINER_SECONDS = 40.0  # start of a rented machine: container and image (an estimate)


def cpu_tokens_per_second(shape: Shape, adapter: int, device: Device, flops_per_s: float | None = None) -> float:
    """Expected training rate on a CPU, in tokens of whole rows (prompt and answer) per second.

    Args:
        adapter: trained weights.
        flops_per_s: rate of this CPU; None: measure it.
    """
    flops = 4 * (shape.linear_weights + shape.embedding_weights) + 6 * adapter
    return (flops_per_s or measure_cpu_flops()) * CPU_EFFICIENCY[device.bf16] / flops


def row_seconds(shape: Shape, adapter: int, setup: Setup, gpu: Gpu, tokens: float, *, dropout: bool = False) -> float:
    """Seconds of the forward and backward pass of one row, or padded micro-batch, of `tokens` tokens on one GPU."""
    fused, full = setup.fused, setup.gradient_checkpointing == "full"
    linear = shape.linear_weights * (4 + 2 * _recomputed_share(shape, setup))
    rest = 4 * shape.embedding_weights + (8 if full else 6) * adapter
    half = gpu.half / (8 if setup.precision == "fp32" else 1)
    products = linear / (gpu.fp8 if setup.precision == "fp8" else half) + rest / half
    products /= PRODUCTS if fused else SLOW_PRODUCTS
    per_token = products + _traffic_bytes(shape, setup) / gpu.bandwidth
    seconds = (tokens + (ROW_TOKENS if fused else SLOW_ROW_TOKENS)) * per_token
    if setup.precision == "nf4":
        # the engine reuses for the backward products what it unpacked for recomputing; the others unpack it again
        seconds += shape.linear_weights * UNPACK_BYTES * (3 if full and not fused else 2) / gpu.bandwidth
    if fused and dropout:
        seconds *= 1 + DROPOUT_SHARE
    if setup.attention == "flash4":
        seconds *= FLASH4_SHARE
    if fused and shape.parts.capped:
        seconds += CAPPED * shape.layers * tokens
    launch = LAUNCH[setup.engine] * shape.layers * (4 / 3 if full else 1)
    return max(seconds, launch)


@dataclass(frozen=True)
class MeasuredRow:
    """What `noesis plan --measure` found for a model on this machine: a row's share of a step.

    tokens: of the row
    """

    setup: Setup
    tokens: int
    seconds: float
    date: str

    def ratio(self, shape: Shape, adapter: int, gpu: Gpu) -> float:
        """Measured over computed time, on a GPU."""
        return self.seconds / row_seconds(shape, adapter, self.setup, gpu, self.tokens)

    def to_json(self) -> dict[str, Any]:
        return {"setup": self.setup.to_json(), "tokens": self.tokens, "seconds": self.seconds, "date": self.date}

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> MeasuredRow:
        return cls(Setup.from_json(value["setup"]), int(value["tokens"]), float(value["seconds"]), str(value["date"]))


def measured_row(shape: Shape, adapter: int, device: Device, engine: str) -> MeasuredRow | None:
    """What was measured for this model on this machine, with these versions of the libraries; None: nothing was."""
    file = _measured_file(shape, adapter, device, engine)
    try:
        found = MeasuredRow.from_json(read_json_file(file, constants=False))
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None  # none, or one that an early version or nobody wrote
    return found if found.tokens > 0 and 0 < found.seconds < math.inf else None


def store_measured_row(found: MeasuredRow, shape: Shape, adapter: int, device: Device) -> None:
    """Store what was measured, in place of what was measured before."""
    file = _measured_file(shape, adapter, device, found.setup.engine)
    make_folder(file.parent)
    write_json(file, found.to_json())


def _measured_file(shape: Shape, adapter: int, device: Device, engine: str) -> Path:
    machine = [device.kind, device.name, device.threads, device.bf16]
    key = sha256_json([machine, engine, adapter, asdict(shape), library_versions()])
    return cache_folder() / "measured" / f"{key[:20]}.json"


def scaling_efficiency(*, sharded: bool) -> float:
    """Share of the sum of their rates that several GPUs reach together."""
    return SHARDED_SCALING if sharded else SCALING


def start_seconds(shape: Shape, device: Device, *, rented: bool, fused: bool = False) -> float:
    """Seconds from the start of the process, or for a rented machine from the call, to the first step."""
    if device.kind == "cpu":
        return CPU_START_SECONDS + load_seconds(shape, rented=False)
    if rented:
        own = CONTAINER_SECONDS + RENTED_IMPORT_SECONDS + (RENTED_KERNEL_SECONDS if fused else 0)
    else:
        own = IMPORT_SECONDS + (KERNEL_SECONDS if fused else 0)
    return own + load_seconds(shape, rented=rented)


def load_seconds(shape: Shape, *, rented: bool) -> float:
    """Seconds to read the model's 16-bit weights."""
    return shape.parameters * 2 / (VOLUME_BYTES_PER_S if rented else LOCAL_BYTES_PER_S)


def _recomputed_share(shape: Shape, setup: Setup) -> float:
    """Share of the projections' forward products that the backward pass repeats; `selective` repeats gate and up."""
    if setup.gradient_checkpointing == "selective":
        return 2 * shape.hidden * shape.intermediate * shape.layers / shape.linear_weights
    return 1.0 if setup.gradient_checkpointing == "full" else 0.0


def _traffic_bytes(shape: Shape, setup: Setup) -> float:
    """Bytes per token that are moved between matrix products, forward and backward."""
    factor = TRAFFIC if setup.fused else TRAFFIC_UNSLOTH if setup.engine == "unsloth" else TRAFFIC_PLAIN
    factor *= {"none": 1.0, "selective": 7 / 6, "full": 4 / 3}[setup.gradient_checkpointing]  # selective: an estimate
    return layer_activations(shape, setup) * DTYPE_BYTES[setup.compute_dtype] * shape.layers * factor
