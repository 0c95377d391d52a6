"""Training on several machines: the first hands its job to the others, and torchrun's processes meet at its address.

NOESIS_NODES says which of them this machine is, as JSON. The job travels through torch's own TCPStore, so nothing of an
earlier start is mistaken for it, and the others notice when the first is gone. Every machine has the base model at the
same path. Page: https://docs.pytorch.org/docs/stable/elastic/run.html
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

from noesis.core.console import say
from noesis.core.device import Device
from noesis.core.errors import TrainingError, UsageError
from noesis.core.files import write_text
from noesis.core.i18n import _, ngettext
from noesis.core.signals import deferred
from noesis.training.distributed import NODES, Nodes
from noesis.training.job import TrainJob

WAITS_S = 1800.0  # of a machine for the first: its container's start, its planning, its saving at the end
LEAVES_S = 30.0  # of the first for the others
LOOKS_S = 0.2  # between two looks at whether a signal came


class _Jobs:
    """What the first machine hands out, one after the other; "" at the end."""

    store: Any = None
    handed = 0


@contextmanager
def leading(nodes: Nodes) -> Iterator[None]:
    """On the first machine: jobs that are trained in this block are trained on all; at its end the others leave."""
    if nodes.count == 1:
        yield
        return
    from torch.distributed import TCPStore

    nodes.enter()
    _Jobs.store, _Jobs.handed = TCPStore(nodes.address, nodes.ports[1], None, True, wait_for_workers=False), 0
    try:
        yield
    finally:
        hand_over("")
        with suppress(RuntimeError):  # they leave by themselves, too
            _Jobs.store.wait([f"left-{rank}" for rank in range(1, nodes.count)], timedelta(seconds=LEAVES_S))
        _Jobs.store = None
        os.environ.pop(NODES, None)


def hand_over(job: str) -> None:
    """Give a job, as JSON, to the other machines; nothing where there are none.

    It has no budget: that is counted by the clock of the first machine, and where one process stops, all do.
    """
    if _Jobs.store is not None:
        _Jobs.store.set(f"job-{_Jobs.handed}", job)
        _Jobs.handed += 1


def follow(nodes: Nodes, bring: Callable[[TrainJob], None]) -> int:
    """On every other machine: train each job of the first with it, until it hands out no more.

    Args:
        bring: makes the job's folders on this machine: the saved states from which training goes on.

    Returns:
        how many jobs there were.

    Raises:
        TrainingError: the first machine is gone.
    """
    from torch.distributed import TCPStore

    nodes.enter()
    done, waits = 0, timedelta(seconds=WAITS_S)
    try:
        store = TCPStore(nodes.address, nodes.ports[1], None, False, timeout=waits)
        while True:
            store.wait([f"job-{done}"], waits)
            text = store.get(f"job-{done}").decode("utf-8")
            if not text:
                store.set(f"left-{nodes.rank}", "")
                return done
            job = TrainJob.from_json(json.loads(text))
            bring(job)
            with tempfile.TemporaryDirectory() as folder:
                file = Path(folder) / "job.json"
                write_text(file, text)
                say(
                    _(
                        "  machine {rank} of {count}: {gpus} GPUs",
                        rank=nodes.rank + 1,
                        count=nodes.count,
                        gpus=job.plan.setup.gpus // nodes.count,
                    )
                )
                run_processes(nodes.arguments(job.plan.setup.gpus), file, Path(folder) / "outcome.json")
            done += 1
    except RuntimeError as error:  # torch's DistNetworkError and DistStoreError
        why, _ignored, _ignored = str(error).partition("\n")
        raise TrainingError(_("machine 1 of {count} can't be reached: {why}", count=nodes.count, why=why)) from None
    finally:
        os.environ.pop(NODES, None)


def on_all(nodes: Nodes, device: Device) -> Device:
    """The GPUs of all machines, which are alike.

    Raises:
        UsageError: there are several machines, and this one has no GPU.
    """
    if nodes.count > 1 and device.gpus == 0:
        raise UsageError(_("--nnodes {count}: this machine has no GPU that a driver answers for", count=nodes.count))
    return replace(device, gpus=device.gpus * nodes.count)


def follow_here(nodes: Nodes) -> None:
    """`follow` on a machine that sees the first one's folders at the same paths."""

    def require(job: TrainJob) -> None:
        if missing := next((p for p in (job.model_folder, job.checkpoints.parent) if not p.is_dir()), None):
            raise TrainingError(
                _(
                    "{missing} is not on machine {rank} of {count}: all machines must see the project, "
                    "the run and the base model at the same paths",
                    missing=missing,
                    rank=nodes.rank + 1,
                    count=nodes.count,
                )
            )

    say(
        _(
            "  machine {rank} of {count}: waits for {address}",
            rank=nodes.rank + 1,
            count=nodes.count,
            address=nodes.address,
        )
    )
    done = follow(nodes, require)
    say(
        ngettext(
            "  machine {rank} of {machines}: trained {count} job with machine 1",
            "  machine {rank} of {machines}: trained {count} jobs with machine 1",
            done,
            rank=nodes.rank + 1,
            machines=nodes.count,
        )
    )


def run_processes(arguments: list[str], job_file: Path, outcome_file: Path) -> dict[str, Any]:
    """Run torchrun to its end; what the main process wrote, or an error where it wrote nothing.

    Args:
        arguments: torchrun's: where its processes meet, and how many are of this machine.
    """
    command = [sys.executable, "-m", "noesis.training.backends.launcher", str(os.getpid()), *arguments]
    command += ["-m", "noesis.training.worker", str(job_file), str(outcome_file)]
    threads = {"OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", "4")}
    # in a session of its own: a Ctrl-C that reaches it twice would end the processes before they have saved
    process = subprocess.Popen(command, env=os.environ | threads, start_new_session=True)
    with deferred() as interrupt:
        told = False
        while process.poll() is None:
            if interrupt.number is not None and not told:
                told = True
                process.send_signal(signal.SIGINT)  # the processes save their last whole step
            with suppress(subprocess.TimeoutExpired):
                process.wait(LOOKS_S)
    if interrupt.number is not None:
        interrupt.leave()
    if not outcome_file.is_file():
        return {"error": _("see above; the same command continues from the last saved step")}
    return dict(json.loads(outcome_file.read_text(encoding="utf-8")))
