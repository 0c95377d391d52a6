"""`run_async`: `asyncio.run` whose SIGINT and SIGTERM go through the loop.

A handler that raises inside an event loop surfaces in whichever callback happens to run, and breaks transports and
cancel scopes: "Fatal write error on socket transport", exit code 1 or a hang. Here the first signal cancels the main
task; its clean-up runs, and KeyboardInterrupt or `Terminated` is raised after it. Every event loop of the package is
run by this module. In a notebook's cell, where a loop is running already, it runs in a thread of its own.
"""

from __future__ import annotations

import asyncio
import signal
import threading
from collections.abc import Callable, Coroutine, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from types import FrameType
from typing import Any, TypeVar

from noesis.core.i18n import _
from noesis.core.signals import PATIENCE_S, exit_at_once, raise_for, raise_terminated

T = TypeVar("T")


def run_async(main: Coroutine[Any, Any, T]) -> T:
    """The result of `main`, run in a new event loop (see `AsyncRunner`)."""
    with AsyncRunner() as runner:
        return runner.run(main)


class AsyncRunner:
    """`asyncio.Runner` whose signals cancel the main task; for several coroutines in one loop.

    Between two `run`s signals do what they did before. A second signal ends the process at once. Outside the main
    thread, where no signal arrives, it is a plain `asyncio.Runner`.
    """

    def __init__(self) -> None:
        self._runner = asyncio.Runner()
        self._number: int | None = None  # the first signal since the last `run` began
        self._raised = False
        self._task: asyncio.Task[Any] | None = None

    def __enter__(self) -> AsyncRunner:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the loop: cancel what is left, and shut generators and threads down."""
        with self._signals():
            _outside_a_loop(self._runner.close)

    def run(self, main: Coroutine[Any, Any, T]) -> T:
        """The result of `main`.

        Raises:
            KeyboardInterrupt, Terminated: a signal arrived, whatever `main` made of it.
        """
        self._number, self._raised = None, False
        with self._signals():
            return _outside_a_loop(lambda: self._runner.run(self._supervised(main)))

    async def _supervised(self, main: Coroutine[Any, Any, T]) -> T:
        self._task = asyncio.current_task()
        try:
            if self._number is not None:  # it came before the loop ran
                main.close()
                raise asyncio.CancelledError
            return await main
        finally:
            self._task = None

    @contextmanager
    def _signals(self) -> Iterator[None]:
        """Record a signal while the block runs, and raise it at its end."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
        if hasattr(signal, "SIGALRM") and signal.getsignal(signal.SIGALRM) is raise_terminated:
            before[signal.SIGALRM] = raise_terminated
        ours = {number: old for number, old in before.items() if old is not signal.SIG_IGN}  # as nohup wants it
        try:
            for number in ours:
                signal.signal(number, self._arrived)
            yield
        except BaseException:
            if self._number is None:
                raise
        finally:
            for number, old in ours.items():
                signal.signal(number, old if old is not None else signal.SIG_DFL)
        if self._number is not None and not self._raised:
            self._raised = True
            raise_for(self._number)

    def _arrived(self, number: int, frame: FrameType | None) -> None:
        """The handler; nothing is raised here."""
        if hasattr(signal, "SIGALRM") and number == signal.SIGALRM:  # the echo of an earlier SIGTERM
            self._number = self._number or signal.SIGTERM
        elif self._number is not None:
            exit_at_once(number, _("stopped at once"))
        else:
            self._number = number
        task = self._task
        if task is not None:
            task.get_loop().call_soon_threadsafe(self._cancel, task)  # it wakes the loop, too

    def _cancel(self, task: asyncio.Task[Any]) -> None:
        """Cancel, and once more if the task has swallowed it."""
        if not task.done():
            task.cancel()
            task.get_loop().call_later(PATIENCE_S, self._cancel, task)


def _outside_a_loop(work: Callable[[], T]) -> T:
    """What `work`, which runs an event loop, returns; from another thread if one is running in this one."""
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return work()
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(work).result()
