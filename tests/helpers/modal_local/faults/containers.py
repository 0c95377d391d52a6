"""Bad things that happen to containers, and when."""

from __future__ import annotations

import asyncio
import fnmatch
import re
import signal
from dataclasses import dataclass
from typing import Any

from ..tasks import Task


@dataclass
class Fault:
    """Something bad that happens to a container of `function`, at the first of the given moments.

    Attributes:
        function: its name, or a pattern.
        what: "preempt" (interrupt signal, time to go, the input runs again elsewhere) or "kill" (gone without a word; likewise).
        after_commits: when the function's containers have committed so often, counted over all of them.
        before_commit: as the commit of that number begins: with "kill", nothing of it arrives.
        after_seconds: so long after a container took its input.
        log: when a printed line matches this regular expression.
        file: when a file matching this pattern appears in a volume's copy in the container ("checkpoints/*/adapter_model*"), or in its
            TMPDIR.
        lines: and has so many lines.
        times: how often in all.
    """

    function: str
    what: str = "preempt"
    after_commits: int = 0
    before_commit: int = 0
    after_seconds: float = 0.0
    log: str = ""
    file: str = ""
    lines: int = 0
    times: int = 1
    struck: int = 0

    def applies(self, task: Task) -> bool:
        """Whether it may still happen, and to this container."""
        return (
            self.struck < self.times
            and fnmatch.fnmatch(task.function.name, self.function)
            and not task.preempted
            and task.alive
        )

    def sees(self, task: Task) -> bool:
        """Whether the file is there."""
        if not self.file:
            return False
        found = [
            p
            for folder in (task.folder / "tmp", *(c.folder for c in task.copies.values()))
            for p in folder.glob(self.file)
        ]
        return any(not self.lines or p.read_bytes().count(b"\n") >= self.lines for p in found)


class Faults:
    """The faults of a plane; its methods are called at the moments that faults can name."""

    def __init__(self, plane: Any) -> None:
        self.plane = plane
        self.all: list[Fault] = []

    def printed(self, task: Task, text: str) -> None:
        """The container printed this."""
        for fault in self.all:
            if fault.log and fault.applies(task) and re.search(fault.log, text):
                self.strike(fault, task)

    def passing(self, task: Task, elapsed: float) -> float:
        """A container has worked on its input for `elapsed` seconds.

        Returns:
            seconds until it should be looked at again.
        """
        for fault in self.all:
            timed = fault.after_seconds and elapsed >= fault.after_seconds
            if fault.applies(task) and (timed or fault.sees(task)):
                self.strike(fault, task)
        return 0.005 if any(f.file and f.applies(task) for f in self.all) else 0.05

    async def committing(self, task: Task) -> None:
        """The container begins to commit."""
        number = self._commits(task) + 1
        for fault in self.all:
            if fault.before_commit and number >= fault.before_commit and fault.applies(task):
                self.strike(fault, task)
                if fault.what == "kill":
                    await asyncio.sleep(
                        3600
                    )  # its process is gone and the call with it; nothing of this commit arrives

    def committed(self, task: Task) -> None:
        """The container has committed."""
        task.commits += 1
        for fault in self.all:
            if fault.after_commits and self._commits(task) >= fault.after_commits and fault.applies(task):
                self.strike(fault, task)

    def strike(self, fault: Fault, task: Task) -> None:
        """Let it happen."""
        fault.struck += 1
        task.preempted = True
        if fault.what == "kill":
            task.signal(signal.SIGKILL)
        else:
            if self.plane.overlap:
                undone = list(task.inputs.values())
                task.inputs.clear()  # whatever this container still answers is heard by nobody
                for waiting in undone:
                    self.plane.enqueue(waiting, first=True)
            self.plane.spawn(self.interrupt(task))

    async def interrupt(self, task: Task) -> None:
        """The interrupt signal, and SIGKILL where it did not help in time."""
        task.signal(signal.SIGINT)
        loop = asyncio.get_running_loop()
        deadline = loop.time() + self.plane.real(self.plane.grace)
        while task.alive and loop.time() < deadline:
            await asyncio.sleep(0.02)
        task.signal(signal.SIGKILL)

    def _commits(self, task: Task) -> int:
        return sum(t.commits for t in self.plane.tasks_of(task.function.name))
