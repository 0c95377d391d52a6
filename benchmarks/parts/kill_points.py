"""Points at which a run can be killed, and one attempt at it in a forked process: what faults.py is made of.

A point is the n-th of a kind of system call in a stage (strace kills before it), or of a moment inside a training step.
Where strace is missing, Python's own calls (open, rename, remove, mkdir, rmdir, fsync) take the place of system calls.
"""

from __future__ import annotations

import collections
import contextlib
import os
import random
import re
import select
import shutil
import signal
import subprocess
import sys
import traceback
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from noesis.run.stages import STAGES as ALL_STAGES

CALLS = (
    *("write", "pwrite64", "writev", "copy_file_range", "sendfile", "ftruncate"),
    *("fsync", "fdatasync", "openat", "close"),
    *("rename", "renameat", "renameat2", "unlink", "unlinkat", "rmdir", "mkdir", "mkdirat"),
)
MISSED = 7
SKIPPED = ("judge", "gguf", "report")  # no later stage needs them
STRACE = shutil.which("strace") is not None
PYTHON_CALLS = ("open", "os.rename", "os.remove", "os.mkdir", "os.rmdir")
MOMENTS = ("forward", "backward", "optimizer")
STAGES = tuple(name for name in ALL_STAGES if name != "trial")


@dataclass(frozen=True)
class Point:
    """Where to kill: before the n-th (from 1) call or moment `what` of `stage`."""

    stage: str
    what: str
    n: int


# --- one attempt, in a forked process


def child(
    project: Any, config: Any, path: Path, point: Point | None, gate: int, report: int, only: tuple[str, ...]
) -> None:
    """Run the pipeline up to the last stage of `only`; at the point's stage wait until strace is attached."""
    from noesis.pipeline.registry import REGISTRY, PipelineOptions
    from noesis.pipeline.start_run import from_sources, start_run
    from noesis.run.directory import Run
    from noesis.run.lock import locked

    plain = Run.perform
    current = ""

    def announce(stage: str) -> None:
        nonlocal current
        if point is not None and current == point.stage:
            os._exit(MISSED)  # the moment lay in a part that was done before; the next attempt goes on from here
        current = stage
        os.write(report, f"{stage}\n".encode())
        if point is not None and stage == point.stage:
            os.write(report, b"here\n")
            os.read(gate, 1)

    def perform(run: Any, stage: str, *args: Any, **kwargs: Any) -> Any:
        if stage != "export":
            announce(stage)
        return plain(run, stage, *args, **kwargs)

    Run.perform = perform  # type: ignore[method-assign]
    if point is None or point.what in MOMENTS or not STRACE:
        count_moments(point, report, lambda: current)
    announce("export")
    with locked(path):
        s = start_run(project, config, path, from_sources(project, config))
        for stage in STAGES[1:]:
            if any(STAGES.index(stage) <= STAGES.index(last) for last in only) and (
                stage not in SKIPPED or stage in only
            ):
                REGISTRY[stage].run(s, PipelineOptions())
    if point is not None and current == point.stage:
        os._exit(MISSED)


def count_moments(point: Point | None, report: int, stage: Any) -> None:
    """Kill at the n-th moment of training; without a point, report each."""
    import torch

    seen: collections.Counter[str] = collections.Counter()

    def moment(what: str) -> None:
        if what in MOMENTS and stage() != "train":
            return
        if point is not None and stage() != point.stage:
            return
        seen[what] += 1
        if point is None:
            os.write(report, f"moment {what} {stage()}\n".encode())
        elif point.what == what and seen[what] == point.n:
            os.kill(os.getpid(), signal.SIGKILL)

    if not STRACE:
        fsync = os.fsync
        os.fsync = lambda fd: (moment("fsync"), fsync(fd))[1]
        sys.addaudithook(lambda event, _: moment(event) if event in PYTHON_CALLS else None)
    from noesis.training.state.resumable import Resumable

    check, backward, step = Resumable.stop_if_asked, torch.Tensor.backward, torch.optim.AdamW.step

    def on_check(self: Any, **kwargs: Any) -> None:
        moment("forward")
        check(self, **kwargs)

    def on_backward(self: Any, *args: Any, **kwargs: Any) -> None:
        self.register_hook(lambda gradient: moment("backward"))
        backward(self, *args, **kwargs)

    def on_step(self: Any, *args: Any, **kwargs: Any) -> Any:
        parameters = [p for group in self.param_groups for p in group["params"] if p.grad is not None]
        for parameter in parameters[: len(parameters) // 2]:  # half of the update is in memory when the process dies
            parameter.data.add_(parameter.grad, alpha=0.0)
        moment("optimizer")
        return step(self, *args, **kwargs)

    Resumable.stop_if_asked, torch.Tensor.backward, torch.optim.AdamW.step = on_check, on_backward, on_step  # type: ignore[method-assign]


def attempt(
    project: Any, config: Any, path: Path, point: Point | None, only: tuple[str, ...], log: Path | None = None
) -> tuple[int, list[str]]:
    """Run until it ends or is killed; its exit code (negative: the signal), and the lines that it reported."""
    gate_r, gate_w = os.pipe()
    report_r, report_w = os.pipe()
    sys.stdout.flush()
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            os.close(gate_w), os.close(report_r)
            output = os.open(path.parent / f"{path.name}.log", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
            os.dup2(output, 1), os.dup2(output, 2)
            sys.stdout = sys.stderr = open(output, "w", encoding="utf-8", closefd=False)  # noqa: SIM115
            repair_torch_threads()
            if point is None:
                os.read(gate_r, 1)
            child(project, config, path, point, gate_r, report_w, only)
            code = 0
        except BaseException:
            traceback.print_exc()
        finally:
            with contextlib.suppress(Exception):
                sys.stdout.flush()
            os._exit(code)
    os.close(gate_r), os.close(report_w)
    tracer = None
    lines: list[str] = []
    if point is None:
        if log is not None and STRACE:
            tracer = trace(pid, ["-e", "trace=" + known_calls(), "-o", str(log)])
        os.write(gate_w, b"x")
    for line in reading(report_r):
        lines.append(line)
        if line == "here" and point is not None:
            if STRACE and point.what not in MOMENTS:
                tracer = trace(
                    pid,
                    [
                        "-e",
                        f"trace={point.what}",
                        "-e",
                        f"inject={point.what}:signal=KILL:when={point.n}",
                        "-o",
                        "/dev/null",
                    ],
                )
            os.write(gate_w, b"x")
    _, status = os.waitpid(pid, 0)
    if tracer is not None:
        tracer.wait()
    os.close(gate_w), os.close(report_r)
    return os.waitstatus_to_exitcode(status), lines


def reading(fd: int) -> Iterator[str]:
    """Lines from a pipe until its other end is closed."""
    rest = b""
    while True:
        select.select([fd], [], [])
        chunk = os.read(fd, 65536)
        if not chunk:
            return
        *whole, rest = (rest + chunk).split(b"\n")
        yield from (line.decode() for line in whole)


def trace(pid: int, options: list[str]) -> subprocess.Popen[bytes]:
    """strace on the main thread of `pid`; returns once it is attached."""
    process = subprocess.Popen(["strace", "-p", str(pid), *options], stderr=subprocess.PIPE)
    assert process.stderr is not None
    if b"attached" not in process.stderr.readline():
        raise SystemExit(
            "error: strace could not attach: run as the same user, with ptrace allowed "
            "(kernel.yama.ptrace_scope 0 or 1)"
        )
    return process


def known_calls() -> str:
    return ",".join(f"?{name}" for name in CALLS)


# --- points and results


def counts(log: Path, events: list[str]) -> dict[str, collections.Counter[str]]:
    """Of each stage, how many calls and moments there are in a run that nothing happens to."""
    found: dict[str, collections.Counter[str]] = {stage: collections.Counter() for stage in STAGES}
    stage = "export"
    for line in log.read_text(encoding="utf-8", errors="replace").splitlines() if log.is_file() else ():
        if marker := re.match(r'write\(\d+, "(\w+)\\n", ', line):
            stage = marker[1] if marker[1] in STAGES else stage
        elif (call := re.match(r"(\w+)\(", line)) and not line.startswith("write(") | ("moment" in line):
            found[stage][call[1]] += 1
        elif call and "moment" not in line:
            found[stage]["write"] += 1
    for line in events:
        if line.startswith("moment "):
            found[line.split()[2]][line.split()[1]] += 1
    return found


def choose_point(rng: random.Random, seen: dict[str, collections.Counter[str]], stage: str) -> Point:
    """A kind of moment of the stage, rare kinds as often as frequent ones, then which of them."""
    kinds = sorted(kind for kind, count in seen[stage].items() if count)
    weights = [
        3 if kind in ("fsync", "rename", *MOMENTS) else 2 if kind in ("write", "pwrite64") else 1 for kind in kinds
    ]
    kind = rng.choices(kinds, weights)[0]
    among = seen[stage][kind]
    if stage == "train" and rng.random() < 0.7:  # killed several times a run: mostly by steps of a third of it
        among = -(-among // 3)
    return Point(stage, kind, rng.randint(1, among))


def repair_torch_threads() -> None:
    """To be called first in a forked process, in its only thread.

    A fork leaves torch's thread pool to be made again, by the first use of it. If two threads use it first at the same
    time (the engine's readers of weights), one of them finds none and raises "Invalid thread pool!", which is a fault
    of the fork and not of the run.
    """
    import torch

    torch.set_num_threads(1)
