"""Peak memory of training, term by term, for a setup that has not run yet.

On a card the sum stands beside `torch.cuda.max_memory_allocated`, on a processor beside the process's largest resident size. The
terms were held to what was measured: on an H200 and an H100 (Llama-3.1-8B, rank 64, rows of 8192 tokens) and on 2 processor cores (SmolLM2).
"""

from __future__ import annotations

from dataclasses import dataclass

from noesis.planning.model_shapes import Shape
from noesis.planning.setup import Setup

GIB = 2**30
# Bytes of a frozen weight of the projections. FP8 is stored twice, once for each direction of the product, with a scale a row.
BASE_BYTES = {"fp8": 2.0, "bf16": 2.0, "nf4": 0.516, "fp32": 4.0}
SINGLE_QUANT_BYTES = 0.5625  # NF4 without double quantisation: a float32 scale for each 64 weights
ADAPTER_BYTES = {"adamw": 16, "adamw_8bit": 10}  # float32 weight and gradient, and two moments in 4 bytes or 1
WIDTH = {"bfloat16": 2, "float16": 2, "float32": 4}
COPIES_BYTES = (
    3  # of an adapter's weight in the activations' type, A twice; recomputing everything, of one layer at a time
)
LOSS_TOKENS = 1024  # elsewhere the output layer and the loss are computed this many tokens at a time
CONTEXT_BYTES = 1.2 * GIB  # on a card beside what torch counts: CUDA's context, NCCL's buffers
SLACK = 1.06  # and holes between blocks
PROCESS_BYTES = 0.8e9  # on a processor: Python, torch, transformers, TRL
HOLES = 1.6  # on a processor the allocator holds this much for each byte of the longest row's activations
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


def one_layer(shape: Shape, setup: Setup) -> int:
    """Numbers that the forward pass makes for each token of a layer and backward uses.

    The engine: its input, what follows attention, both normed; q, k and v; attention's output, with dropout once more; gate, up and their
    product. Unsloth computes some of these again; transformers' own layers keep q and k before and after rotation, and the activated gate.
    """
    h, i, q, kv = shape.hidden, shape.intermediate, shape.query, shape.key
    if setup.engine == "unsloth":
        return 3 * i + 3 * h + 2 * q + 2 * kv
    return 3 * i + 4 * h + 3 * q + 2 * kv if setup.fused or setup.cards == 0 else 4 * i + 4 * h + 3 * q + 2 * kv


def kept_values(shape: Shape, setup: Setup) -> int:
    """Numbers that the forward pass keeps for each token and layer.

    `selective` keeps what can't be had from norms and from gate and up's product; `full` the layer's input, and one layer's own at a time.
    """
    if setup.gradient_checkpointing == "full":
        return shape.hidden
    if setup.gradient_checkpointing == "selective":
        return 2 * shape.hidden + 3 * shape.query + 2 * shape.key
    return one_layer(shape, setup)


def card_memory(
    shape: Shape, adapter: int, setup: Setup, tokens: int, *, double_quant: bool = True, sharded: bool = False
) -> Memory:
    """Expected peak on each card.

    Args:
        adapter: trained weights.
        tokens: of the largest row, or padded micro-batch, that is computed at once.
        sharded: the projections' weights are spread over the cards.
    """
    width = WIDTH[setup.compute_dtype]
    weight = SINGLE_QUANT_BYTES if setup.precision == "nf4" and not double_quant else BASE_BYTES[setup.precision]
    outer: float = shape.outer_weights * (4 if setup.precision == "fp32" else 2)
    if setup.offloads and not shape.tied:
        outer /= 2  # the embedding lies in main memory
    again, full = setup.gradient_checkpointing != "none", setup.gradient_checkpointing == "full"
    kept = tokens * width * kept_values(shape, setup) * shape.layers
    if setup.offloads or (full and setup.engine == "unsloth"):
        kept = 0  # the layers' inputs lie in main memory
    layer = shape.linear_weights // shape.layers
    if setup.fused:
        working: float = tokens * width * (2 * shape.intermediate + 4 * shape.hidden)
        working += (
            2 * layer if setup.precision == "nf4" or sharded else 0
        )  # unpacked or gathered, until the layer is done
        copies: float = COPIES_BYTES * (adapter / shape.layers if full else adapter)
        logits = min(tokens * shape.vocabulary * 2, setup.logits_bytes)
    else:
        working = (
            tokens
            * width
            * (10 * shape.intermediate + 5 * shape.hidden)
            * (UNSLOTH_WORK if setup.engine == "unsloth" else 1)
        )
        working += 2 * max(a * b for a, b in shape.linear().values()) if setup.precision == "nf4" else 0
        copies, logits = 0, min(tokens, LOSS_TOKENS) * shape.vocabulary * 4
    return Memory(
        base=shape.linear_weights * weight / (setup.cards if sharded else 1) + outer,
        adapter=adapter * (ADAPTER_BYTES[setup.optimizer] + (4 if setup.cards > 1 else 0))
        + copies,  # 4: gradients in flight between cards
        activations=kept + (tokens * width * one_layer(shape, setup) if again else 0),
        working=working,
        logits=logits,
        runtime=0,
    )


def cpu_memory(shape: Shape, adapter: int, setup: Setup, tokens: int) -> Memory:
    """Expected peak of the process on a processor.

    Args:
        tokens: of the largest row that is computed at once.
    """
    width = WIDTH[setup.compute_dtype]
    outer = shape.outer_weights * (4 if setup.precision == "fp32" else 2)
    kept = tokens * width * kept_values(shape, setup) * shape.layers
    if setup.gradient_checkpointing != "none":
        kept += tokens * width * one_layer(shape, setup)
    # NF4 is unpacked once and kept: unpacking takes as long as the product
    weight = BASE_BYTES[setup.precision] + (width if setup.precision == "nf4" else 0)
    return Memory(
        base=shape.linear_weights * weight + outer,
        adapter=adapter * (ADAPTER_BYTES[setup.optimizer] + COPIES_BYTES),
        activations=kept * HOLES,
        working=tokens * width * (2 * shape.intermediate + 4 * shape.hidden),
        logits=min(tokens * shape.vocabulary * 2, setup.logits_bytes) * 5,  # and, in float32, twice the same
        runtime=PROCESS_BYTES,
    )
