"""How fast training should go, and how long it takes before its first step, for a setup that has not run yet.

LoRA on a frozen base costs 4 FLOPs a token for each frozen weight (forward, and backward to the activations) and 6 for each adapter
weight; recomputing everything (`gradient_checkpointing: full`) adds 2 for each. On a card, time is matrix products at a share of the
card's rate, plus memory traffic of everything between them at the card's bandwidth, plus for NF4 the dequantisation of each matrix,
once a row and direction. The constants were fitted to an H100 (Llama-3.1-8B, rank 64, rows of 8192 tokens); a test holds them to it.
"""

from __future__ import annotations

from noesis.device import Device, measure_cpu_flops
from noesis.train.cards import Card
from noesis.train.memory import WIDTH, kept_values
from noesis.train.setup import Setup
from noesis.train.shapes import Shape

# What a training step reaches of the rate that is known beforehand. The processor's was fitted to SmolLM2 on 2 cores (AMD EPYC
# with AVX512-bf16: five runs at rank 64 between 142 and 178 tokens/s, where `measure_cpu_flops` finds 190 to 205 GFLOP/s).
CPU_EFFICIENCY = {True: 0.57, False: 0.28}  # with and without bfloat16 in hardware (the latter an estimate)
CPU_START_SECONDS = 12.0  # imports, loading and quantising the base, the first step's warm-up

MATMUL_SHARE = 0.72  # of the rate of a large matrix product
TRAFFIC_EAGER, TRAFFIC_COMPILED, TRAFFIC_UNSLOTH = 20.7, 11.0, 21.2  # bytes moved for each byte that is kept for the backward pass
TRAFFIC_FP8_EAGER, TRAFFIC_FP8_COMPILED = 5.5, 3.75  # more, to quantise activations and gradients; the first is an estimate
ROW_TOKENS = 200  # a row takes as long as so many tokens more: short rows do not fill the card (an estimate)
DEQUANTISE_BYTES = 6.7  # moved for each NF4 weight that is dequantised
LAUNCH_EAGER, LAUNCH_COMPILED = 1.5e-3, 0.7e-3  # seconds a layer and row below which the processor can't issue kernels (estimates)
SELECTIVE_COST = 1.15  # of the traffic, to compute the elementwise parts again (an estimate)
TWO_CARDS = 0.96  # of the ideal rate, on several cards (an estimate; the gradients exchanged are the adapter's only)
SHARDED = 0.5  # the same with the base sharded, every layer gathered twice a row (an estimate)
EIGHT_BIT_SECONDS = 0.005  # a step, for the 8-bit optimizer's quantisation

COMPILE_SECONDS = 25.0
IMPORT_SECONDS = 15.0  # torch, transformers, peft, CUDA's start (an estimate)
READ_BYTES_PER_S = {False: 2e9, True: 1e9}  # weights from a local disk's cache, or from a network volume (estimates)
CONTAINER_SECONDS = 40.0  # a rented machine: container and image (an estimate)


def cpu_tokens_per_second(shape: Shape, adapter: int, device: Device, flops_per_s: float | None = None) -> float:
    """Expected training rate on a processor, tokens of the whole row (prompt and answer) a second."""
    flops = 4 * (shape.linear_weights + shape.embedding_weights) + 6 * adapter
    return (flops_per_s or measure_cpu_flops()) * CPU_EFFICIENCY[device.bf16] / flops


def row_seconds(shape: Shape, adapter: int, setup: Setup, card: Card, tokens: float) -> float:
    """Forward and backward of one row (or padded micro-batch) of `tokens` tokens on one card."""
    again = 1.5 if setup.gradient_checkpointing == "full" else 1.0
    linear = 4 * shape.linear_weights * again
    rest = 4 * shape.embedding_weights + 6 * adapter + (2 * adapter if again > 1 else 0)
    wide = card.half / (8 if setup.precision == "fp32" else 1)
    products = linear / ((card.fp8 if setup.precision == "fp8" else wide) * MATMUL_SHARE) + rest / (wide * MATMUL_SHARE)
    seconds = (tokens + ROW_TOKENS) * (products + _traffic(shape, setup) / card.bandwidth)
    if setup.precision == "nf4":
        seconds += shape.linear_weights * DEQUANTISE_BYTES * 2 * again / card.bandwidth
    launch = (LAUNCH_COMPILED if setup.compile else LAUNCH_EAGER) * shape.layers * (4 / 3 if again > 1 else 1)
    return max(seconds, launch)


def _traffic(shape: Shape, setup: Setup) -> float:
    """Bytes a token that are moved between matrix products, forward and backward."""
    plain = Setup(**{**vars(setup), "gradient_checkpointing": "none"})
    factor = TRAFFIC_UNSLOTH if setup.engine == "unsloth" else TRAFFIC_COMPILED if setup.compile else TRAFFIC_EAGER
    if setup.precision == "fp8":
        factor += TRAFFIC_FP8_COMPILED if setup.compile else TRAFFIC_FP8_EAGER
    factor *= {"none": 1.0, "selective": SELECTIVE_COST, "full": 4 / 3}[setup.gradient_checkpointing]
    return kept_values(shape, plain) * WIDTH[setup.compute_dtype] * shape.layers * factor


def start_seconds(shape: Shape, device: Device, *, rented: bool) -> float:
    """From the process's start (for a rented machine: from the call) to the first step, compiling left out."""
    if device.kind == "cpu":
        return CPU_START_SECONDS + shape.parameters * 2 / READ_BYTES_PER_S[False]
    return IMPORT_SECONDS + shape.parameters * 2 / READ_BYTES_PER_S[rented] + (CONTAINER_SECONDS if rented else 0)
