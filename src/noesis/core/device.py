"""What this machine is, asked without importing torch: processor, memory, NVIDIA cards if there are any."""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
import time
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import Any, Literal


@dataclass(frozen=True)
class Device:
    """Where a run computes."""

    kind: Literal["cpu", "cuda"]
    name: str
    memory_bytes: int  # free, of each card or of the main memory
    threads: int
    bf16: bool  # bfloat16 arithmetic in hardware
    fp8: bool = False  # 8-bit floating-point matrix products in hardware
    cards: int = 0  # cards of this kind in this machine; 0: a processor

    def as_json(self) -> dict[str, Any]:
        return asdict(self)


def detect() -> Device:
    """The NVIDIA cards if the driver answers, else the processor."""
    return _nvidia() or processor()


def processor() -> Device:
    """This machine without its cards."""
    import psutil

    return Device("cpu", _cpu_name(), int(psutil.virtual_memory().available), usable_threads(), _cpu_has_bf16())


def usable_threads() -> int:
    """Processors that this process may use (a container may give fewer than the machine has)."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@cache
def measure_cpu_flops(seconds: float = 0.06) -> float:
    """Single-precision matrix multiplication rate of this processor, FLOP/s, by a short run of numpy's own; asked once a process.

    It is taken per second of processor time and multiplied by the threads, so that other programs that run for the moment do not count;
    of the single products the fastest tenth's time is taken.
    """
    import numpy as np

    a = np.ones((512, 576), dtype=np.float32)
    b = np.ones((576, 1536), dtype=np.float32)
    _ = a @ b
    took: list[float] = []
    end = time.perf_counter() + seconds
    while time.perf_counter() < end or not took:
        start = time.process_time()
        _ = a @ b
        took.append(max(time.process_time() - start, 1e-5))
    return 2 * 512 * 576 * 1536 / sorted(took)[len(took) // 10] * usable_threads()


def _nvidia() -> Device | None:
    if shutil.which("nvidia-smi") is None or os.environ.get("CUDA_VISIBLE_DEVICES") in ("", "-1"):
        return None
    query = ["nvidia-smi", "--query-gpu=index,uuid,name,memory.free,compute_cap", "--format=csv,noheader,nounits"]
    try:
        answer = subprocess.run(query, capture_output=True, text=True, timeout=10, check=True).stdout
    except (OSError, subprocess.SubprocessError):
        return None  # a driver without a card, or one that does not answer: the processor it is
    return read_cards(answer, os.environ.get("CUDA_VISIBLE_DEVICES"), usable_threads())


def read_cards(answer: str, visible: str | None, threads: int) -> Device | None:
    """The cards that this process may use, from nvidia-smi's lines `index, uuid, name, free MiB, compute capability`.

    Cards of another kind than the first are left out: a step is as fast as its slowest card. Free memory is that of the fullest card.

    Args:
        visible: the value of CUDA_VISIBLE_DEVICES, or None.
    """
    lines = [[part.strip() for part in line.split(",")] for line in answer.splitlines() if line.count(",") == 4]
    if visible is not None:
        wanted = [part.strip() for part in visible.split(",")]
        chosen = [
            next((c for c in lines if c[0] == w or (w.startswith("GPU-") and c[1].startswith(w))), None) for w in wanted
        ]
        lines = [c for c in chosen if c is not None] or lines[
            :1
        ]  # the slice of a card (MIG) is listed under the card's own name
    try:
        same = [(name, int(free), float(capability)) for _, _, name, free, capability in lines if name == lines[0][2]]
    except ValueError:
        return None
    if not same:
        return None
    capability = same[0][2]
    return Device(
        "cuda",
        same[0][0],
        min(free for _, free, _ in same) * 2**20,
        threads,
        capability >= 8.0,
        capability >= 8.9,
        len(same),
    )


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
