"""Cards and what they cost, from the dated file `gpus.yaml`: what `--gpu NAME` may name, and how fast a card is that is here."""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import yaml

from noesis.core.device import Device, usable_threads
from noesis.core.errors import UsageError

FILE = Path(__file__).with_name("gpus.yaml")
GIB = 2**30
UNKNOWN_HALF, UNKNOWN_GBS = 50e12, 600e9  # a card that the file does not list is taken for a slow one


@dataclass(frozen=True)
class Gpu:
    """One kind of GPU."""

    name: str
    memory_bytes: int
    half: float  # FLOP/s as reached by a large matrix product in 16 bits
    fp8: float  # 0: not in hardware
    bandwidth: float  # bytes/s
    usd_per_s: float | None  # None: not rented out by the file's source
    measured: bool
    bf16: bool = True  # bfloat16 in hardware


@dataclass(frozen=True)
class Prices:
    """What is paid beside the card."""

    date: str
    source: str
    cpu_core_per_s: float  # USD
    memory_gib_per_s: float  # USD
    free_usd_per_month: float  # that the source gives everybody


def gpus() -> dict[str, Gpu]:
    """Every card of the file, by name."""
    return _read()[0]


def prices() -> Prices:
    """The date and source of the prices, and those of processors and memory."""
    return _read()[1]


@cache
def _read() -> tuple[dict[str, Gpu], Prices]:
    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    raw: dict[str, Any] = yaml.load(FILE.read_text(encoding="utf-8"), Loader=loader)  # noqa: S506
    found = {
        name: Gpu(
            name,
            int(c["gib"] * GIB),
            c["half"] * 1e12,
            c["fp8"] * 1e12,
            c["gbs"] * 1e9,
            c["usd_per_s"],
            c["rates"] == "measured",
            c.get("bf16", True),
        )
        for name, c in raw["cards"].items()
    }
    p = raw["prices"]
    return found, Prices(
        str(p["date"]),
        str(p["source"]),
        float(p["cpu_core_per_s"]),
        float(p["memory_gib_per_s"]),
        float(p["free_usd_per_month"]),
    )


def gpu_of(device: Device) -> Gpu:
    """What is known of the card `device`; a slow card of its memory where nothing is.

    The driver's names are longer than ours: `NVIDIA A100-SXM4-80GB`, `NVIDIA H100 80GB HBM3`.
    """
    words = set(re.split(r"[^A-Z0-9]+", device.name.upper()))
    fits = [c for c in gpus().values() if set(c.name.split("-")) <= words or c.name.upper() == device.name.upper()]
    if not fits:
        return Gpu(
            device.name, device.memory_bytes, UNKNOWN_HALF, UNKNOWN_HALF if device.fp8 else 0, UNKNOWN_GBS, None, False
        )
    return max(fits, key=lambda c: len(c.name))


def rented_gpu(name: str, count: int = 1) -> Device:
    """`count` cards of the kind `name`, empty, in a machine that is not here.

    Raises:
        UsageError: no such card in gpus.yaml; the message lists those there are.
    """
    wanted = {"A10G": "A10", "A100": "A100-80GB"}.get(name.upper(), name.upper())
    card = gpus().get(wanted)
    if card is None:
        raise UsageError(f"--gpu {name!r} is not in {FILE.name}; choose from {', '.join(gpus())}")
    return Device("cuda", card.name, card.memory_bytes, usable_threads(), card.bf16, card.fp8 > 0, count)
