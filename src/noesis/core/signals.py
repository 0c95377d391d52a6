"""SIGTERM and SIGINT (Ctrl-C) while work goes on that wants to end at a whole step: the first is kept until asked for, a second ends at once."""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

_native: list[str] = []  # requests that llama.cpp is working on


@contextmanager
def native_request(what: str) -> Iterator[None]:
    """A call into llama.cpp that can't be broken off; `leave_process` does not wait for it."""
    _native.append(what)
    try:
        yield
    finally:
        _native.remove(what)


def leave_process(code: int) -> None:
    """End the process. Python would wait for threads in llama.cpp, minutes long, and its server hangs when it is deleted at work."""
    if _native:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    sys.exit(code)


class Terminated(BaseException):
    """SIGTERM, where Ctrl-C would be KeyboardInterrupt; exit code 143."""


PATIENCE_S = 5.0  # after the first signal, before a micro-batch that does not end is given up


class Overdue(Exception):
    """A micro-batch took too long to end after a signal; it changes nothing, so it is dropped."""


class Interrupt:
    """What was asked for so far."""

    def __init__(self) -> None:
        self.number: int | None = None
        self.breakable = False  # what is computed now may be given up at any point

    @contextmanager
    def may_break(self) -> Iterator[None]:
        """What is computed inside only adds up gradients: nothing is lost with it."""
        self.breakable = True
        try:
            yield
        finally:
            self.breakable = False

    def overdue(self, number: int, frame: FrameType | None) -> None:
        """The alarm's handler, called again and again until the work ends."""
        if self.breakable:
            self.breakable = False
            raise Overdue

    def arrived(self, number: int, frame: FrameType | None) -> None:
        """The handler. It writes by file descriptor: a print that was under way must not be entered again."""
        if self.number is not None:
            os.write(
                sys.__stderr__.fileno() if sys.__stderr__ else 2, b"\nstopped at once; the last saved step is kept\n"
            )
            os._exit(128 + number)
        self.number = number
        os.write(
            sys.__stderr__.fileno() if sys.__stderr__ else 2,
            b"\nstopping after this micro-batch; once more to stop at once\n",
        )
        if hasattr(signal, "setitimer"):
            signal.setitimer(signal.ITIMER_REAL, PATIENCE_S, 0.5)

    def rest(self) -> None:
        """No more alarms: the work has ended, what is left is to save."""
        if hasattr(signal, "setitimer"):
            signal.setitimer(signal.ITIMER_REAL, 0)

    def leave(self) -> None:
        """Raise what the signal means.

        Raises:
            KeyboardInterrupt: SIGINT.
            Terminated: SIGTERM.
        """
        raise Terminated if self.number == signal.SIGTERM else KeyboardInterrupt


@contextmanager
def deferred() -> Iterator[Interrupt]:
    """Keep the first signal in `Interrupt.number` instead of raising it. Outside the main thread, where none arrives, nothing changes."""
    interrupt = Interrupt()
    if threading.current_thread() is not threading.main_thread():
        yield interrupt
        return
    before = {number: signal.signal(number, interrupt.arrived) for number in (signal.SIGINT, signal.SIGTERM)}
    if hasattr(signal, "setitimer"):
        before[signal.SIGALRM] = signal.signal(signal.SIGALRM, interrupt.overdue)
    try:
        yield interrupt
    finally:
        interrupt.rest()
        for number, handler in before.items():
            signal.signal(number, handler if handler is not None else signal.SIG_DFL)
