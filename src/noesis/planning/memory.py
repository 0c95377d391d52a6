"""Peak memory of training, term by term, for a setup that has not run yet.

On a GPU the sum corresponds to `torch.cuda.max_memory_allocated`, on a CPU to the process's largest resident size. The
terms were fitted to measurements on an H200 and an H100 (Llama-3.1-8B, rank 64, rows of 8192 tokens) and on two CPU
cores (SmolLM2); tests/planning/test_memory_and_speed.py holds them to those figures.
"""

from __future__ import annotations

from dataclasses import dataclass

from noesis.core.families.shape import Shape
from noesis.planning.setup import Setup

GIB = 2**30
# Bytes per frozen weight of the projections. FP8 is stored twice, once per direction of the product, with a scale per
# row.
BASE_BYTES = {"fp8": 2.0, "bf16": 2.0, "nf4": 0.516, "fp32": 4.0}
SINGLE_QUANT_BYTES = 0.5625  # NF4 without double quantisation: a float32 scale for each 64 weights
ADAPTER_BYTES = {"adamw": 16, "adamw_8bit": 10}  # float32 weight and gradient, and two moments of 4 bytes or of 1
GRADIENT_BUFFER_BYTES = 4  # per adapter weight: gradients in flight between GPUs
DTYPE_BYTES = {"bfloat16": 2, "float16": 2, "float32": 4}
# Per adapter weight: copies in the activations' type, A twice. With full checkpointing, of one layer at a time.
COPIES_BYTES = 3
LOSS_TOKENS = 1024  # tokens at a time of the output layer and the loss in Unsloth
CONTEXT_BYTES = 1.2 * GIB  # on a GPU, not counted by torch: CUDA's context, NCCL's buffers
GPU_SLACK = 1.06  # fragmentation of a GPU's memory
PROCESS_BYTES = 0.8e9  # on a CPU: Python, torch, transformers, TRL
CPU_SLACK = 1.6  # bytes that the CPU allocator holds per byte of the longest row's activations
UNSLOTH_WORKING_SHARE = 0.3  # of the working space, measured: Unsloth writes gradients over activations


@dataclass(frozen=True)
class Memory:
    """Bytes by term.

    base: frozen weights, quantised or not, with embeddings and output layer, which never are
    adapter: trained weights, their gradients and the optimizer's moments
    activations: what the forward pass saves for the backward pass
    working: gradients in flight of one layer, and dequantised weights
    logits: the part of the output layer's result that exists at a time, and its gradient
    runtime: the process itself; 0 on a GPU
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

    def needed(self, *, on_gpu: bool) -> float:
        """Free memory that this takes, in bytes: on a GPU with context and fragmentation."""
        return self.total * GPU_SLACK + CONTEXT_BYTES if on_gpu else self.total

    def fits(self, device_bytes: float, *, on_gpu: bool) -> bool:
        """Whether a device with this much free memory can hold it."""
        return self.needed(on_gpu=on_gpu) <= device_bytes

    def rounded(self) -> Memory:
        """Every term to the byte, as a plan stores it."""
        return Memory(**{name: float(round(value)) for name, value in self.to_json().items()})

    def to_json(self) -> dict[str, float]:
        return {
            "base": self.base,
            "adapter": self.adapter,
            "activations": self.activations,
            "working": self.working,
            "logits": self.logits,
            "runtime": self.runtime,
        }

    @classmethod
    def from_json(cls, value: dict[str, float]) -> Memory:
        return cls(**value)


def layer_activations(shape: Shape, setup: Setup) -> int:
    """Numbers per token that one layer's forward pass makes and its backward pass uses.

    The engine: the layer's input, the attention's residual, both normed; q, k and v; the attention's output, again
    after dropout; gate, up and their product. Unsloth recomputes some of these. transformers' layers save q and k
    before and after rotation, and the activated gate. Norms of the heads, and of what is added, save what they norm.
    """
    h, i, q, kv = shape.hidden, shape.intermediate, shape.query, shape.key
    if setup.engine == "unsloth":
        return 3 * i + 3 * h + 2 * q + 2 * kv + _normed(shape)
    if setup.fused or setup.gpus == 0:
        return 3 * i + 4 * h + 3 * q + 2 * kv + _normed(shape)
    return 4 * i + 4 * h + 3 * q + 2 * kv + _normed(shape)


def _normed(shape: Shape) -> int:
    """Numbers per token that a layer's further norms save: before the heads' norms, and before the joins' ones."""
    heads = shape.query + shape.key if shape.parts.head_norms else 0
    return heads + (2 * shape.hidden if shape.parts.post_norms else 0)


def saved_activations(shape: Shape, setup: Setup) -> int:
    """Numbers per token and layer that stay in memory until the backward pass.

    `selective` saves what can't be recomputed from the norms and from the product of gate and up; `full` saves the
    layer's input.
    """
    if setup.gradient_checkpointing == "full":
        return shape.hidden
    if setup.gradient_checkpointing == "selective":
        return 2 * shape.hidden + 3 * shape.query + 2 * shape.key + _normed(shape)
    return layer_activations(shape, setup)


def gpu_memory(
    shape: Shape, adapter: int, setup: Setup, tokens: int, *, double_quant: bool = True, sharded: bool = False
) -> Memory:
    """Expected peak on each GPU.

    Args:
        adapter: trained weights.
        tokens: of the largest row or padded micro-batch, which is computed at once.
        sharded: the projections' weights are spread over the GPUs.
    """
    width = DTYPE_BYTES[setup.compute_dtype]
    recomputes, full = setup.gradient_checkpointing != "none", setup.gradient_checkpointing == "full"
    weight = SINGLE_QUANT_BYTES if setup.precision == "nf4" and not double_quant else BASE_BYTES[setup.precision]
    outer: float = shape.outer_weights * (4 if setup.precision == "fp32" else 2)
    if setup.offloads and not shape.tied:
        outer /= 2  # the embedding is in main memory
    saved = tokens * width * saved_activations(shape, setup) * shape.layers
    if setup.offloads or (full and setup.engine == "unsloth"):
        saved = 0  # the layers' inputs are in main memory
    copies: float = 0
    if setup.fused:
        working: float = tokens * width * (2 * shape.intermediate + 4 * shape.hidden)
        if setup.precision == "nf4" or sharded:  # a layer's weights, unpacked or gathered until the layer is done
            working += 2 * (shape.linear_weights // shape.layers)
        copies = COPIES_BYTES * (adapter / shape.layers if full else adapter)
        logits = min(tokens * shape.vocabulary * 2, setup.logits_bytes)
    else:
        working = tokens * width * (10 * shape.intermediate + 5 * shape.hidden)
        if setup.engine == "unsloth":
            working *= UNSLOTH_WORKING_SHARE
        if setup.precision == "nf4":
            working += 2 * max(a * b for a, b in shape.linear().values())
        # transformers' layers: all trained tokens' at once, which their gradient overwrites
        logits = (min(tokens, LOSS_TOKENS) * 4 if setup.engine == "unsloth" else tokens * 2) * shape.vocabulary
    per_adapter_weight = ADAPTER_BYTES[setup.optimizer] + (GRADIENT_BUFFER_BYTES if setup.gpus > 1 else 0)
    return Memory(
        base=shape.linear_weights * weight / (setup.gpus if sharded else 1) + outer,
        adapter=adapter * per_adapter_weight + copies,
        activations=saved + (tokens * width * layer_activations(shape, setup) if recomputes else 0),
        working=working,
        logits=logits,
        runtime=0,
    )


def cpu_memory(shape: Shape, adapter: int, setup: Setup, tokens: int) -> Memory:
    """Expected peak of the process on a CPU.

    Args:
        adapter: trained weights.
        tokens: of the largest row, which is computed at once.
    """
    width = DTYPE_BYTES[setup.compute_dtype]
    outer = shape.outer_weights * (4 if setup.precision == "fp32" else 2)
    saved = tokens * width * saved_activations(shape, setup) * shape.layers
    if setup.gradient_checkpointing != "none":
        saved += tokens * width * layer_activations(shape, setup)
    # NF4 weights are unpacked once and kept: unpacking takes as long as the product
    weight = BASE_BYTES[setup.precision] + (width if setup.precision == "nf4" else 0)
    return Memory(
        base=shape.linear_weights * weight + outer,
        adapter=adapter * (ADAPTER_BYTES[setup.optimizer] + COPIES_BYTES),
        activations=saved * CPU_SLACK,
        working=tokens * width * (2 * shape.intermediate + 4 * shape.hidden),
        logits=min(tokens * shape.vocabulary * 2, setup.logits_bytes) * 5,  # and twice the same in float32
        runtime=PROCESS_BYTES,
    )
