"""What this machine is, asked without importing torch: processor, memory, NVIDIA card if there is one."""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal


@dataclass(frozen=True)
class Device:
    """Where a run computes."""

    kind: Literal["cpu", "cuda"]
    name: str
    memory_bytes: int  # of the card, or free main memory
    threads: int
    bf16: bool  # bfloat16 arithmetic in hardware

    def as_json(self) -> dict[str, Any]:
        return asdict(self)


def detect() -> Device:
    """The first NVIDIA card if the driver answers, else the processor."""
    card = _nvidia()
    if card is not None:
        return card
    import psutil

    return Device("cpu", _cpu_name(), int(psutil.virtual_memory().available), usable_threads(), _cpu_has_bf16())


def usable_threads() -> int:
    """Processors that this process may use (a container may give fewer than the machine has)."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def measure_cpu_flops(seconds: float = 0.15) -> float:
    """Single-precision matrix multiplication rate of this processor, FLOP/s, by a short run of numpy's own."""
    import numpy as np

    a = np.ones((512, 576), dtype=np.float32)
    b = np.ones((576, 1536), dtype=np.float32)
    _ = a @ b
    best, end = 0.0, time.perf_counter() + seconds
    while time.perf_counter() < end:
        start = time.perf_counter()
        _ = a @ b
        best = max(best, 2 * 512 * 576 * 1536 / (time.perf_counter() - start))
    return best


def _nvidia() -> Device | None:
    if shutil.which("nvidia-smi") is None or os.environ.get("CUDA_VISIBLE_DEVICES") in ("", "-1"):
        return None
    query = ["nvidia-smi", "--query-gpu=name,memory.free,compute_cap", "--format=csv,noheader,nounits"]
    try:
        answer = subprocess.run(query, capture_output=True, text=True, timeout=10, check=True).stdout
        name, free_mib, capability = (part.strip() for part in answer.splitlines()[0].split(","))
        return Device("cuda", name, int(free_mib) * 2**20, usable_threads(), float(capability) >= 8.0)
    except (OSError, subprocess.SubprocessError, ValueError, IndexError):
        return None  # a driver without a card, or one that does not answer: the processor it is


def _cpu_name() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.is_file():
        for line in cpuinfo.read_text(encoding="utf-8", errors="replace").splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()


def _cpu_has_bf16() -> bool:
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.is_file():
        flags = cpuinfo.read_text(encoding="utf-8", errors="replace").split()
        return bool({"avx512_bf16", "amx_bf16", "bf16"} & set(flags))
    return platform.machine() == "arm64"  # Apple silicon; M1 emulates it, slowly but correctly
