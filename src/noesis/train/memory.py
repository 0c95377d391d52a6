"""Peak memory of training, term by term, for a setup that has not run yet.

On a card the sum stands beside `torch.cuda.max_memory_allocated`, on a processor beside the process's largest resident size. The
constants were fitted to what was measured: on an H100 (Llama-3.1-8B, rank 64, rows of 8192 tokens) and on 2 processor cores (SmolLM2).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from noesis.train.setup import Setup
from noesis.train.shapes import Shape

GIB = 2**30
# Bytes of a frozen weight of the projections. FP8 is stored twice, once for each direction of the product, with a scale a row.
BASE_BYTES = {"fp8": 2.0, "bf16": 2.0, "nf4": 0.516, "fp32": 4.0}
SINGLE_QUANT_BYTES = 0.5625  # NF4 without double quantisation: a float32 scale for each 64 weights
ADAPTER_BYTES = {"adamw": 16, "adamw_8bit": 10}  # float32 weight and gradient, and two moments in 4 bytes or 1
WIDTH = {"bfloat16": 2, "float16": 2, "float32": 4}
LOSS_TOKENS = 1024  # the output layer and the loss are computed this many tokens at a time
CONTEXT_BYTES = 1.2 * GIB  # on a card beside what torch counts: CUDA's context, NCCL's buffers
SLACK = 1.06  # and holes between blocks
PROCESS_BYTES = 0.8e9  # on a processor: Python, torch, transformers
UNSLOTH_WORK = 0.3  # of the working space, measured: it writes gradients over activations


@dataclass(frozen=True)
class Memory:
    """Bytes by term.

    base: frozen weights, quantised or not, and embeddings and output layer, which are not
    adapter: trained weights, their gradients and the optimizer's moments
    activations: what the forward pass keeps for the backward pass
    working: one layer's gradients in flight, and dequantised weights
    logits: a part of the output layer's result and its gradient
    runtime: the process itself (on a card: nothing that torch counts)
    """

    base: float
    adapter: float
    activations: float
    working: float
    logits: float
    runtime: float

    @property
    def total(self) -> float:
        return self.base + self.adapter + self.activations + self.working + self.logits + self.runtime

    def fits(self, device_bytes: float, *, card: bool) -> bool:
        """Whether a device with so much free memory holds it, context and holes included."""
        return self.needed(card=card) <= device_bytes

    def needed(self, *, card: bool) -> float:
        """Free memory that it takes."""
        return self.total * SLACK + CONTEXT_BYTES if card else self.total


def kept_values(shape: Shape, setup: Setup) -> int:
    """Numbers that the forward pass keeps for each token and layer.

    Eager, a layer keeps its norms' inputs and outputs, q and k before and after rotation, v, the attention's output, and gate, up,
    activated gate and product; compiled, some of these are computed again inside the fused kernels. `selective` keeps what matrix
    products and attention gave and computes the rest again; `full` keeps each layer's input, and one layer's own at a time.
    """
    h, i, q, kv = shape.hidden, shape.intermediate, shape.query, shape.key
    if setup.gradient_checkpointing == "full":
        return h
    if setup.gradient_checkpointing == "selective":
        return 2 * i + 2 * h + 2 * q + 2 * kv
    return _one_layer(shape, setup)


def card_memory(shape: Shape, adapter: int, setup: Setup, tokens: int, *, double_quant: bool = True, sharded: bool = False) -> Memory:
    """Expected peak on each card.

    Args:
        adapter: trained weights.
        tokens: of the largest row, or padded micro-batch, that is computed at once.
        sharded: the projections' weights are spread over the cards.
    """
    width = WIDTH[setup.compute_dtype]
    weight = SINGLE_QUANT_BYTES if setup.precision == "nf4" and not double_quant else BASE_BYTES[setup.precision]
    outer = shape.outer_weights * (4 if setup.precision == "fp32" else 2)
    unsloth, full = setup.engine == "unsloth", setup.gradient_checkpointing == "full"
    layer = tokens * width * _one_layer(shape, setup)
    kept = tokens * width * kept_values(shape, setup) * shape.layers
    if full:
        kept = layer + (0 if unsloth else kept)  # Unsloth keeps the layers' inputs in main memory
    working = tokens * width * (10 * shape.intermediate + 5 * shape.hidden) * (UNSLOTH_WORK if unsloth else 1)
    if setup.precision == "nf4" or sharded:
        working += 2 * max(a * b for a, b in shape.linear().values())
    return Memory(
        base=shape.linear_weights * weight / (setup.cards if sharded else 1) + outer,
        adapter=adapter * (ADAPTER_BYTES[setup.optimizer] + (4 if setup.cards > 1 else 0)),  # gradients in flight between cards
        activations=kept,
        working=working,
        logits=min(tokens, LOSS_TOKENS) * shape.vocabulary * 4,
        runtime=0,
    )


def _one_layer(shape: Shape, setup: Setup) -> int:
    h, i, q, kv = shape.hidden, shape.intermediate, shape.query, shape.key
    if setup.compile or setup.engine == "unsloth":
        return 3 * i + 3 * h + 2 * q + 2 * kv
    return 4 * i + 4 * h + 3 * q + 2 * kv


def cpu_memory(shape: Shape, adapter: int, setup: Setup, tokens: int, passes: int) -> Memory:
    """Expected peak of the process on a processor.

    Args:
        tokens: of the largest row that is computed at once.
        passes: how many forward and backward passes the run makes; the allocator's holes grow with rows of ever other lengths.
    """
    width = WIDTH[setup.compute_dtype]
    outer = shape.outer_weights * (4 if setup.precision == "fp32" else 2)
    # Per token and layer about 14 vectors of the hidden and 6 of the intermediate width, and the adapter's float32 copies of its inputs.
    layer = tokens * (width * (14 * shape.hidden + 6 * shape.intermediate) + 4 * (6 * shape.hidden + shape.intermediate))
    scores = shape.heads * tokens**2 * 10 if tokens <= 1024 else 0  # plain attention keeps its matrices
    kept = (layer + scores) * shape.layers
    if setup.gradient_checkpointing != "none":
        kept = layer + scores + tokens * shape.hidden * width * shape.layers
    holes = cpu_holes(passes)
    return Memory(
        base=shape.linear_weights * BASE_BYTES[setup.precision] + outer,
        adapter=adapter * ADAPTER_BYTES[setup.optimizer],
        activations=kept * holes,
        working=0,
        logits=min(tokens, LOSS_TOKENS) * shape.vocabulary * 4 * 2,
        runtime=PROCESS_BYTES,
    )


def cpu_holes(passes: int) -> float:
    """What the allocator holds for each byte of the longest row's activations, after so many passes (measured from 2 to 111)."""
    return 0.45 + 0.24 * math.log(max(passes, 1))
