"""The machine a run computes on: CPU, memory and NVIDIA GPUs, detected without importing torch."""

from __future__ import annotations

import math
import os
import platform
import shutil
import subprocess
import time
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Literal

# The product that measure_cpu_flops times: a batch of SmolLM2's activations by one of its feed-forward matrices.
_ROWS, _INPUTS, _OUTPUTS = 512, 576, 1536


@dataclass(frozen=True)
class Device:
    """Where a run computes."""

    kind: Literal["cpu", "cuda"]
    name: str
    memory_bytes: int  # free memory of each GPU, or of the machine
    threads: int
    bf16: bool  # bfloat16 arithmetic in hardware
    fp8: bool = False  # 8-bit floating-point matrix products in hardware
    gpus: int = 0  # GPUs of this kind in the machine; 0: a CPU

    def to_json(self) -> dict[str, Any]:
        return {
            "kind": self.kind,
            "name": self.name,
            "memory_bytes": self.memory_bytes,
            "threads": self.threads,
            "bf16": self.bf16,
            "fp8": self.fp8,
            "cards": self.gpus,
        }

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> Device:
        return cls(
            kind=value["kind"],
            name=value["name"],
            memory_bytes=value["memory_bytes"],
            threads=value["threads"],
            bf16=value["bf16"],
            fp8=value["fp8"],
            gpus=value["cards"],
        )


def detect() -> Device:
    """The NVIDIA GPUs if the driver answers, else the CPU."""
    return _nvidia_gpus() or cpu_device()


def cpu_device() -> Device:
    """This machine without its GPUs."""
    import psutil

    return Device("cpu", _cpu_name(), int(psutil.virtual_memory().available), usable_threads(), _cpu_has_bf16())


def usable_threads() -> int:
    """Threads that a model computes with: one a usable CPU, or fewer where OMP_NUM_THREADS says so, as for torch.

    Threads of llama.cpp wait for each other in a loop: with more of them than free CPUs a small model takes far longer.
    """
    wanted = os.environ.get("OMP_NUM_THREADS", "").partition(",")[0]
    return min(usable_cpus(), max(int(wanted), 1)) if wanted.isdecimal() else usable_cpus()


def usable_cpus() -> int:
    """CPUs that this process may use; a container may give fewer than the machine has, or a share of their time."""
    there = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, int(min(there, _cpu_quota(Path("/sys/fs/cgroup")))))


def _cpu_quota(groups: Path) -> float:
    """CPUs' worth of time that this container gets (cgroup 2, else 1); infinite where nothing limits it.

    https://docs.kernel.org/admin-guide/cgroup-v2.html#cpu-interface-files
    """
    for names in (("cpu.max",), ("cpu/cpu.cfs_quota_us", "cpu/cpu.cfs_period_us")):
        try:
            quota, period = " ".join((groups / name).read_text(encoding="ascii") for name in names).split()
            return float(quota) / float(period) if quota not in ("max", "-1") else math.inf
        except (OSError, ValueError, ZeroDivisionError):
            continue  # no such file: another version, the root group, or another system
    return math.inf


@cache
def measure_cpu_flops(seconds: float = 0.06) -> float:
    """Single-precision matrix product rate of this CPU in FLOP/s, timed with numpy once per process.

    The rate is per second of CPU time, times the threads, so that other busy programs do not distort it. It is taken
    from the fastest tenth of the products.
    """
    import numpy as np

    a = np.ones((_ROWS, _INPUTS), dtype=np.float32)
    b = np.ones((_INPUTS, _OUTPUTS), dtype=np.float32)
    _ = a @ b  # warm-up
    times: list[float] = []
    end = time.perf_counter() + seconds
    while time.perf_counter() < end or not times:
        start = time.process_time()
        _ = a @ b
        times.append(max(time.process_time() - start, 1e-5))
    return 2 * _ROWS * _INPUTS * _OUTPUTS / sorted(times)[len(times) // 10] * usable_threads()


def _nvidia_gpus() -> Device | None:
    if shutil.which("nvidia-smi") is None or os.environ.get("CUDA_VISIBLE_DEVICES") in ("", "-1"):
        return None
    query = ["nvidia-smi", "--query-gpu=index,uuid,name,memory.free,compute_cap", "--format=csv,noheader,nounits"]
    try:
        output = subprocess.run(
            query, capture_output=True, encoding="utf-8", errors="replace", timeout=10, check=True
        ).stdout
    except (OSError, subprocess.SubprocessError):
        return None  # a driver without a GPU, or one that does not answer: use the CPU
    return parse_nvidia_smi(output, os.environ.get("CUDA_VISIBLE_DEVICES"), usable_threads())


def parse_nvidia_smi(output: str, visible: str | None, threads: int) -> Device | None:
    """The GPUs that this process may use, from nvidia-smi's lines `index, uuid, name, free MiB, compute capability`.

    GPUs of a different model from the first are left out, since a step takes as long as its slowest GPU. The free
    memory is that of the fullest GPU.

    Args:
        visible: the value of CUDA_VISIBLE_DEVICES, or None.
    """
    lines = [[part.strip() for part in line.split(",")] for line in output.splitlines() if line.count(",") == 4]
    if visible is not None:
        named = [_find_gpu(lines, part.strip()) for part in visible.split(",")]
        # a slice of a GPU (MIG) is listed under the name of the whole one
        lines = [line for line in named if line is not None] or lines[:1]
    try:
        same = [(name, int(free), float(capability)) for _, _, name, free, capability in lines if name == lines[0][2]]
    except ValueError:
        return None
    if not same:
        return None
    name, _, capability = same[0]
    return Device(
        "cuda",
        name,
        memory_bytes=min(free for _, free, _ in same) * 2**20,
        threads=threads,
        bf16=capability >= 8.0,
        fp8=capability >= 8.9,
        gpus=len(same),
    )


def _find_gpu(lines: list[list[str]], wanted: str) -> list[str] | None:
    """The line of the GPU with this index, or whose UUID starts like this."""
    return next(
        (line for line in lines if line[0] == wanted or (wanted.startswith("GPU-") and line[1].startswith(wanted))),
        None,
    )


def _cpu_name() -> str:
    for line in (_cpuinfo() or "").splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def _cpu_has_bf16() -> bool:
    if (text := _cpuinfo()) is not None:
        return bool({"avx512_bf16", "amx_bf16", "bf16"} & set(text.split()))
    return platform.machine() == "arm64"  # Apple silicon; M1 emulates it, slowly but correctly


def _cpuinfo() -> str | None:
    """What Linux says of its CPUs; None elsewhere, and in a container that hides it."""
    try:
        return Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return None
