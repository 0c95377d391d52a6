"""Which precisions settings and device allow."""

from __future__ import annotations

from importlib.util import find_spec

from noesis.core.config import Config
from noesis.core.device import Device
from noesis.planning.setup import Precision


def precisions(config: Config, device: Device, *, here: bool = True) -> tuple[tuple[Precision, ...], str]:
    """The precisions that settings and device allow, and a sentence where a wish can't be met ('' otherwise).

    Args:
        here: plan with the packages of this environment; a rented machine's has all of them.
    """
    wanted, quantization = config.training.precision, config.lora.quantization
    four_bits = quantization.load_in_4bit and (not here or find_spec("bitsandbytes") is not None)
    wide: Precision = "bf16" if device.bf16 and quantization.bnb_4bit_compute_dtype != "float32" else "fp32"
    able: list[Precision] = ["fp32"]
    if device.bf16:
        able.insert(0, "bf16")
    if device.kind == "cuda" and device.fp8:
        able.insert(0, "fp8")
    if quantization.load_in_4bit and not four_bits:
        return (wide,), f"4 bits need the package bitsandbytes, which is not installed (make setup): {wide}"
    if wanted in able or (wanted == "nf4" and four_bits):
        return (wanted,), ""  # type: ignore[return-value]
    if wanted != "auto":
        return (wide,), f"{wanted} was asked for, which {device.name} can't compute in: {wide}"
    if device.kind == "cpu":
        return ("nf4" if four_bits else wide,), ""
    # not fp8: its gradients are too far from float32's (docs/decisions/0013)
    automatic = (
        tuple(p for p in able if p != "fp8" and (p != "fp32" or wide == "fp32"))
        if quantization.bnb_4bit_compute_dtype != "float32"
        else ("fp32",)
    )
    return (*automatic, *(("nf4",) if four_bits else ())), ""  # type: ignore[return-value]


def compute_dtype(config: Config, device: Device, precision: str | None = None) -> str:
    """The arithmetic's type: as configured, but nothing that the device would only emulate."""
    wanted = config.lora.quantization.bnb_4bit_compute_dtype
    if (precision or config.training.precision) == "fp32":
        return "float32"
    if device.kind == "cpu":
        return "float32" if wanted == "float16" or not device.bf16 else wanted
    return "float16" if wanted == "bfloat16" and not device.bf16 else wanted
