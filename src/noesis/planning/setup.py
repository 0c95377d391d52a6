"""`Setup`: how a run computes. The planner (`noesis plan`) chooses it, the run's plan stores it, the engine obeys it. Torch-free."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Engine = Literal["noesis", "unsloth"]
Precision = Literal["fp8", "bf16", "nf4", "fp32"]
Checkpointing = Literal["none", "selective", "full"]
LOGITS_BYTES, SMALL_LOGITS_BYTES = 2**29, 2**27  # of the engine's logits at a time; the second recomputing everything


@dataclass(frozen=True)
class Setup:
    """How a run computes: chosen by the planner, stored in the plan, obeyed by the engine."""

    engine: Engine
    precision: Precision  # how the frozen base is stored and multiplied
    compute_dtype: Literal["bfloat16", "float16", "float32"]  # of activations
    gradient_checkpointing: Checkpointing
    compile: bool  # always False: the engine's kernels are fused already, and Unsloth brings its own
    packing: bool
    pack_length: int  # tokens of a packed row (0: not packed)
    sequences_per_step: (
        int  # of one optimizer step over all cards: per_device_train_batch_size × gradient_accumulation_steps
    )
    micro_batch: int  # sequences at a time when not packed
    optimizer: Literal["adamw", "adamw_8bit"]
    cards: int  # GPUs of this host (0: processor)

    @property
    def fused(self) -> bool:
        """Whether the engine's own kernels run: on cards, and they know bfloat16 only; elsewhere transformers' layers do."""
        return self.engine == "noesis" and self.cards > 0 and self.compute_dtype == "bfloat16"

    @property
    def offloads(self) -> bool:
        """The smallest setup: the engine stores the layers' inputs and the embedding in main memory."""
        return self.fused and self.precision == "nf4" and self.gradient_checkpointing == "full"

    @property
    def logits_bytes(self) -> int:
        """Bytes of logits that the engine computes at a time, in 16 bits."""
        return SMALL_LOGITS_BYTES if self.gradient_checkpointing == "full" else LOGITS_BYTES
