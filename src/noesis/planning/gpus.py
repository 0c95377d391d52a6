"""GPUs and prices from the dated file `gpus.yaml`: what `--gpu NAME` may name, and how fast this machine's GPU is."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from typing import Any

from noesis.core.device import Device, usable_threads
from noesis.core.errors import UsageError
from noesis.core.i18n import N_, _
from noesis.core.yaml_file import read_yaml

FILE = Path(__file__).with_name("gpus.yaml")
GIB = 2**30
UNKNOWN_FLOPS, UNKNOWN_BANDWIDTH = 50e12, 600e9  # a GPU that the file does not list is taken for a slow one
CURRENT = "NOESIS_PRICES"  # environment variable: prices that go before the file's; also for containers, as JSON
CPU, MEMORY = "cpu_core", "memory_gib"  # in it, beside the names of GPUs
ALIASES = {"A10G": "A10", "A100": "A100-80GB"}


@dataclass(frozen=True)
class Gpu:
    """One model of GPU.

    half: FLOP/s reached by a large 16-bit matrix product
    fp8: the same in 8 bits; 0: not in hardware
    bandwidth: bytes/s
    usd_per_s: None: the file's source does not rent it out
    measured: whether the rates were measured or estimated
    bf16: bfloat16 in hardware
    flash4: FlashAttention 4 has kernels for it
    """

    name: str
    memory_bytes: int
    half: float
    fp8: float
    bandwidth: float
    usd_per_s: float | None
    measured: bool
    bf16: bool = True
    flash4: bool = False


@dataclass(frozen=True)
class Prices:
    """Prices in USD of what is billed in addition to the GPU, with the date and source of all prices."""

    date: str
    source: str
    cpu_core_per_s: float
    memory_gib_per_s: float
    free_usd_per_month: float  # what the provider gives everybody


def gpus() -> dict[str, Gpu]:
    """Every GPU of the file, by name."""
    return _read()[0]


def prices() -> Prices:
    """The prices of CPU cores and memory, with the date and source of all prices."""
    return _read()[1]


def use_prices(usd_per_s: Mapping[str, float] | None) -> None:
    """Let these prices in USD a second, of the provider's own rates, go before the file's; None: the file's alone."""
    os.environ.pop(CURRENT, None)
    if usd_per_s:
        os.environ[CURRENT] = json.dumps(dict(usd_per_s))
    _read.cache_clear()


@cache
def _read() -> tuple[dict[str, Gpu], Prices]:
    raw: dict[str, Any] = read_yaml(FILE)
    current: dict[str, float] = json.loads(os.environ.get(CURRENT, "{}"))
    found = {
        name: Gpu(
            name,
            memory_bytes=int(row["gib"] * GIB),
            half=row["half"] * 1e12,
            fp8=row["fp8"] * 1e12,
            bandwidth=row["gbs"] * 1e9,
            usd_per_s=current.get(name, row["usd_per_s"]),
            measured=row["rates"] == "measured",
            bf16=row.get("bf16", True),
            flash4=row.get("flash4", False),
        )
        for name, row in raw["gpus"].items()
    }
    p = raw["prices"]
    dated = Prices(
        date=str(p["date"]),
        source=str(p["source"]),
        cpu_core_per_s=float(current.get(CPU, p["cpu_core_per_s"])),
        memory_gib_per_s=float(current.get(MEMORY, p["memory_gib_per_s"])),
        free_usd_per_month=float(p["free_usd_per_month"]),
    )
    if current:
        dated = replace(dated, date=f"{datetime.now(UTC):%Y-%m-%d}", source=N_("Modal's own rates"))
    return found, dated


def gpu_of(device: Device) -> Gpu:
    """The file's entry for the GPU `device`; if it has none, a slow GPU with the device's memory.

    Driver names are longer than the file's: `NVIDIA A100-SXM4-80GB`, `NVIDIA H100 80GB HBM3`.
    """
    name = device.name.upper()
    words = set(re.split(r"[^A-Z0-9]+", name))
    matches = [gpu for gpu in gpus().values() if set(gpu.name.split("-")) <= words or gpu.name.upper() == name]
    if matches:
        return max(matches, key=lambda gpu: len(gpu.name))
    return Gpu(
        device.name,
        memory_bytes=device.memory_bytes,
        half=UNKNOWN_FLOPS,
        fp8=UNKNOWN_FLOPS if device.fp8 else 0,
        bandwidth=UNKNOWN_BANDWIDTH,
        usd_per_s=None,
        measured=False,
    )


def rented_gpu(name: str, count: int = 1) -> Device:
    """`count` GPUs called `name`, with all their memory free, in a machine to be rented.

    Raises:
        UsageError: gpus.yaml lists no such GPU; the message names those it lists.
    """
    gpu = gpus().get(ALIASES.get(name.upper(), name.upper()))
    if gpu is None:
        raise UsageError(
            _(
                "--gpu {name!r} is not in {file_name}; choose from {gpus}",
                name=name,
                file_name=FILE.name,
                gpus=", ".join(gpus()),
            )
        )
    return Device("cuda", gpu.name, gpu.memory_bytes, usable_threads(), bf16=gpu.bf16, fp8=gpu.fp8 > 0, gpus=count)
