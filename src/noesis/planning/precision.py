"""Which precisions of the frozen base the settings and the device allow, and which type the arithmetic has."""

from __future__ import annotations

from dataclasses import dataclass
from importlib.util import find_spec

from noesis.core.config import Config
from noesis.core.device import Device
from noesis.core.i18n import N_
from noesis.planning.setup import ComputeDtype, Precision


@dataclass(frozen=True)
class AllowedPrecisions:
    """The precisions to choose from; `problem` says why a configured one is not among them ('' if none is missing)."""

    names: tuple[Precision, ...]
    problem: str = ""


def allowed_precisions(config: Config, device: Device, *, here: bool = True) -> AllowedPrecisions:
    """The precisions that settings and device allow.

    Args:
        here: look for the packages of this environment; a rented machine has all of them.
    """
    configured, quantization = config.training.precision, config.lora.quantization
    float32_only = quantization.bnb_4bit_compute_dtype == "float32"
    wide: Precision = "bf16" if device.bf16 and not float32_only else "fp32"
    if quantization.load_in_4bit and here and find_spec("bitsandbytes") is None:
        problem = N_(
            "4 bits need the package bitsandbytes, which is not installed (make setup); using {wide}", wide=wide
        )
        return AllowedPrecisions((wide,), problem)
    if configured != "auto":
        supported = {
            "fp32": True,
            "bf16": device.bf16,
            "fp8": device.kind == "cuda" and device.fp8,
            "nf4": quantization.load_in_4bit,
        }
        if supported[configured]:
            return AllowedPrecisions((configured,))
        problem = N_(
            "{configured} is configured, but {name} can't compute in it; using {wide}",
            configured=configured,
            name=device.name,
            wide=wide,
        )
        return AllowedPrecisions((wide,), problem)
    four_bits: tuple[Precision, ...] = ("nf4",) if quantization.load_in_4bit else ()
    if device.kind == "cpu":
        return AllowedPrecisions(four_bits or (wide,))
    # never fp8: its gradients are too far from float32's (docs/decisions/0013)
    return AllowedPrecisions((wide, *four_bits))


def compute_dtype(config: Config, device: Device, precision: Precision | None = None) -> ComputeDtype:
    """The type of the arithmetic: as configured, unless the device would only emulate it.

    Args:
        precision: of the base; None: as configured.
    """
    configured = config.lora.quantization.bnb_4bit_compute_dtype
    if (precision or config.training.precision) == "fp32":
        return "float32"
    if device.kind == "cpu":
        return "float32" if configured == "float16" or not device.bf16 else configured
    return "float16" if configured == "bfloat16" and not device.bf16 else configured
