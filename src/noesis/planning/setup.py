"""`Setup`: how a run computes. The planner chooses it, the plan stores it, the trainer obeys it. Torch-free."""

from __future__ import annotations

from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from typing import Any, Literal

Engine = Literal["noesis", "transformers", "unsloth"]  # transformers: its own layers, on packed rows
Precision = Literal["fp8", "bf16", "nf4", "fp32"]
ComputeDtype = Literal["bfloat16", "float16", "float32"]
Checkpointing = Literal["none", "selective", "full"]
Optimizer = Literal["adamw", "adamw_8bit"]
Attention = Literal["flash2", "flash4"]  # on the engine's GPUs: torch's own, or the package flash-attn-4
FLASH4_RELEASE = "4.0.0b17"  # of flash-attn-4, whose private functions are called: later ones return other values
LOGITS_BYTES, SMALL_LOGITS_BYTES = 2**29, 2**27  # of the engine's logits at a time; small with full checkpointing


def has_flash4() -> bool:
    """Whether the release of FlashAttention 4 that the engine knows is installed."""
    try:
        return version("flash-attn-4") == FLASH4_RELEASE
    except PackageNotFoundError:
        return False


@dataclass(frozen=True)
class Setup:
    """How a run computes.

    precision: how the frozen base is stored and multiplied
    compute_dtype: of the activations
    pack_length: tokens of a packed row; 0: rows are not packed
    sequences_per_step: of one optimizer step over all GPUs: per_device_train_batch_size × gradient_accumulation_steps
    micro_batch: sequences at a time where rows are not packed
    gpus: GPUs of this host that are used; 0: the CPU
    attention: of the engine on GPUs; capped scores are always the engine's own
    """

    engine: Engine
    precision: Precision
    compute_dtype: ComputeDtype
    gradient_checkpointing: Checkpointing
    packing: bool
    pack_length: int
    sequences_per_step: int
    micro_batch: int
    optimizer: Optimizer
    gpus: int
    attention: Attention = "flash2"

    @property
    def fused(self) -> bool:
        """Whether the engine's own kernels run: on GPUs and in bfloat16 only; elsewhere transformers' layers do."""
        return self.engine == "noesis" and self.gpus > 0 and self.compute_dtype == "bfloat16"

    @property
    def offloads(self) -> bool:
        """Whether the layers' inputs and the embedding are in main memory; only the smallest setup does this."""
        return self.fused and self.precision == "nf4" and self.gradient_checkpointing == "full"

    @property
    def logits_bytes(self) -> int:
        """Bytes of 16-bit logits that the engine computes at a time."""
        return SMALL_LOGITS_BYTES if self.gradient_checkpointing == "full" else LOGITS_BYTES

    def to_json(self) -> dict[str, Any]:
        return {
            "engine": self.engine,
            "precision": self.precision,
            "compute_dtype": self.compute_dtype,
            "gradient_checkpointing": self.gradient_checkpointing,
            "compile": False,  # nothing is compiled; the key stays because a plan's JSON is hashed as a whole
            "packing": self.packing,
            "pack_length": self.pack_length,
            "sequences_per_step": self.sequences_per_step,
            "micro_batch": self.micro_batch,
            "optimizer": self.optimizer,
            "cards": self.gpus,
        } | ({} if self.attention == "flash2" else {"attention": self.attention})  # so early plans keep their hash

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> Setup:
        return cls(
            engine=value["engine"],
            precision=value["precision"],
            compute_dtype=value["compute_dtype"],
            gradient_checkpointing=value["gradient_checkpointing"],
            packing=value["packing"],
            pack_length=value["pack_length"],
            sequences_per_step=value["sequences_per_step"],
            micro_batch=value["micro_batch"],
            optimizer=value["optimizer"],
            gpus=value["cards"],
            attention=value.get("attention", "flash2"),
        )
