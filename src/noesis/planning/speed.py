"""How fast training should go, and how long it takes before its first step, for a setup that has not run yet.

LoRA on a frozen base costs 4 FLOPs a token for each frozen weight (forward, and backward to the activations) and 6 for each adapter
weight; recomputing everything (`gradient_checkpointing: full`) adds 2 for each. On a card, time is matrix products at a share of the
card's rate, plus memory traffic of everything between them at the card's bandwidth, plus for NF4 unpacking each matrix once a row and
direction. The engine's constants were fitted to an H200, Unsloth's to an H100 (Llama-3.1-8B, rank 64, rows of 8192 tokens); tests hold
them to both.
"""

from __future__ import annotations

from noesis.core.device import Device, measure_cpu_flops
from noesis.planning.gpus import Gpu
from noesis.planning.memory import WIDTH, one_layer
from noesis.planning.model_shapes import Shape
from noesis.planning.setup import Setup

# What a training step reaches of the rate that is known beforehand. The processor's was fitted to SmolLM2 at rank 64 on 2 cores (AMD EPYC
# with AVX512-bf16): 270 tokens/s on the quiet machine, where `measure_cpu_flops` finds 190 to 205 GFLOP/s.
CPU_EFFICIENCY = {True: 0.89, False: 0.45}  # with and without bfloat16 in hardware (the latter an estimate)
CPU_START_SECONDS = 12.0  # imports, loading and quantising the base, the first step's warm-up

# The engine (`Setup.fused`), fitted on one H200 to FP8, bf16, and NF4 with everything recomputed; the rest as said.
PRODUCTS = (
    0.93  # of the rate of a large matrix product; FP8's, which accumulate fast, count the same of the slower rate
)
TRAFFIC = 15.8  # bytes moved for each byte that is kept for the backward pass, attention counted with them
DROPOUT_SHARE = 0.028  # of the time, with LoRA dropout
UNPACK_BYTES = 6.7  # moved for each NF4 weight that is unpacked
ROW_TOKENS = (
    300  # a row takes as long as so many tokens more: short rows do not fill the card (fitted to rows of 4,918 tokens)
)
LAUNCH = 0.7e-3  # seconds a layer and row below which the processor can't issue kernels (an estimate)
CARDS_SHARE = 0.956  # of the ideal rate, on two cards; more are taken to be like two
SHARDED_SHARE = 0.934  # the same with the base spread over them

# Unsloth, and transformers' own layers (float16 on cards without bfloat16), fitted on an H100 to Unsloth and to an eager prototype.
SLOW_PRODUCTS, SLOW_ROW_TOKENS, SLOW_LAUNCH = 0.72, 200, 1.5e-3
TRAFFIC_UNSLOTH, TRAFFIC_PLAIN = 21.2, 20.7

EIGHT_BIT_SECONDS = 0.005  # a step, for the 8-bit optimizer's quantisation

IMPORT_SECONDS = 15.0  # torch, transformers, peft, CUDA's start (an estimate)
READ_BYTES_PER_S = {False: 2e9, True: 1e9}  # weights from a local disk's cache, or from a network volume (estimates)
CONTAINER_SECONDS = 40.0  # a rented machine: container and image (an estimate)


def cpu_tokens_per_second(shape: Shape, adapter: int, device: Device, flops_per_s: float | None = None) -> float:
    """Expected training rate on a processor, tokens of the whole row (prompt and answer) a second."""
    flops = 4 * (shape.linear_weights + shape.embedding_weights) + 6 * adapter
    return (flops_per_s or measure_cpu_flops()) * CPU_EFFICIENCY[device.bf16] / flops


def row_seconds(shape: Shape, adapter: int, setup: Setup, card: Gpu, tokens: float, *, dropout: bool = False) -> float:
    """Forward and backward of one row (or padded micro-batch) of `tokens` tokens on one card."""
    fused, full = setup.fused, setup.gradient_checkpointing == "full"
    linear = shape.linear_weights * (4 + 2 * _recomputed(shape, setup))
    rest = 4 * shape.embedding_weights + (8 if full else 6) * adapter
    wide = card.half / (8 if setup.precision == "fp32" else 1)
    products = (linear / (card.fp8 if setup.precision == "fp8" else wide) + rest / wide) / (
        PRODUCTS if fused else SLOW_PRODUCTS
    )
    seconds = (tokens + (ROW_TOKENS if fused else SLOW_ROW_TOKENS)) * (
        products + _traffic(shape, setup) / card.bandwidth
    )
    if setup.precision == "nf4":
        # the engine keeps what it recomputes with for the backward products, the others unpack it again
        seconds += shape.linear_weights * UNPACK_BYTES * (3 if full and not fused else 2) / card.bandwidth
    if fused and dropout:
        seconds *= 1 + DROPOUT_SHARE
    launch = (LAUNCH if fused else SLOW_LAUNCH) * shape.layers * (4 / 3 if full else 1)
    return max(seconds, launch)


def cards_share(*, sharded: bool) -> float:
    """What several cards reach of the sum of their rates."""
    return SHARDED_SHARE if sharded else CARDS_SHARE


def _recomputed(shape: Shape, setup: Setup) -> float:
    """Share of the projections' forward products that backward computes again; `selective` repeats gate and up."""
    if setup.gradient_checkpointing == "selective":
        return 2 * shape.hidden * shape.intermediate * shape.layers / shape.linear_weights
    return 1.0 if setup.gradient_checkpointing == "full" else 0.0


def _traffic(shape: Shape, setup: Setup) -> float:
    """Bytes a token that are moved between matrix products, forward and backward."""
    factor = TRAFFIC if setup.fused else TRAFFIC_UNSLOTH if setup.engine == "unsloth" else TRAFFIC_PLAIN
    factor *= {"none": 1.0, "selective": 7 / 6, "full": 4 / 3}[setup.gradient_checkpointing]  # selective: an estimate
    return one_layer(shape, setup) * WIDTH[setup.compute_dtype] * shape.layers * factor


def start_seconds(shape: Shape, device: Device, *, rented: bool) -> float:
    """From the process's start (for a rented machine: from the call) to the first step."""
    if device.kind == "cpu":
        return CPU_START_SECONDS + shape.parameters * 2 / READ_BYTES_PER_S[False]
    return IMPORT_SECONDS + shape.parameters * 2 / READ_BYTES_PER_S[rented] + (CONTAINER_SECONDS if rented else 0)
