"""llama.cpp as xllamacpp brings it, loaded so that it works beside other programs: how many threads, and how they wait.

llama.cpp's threads meet at a barrier several hundred times a token. By default those that wait there spin: where one of
them is not scheduled, because a browser or a training has its core, all the others burn theirs meanwhile. So they sleep
(`OMP_WAIT_POLICY`, where llama.cpp was built with OpenMP, as on Linux; `poll` elsewhere), and there are as many of them
as idle cores, half of all cores at least. docs/decisions/0053-threads.md has the figures.
"""

from __future__ import annotations

import os
import time
from functools import cache
from typing import Any

from noesis.core.device import usable_threads
from noesis.core.errors import MissingExtra

WAITING = "OMP_WAIT_POLICY"
THREADS = "OMP_NUM_THREADS"  # obeyed where it is set, as PyTorch does
LOOK_S = 0.2  # how long to look at the machine before a server starts


@cache
def load_llama_cpp() -> Any:
    """The module xllamacpp, whose threads sleep while they wait, unless the user says otherwise in the environment.

    Raises:
        MissingExtra: it is not installed.
    """
    chosen = os.environ.get(WAITING)
    os.environ.setdefault(WAITING, "passive")  # read once, when the library is loaded
    try:
        import xllamacpp
    except ImportError:
        raise MissingExtra("xllamacpp", "gguf") from None
    finally:
        if chosen is None:
            del os.environ[WAITING]  # PyTorch has threads of its own, and reads it too
    return xllamacpp


class IdleCores:
    """How many threads to compute with, by what other programs, other users of llama.cpp among them, leave idle."""

    def __init__(self) -> None:
        import psutil

        self._own = psutil.Process()
        affinity = self._own.cpu_affinity() if hasattr(self._own, "cpu_affinity") else None
        self._cpus = set(affinity or range(os.cpu_count() or 1))
        self.most = min(usable_threads(), psutil.cpu_count(logical=False) or usable_threads())
        if (chosen := os.environ.get(THREADS, "")).isdecimal():
            self.most = max(1, min(self.most, int(chosen)))
        self._before = self._times()

    def threads(self) -> int:
        """Cores that were idle, or worked for this process, since this was last asked; half of all at least."""
        before, self._before = self._before, self._times()
        seconds, free = (now - then for now, then in zip(self._before, before, strict=True))
        idle = round(free / seconds) if seconds > 0 else self.most
        return max((self.most + 1) // 2, min(self.most, idle))

    def _times(self) -> tuple[float, float]:
        """(clock, seconds for which the CPUs were idle or worked for this process)."""
        import psutil

        idle = sum(cpu.idle for i, cpu in enumerate(psutil.cpu_times(percpu=True)) if i in self._cpus)
        own = self._own.cpu_times()
        return time.monotonic(), idle + own.user + own.system


def server_threads() -> int:
    """Threads of a server, which can't change them later, by a look at the machine now."""
    cores = IdleCores()
    time.sleep(LOOK_S)
    return cores.threads()
