"""What SIGINT (Ctrl-C) and SIGTERM do, wherever they arrive.

* In plain code the command line's handlers raise `KeyboardInterrupt` or `Terminated` (exit codes 130 and 143).
* In an event loop (`core/event_loop.py`) they cancel the main task; the exception is raised once its clean-up has run.
* In training, `deferred` records the first signal, so that the loop can stop at a whole step.

A second signal always ends the process at once.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import NoReturn

from noesis.core.i18n import _

PATIENCE_S = 5.0  # seconds after the first signal before work that does not end is abandoned
REPEAT_S = 3.0  # seconds before `raise_terminated` raises once more

_native: list[str] = []  # names of the native calls under way


class Terminated(BaseException):
    """SIGTERM, as KeyboardInterrupt is SIGINT; exit code 143."""


class Overdue(Exception):
    """A micro-batch took too long to end after a signal; nothing depends on it yet, so it is dropped."""


# --- native code


@contextmanager
def native_request(what: str) -> Iterator[None]:
    """Mark a call into native code, which can't be interrupted; `leave_process` does not wait for it."""
    _native.append(what)
    try:
        yield
    finally:
        _native.remove(what)


def leave_process(code: int) -> None:
    """End the process, at once if native calls are under way.

    Python would join their threads, which can take minutes, and llama.cpp's server hangs when it is freed while it
    works.
    """
    if _native:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    sys.exit(code)


# --- plain code


def raise_terminated(number: int, frame: FrameType | None) -> NoReturn:
    """The handler of SIGTERM: raise `Terminated`, and again after 3 s: Python drops what is raised in a `__del__`."""
    if hasattr(signal, "setitimer"):
        signal.signal(signal.SIGALRM, raise_terminated)
        signal.setitimer(signal.ITIMER_REAL, REPEAT_S)
    raise Terminated


def raise_for(number: int) -> NoReturn:
    """Raise what the signal means.

    Raises:
        KeyboardInterrupt: SIGINT.
        Terminated: SIGTERM.
    """
    raise Terminated if number == signal.SIGTERM else KeyboardInterrupt


def exit_at_once(number: int, message: str) -> NoReturn:
    """End the process from inside a handler. It writes to the file descriptor: `print` is not reentrant."""
    os.write(sys.__stderr__.fileno() if sys.__stderr__ else 2, f"\n{message}\n".encode())
    os._exit(128 + number)


# --- training


class Interrupt:
    """The signal that arrived while `deferred` recorded them."""

    silent = False  # in all of a process: it says nothing of a first signal

    def __init__(self) -> None:
        self.number: int | None = None
        self.breakable = False  # whether the work under way may be abandoned at any point

    @contextmanager
    def may_break(self) -> Iterator[None]:
        """Mark work that only accumulates gradients: nothing is lost with it."""
        self.breakable = True
        try:
            yield
        finally:
            self.breakable = False

    def overdue(self, number: int, frame: FrameType | None) -> None:
        """The alarm's handler, called repeatedly until the work ends."""
        if self.breakable:
            self.breakable = False
            raise Overdue

    def arrived(self, number: int, frame: FrameType | None) -> None:
        """The handler of SIGINT and SIGTERM."""
        if self.number is not None:
            exit_at_once(number, _("stopped at once; the last saved step is kept"))
        self.number = number
        if not self.silent:
            told = _("stopping after this micro-batch; a second signal stops at once")
            os.write(sys.__stderr__.fileno() if sys.__stderr__ else 2, f"\n{told}\n".encode())
        if hasattr(signal, "setitimer"):
            signal.setitimer(signal.ITIMER_REAL, PATIENCE_S, 0.5)

    def rest(self) -> None:
        """Cancel the alarm: the work has ended, only saving is left."""
        if hasattr(signal, "setitimer"):
            signal.setitimer(signal.ITIMER_REAL, 0)

    def leave(self) -> NoReturn:
        """Raise what the signal means (see `raise_for`)."""
        raise_for(self.number or signal.SIGINT)


@contextmanager
def deferred() -> Iterator[Interrupt]:
    """Record the first signal in `Interrupt.number` instead of raising it.

    Outside the main thread, where no signal arrives, nothing changes.
    """
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
