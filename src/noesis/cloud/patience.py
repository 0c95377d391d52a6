"""Faults of Modal's control plane that pass by themselves: waited out with growing pauses, said once, up to a limit.

The SDK tries most calls four times within a second; a restart of the service takes longer. Silence counts as a fault
too: a call that does not come back is given up when the patience ends.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Any, TypeVar

import grpclib.exceptions
import modal

from noesis.cloud.volume.writer import OpenFilesError
from noesis.core.console import duration, say
from noesis.core.errors import RunError
from noesis.core.i18n import _

PATIENCE_S = 180.0
WAITS_S = 900.0  # where a person waits
BUILDS_S = 1800.0  # longest silence while images are built
ASK_S = 50.0  # one question for a result
OPEN_FILES_S = 10.0  # until a file of the volume that is open here is closed
OPEN_FILES = "there are open files"  # so the service begins its refusal
FIRST_PAUSE_S, LONGEST_PAUSE_S = 1.0, 20.0

T = TypeVar("T")


class SilenceError(TimeoutError):
    """A call did not come back."""


class VolumeBusyError(Exception):
    """The service refused a commit or reload for what others do at the same moment."""


PASSING: tuple[type[Exception], ...] = (
    modal.exception.ConnectionError,
    modal.exception.ServiceError,
    modal.exception.InternalError,
    modal.exception.ResourceExhaustedError,  # too many calls at once
    grpclib.exceptions.StreamTerminatedError,
    ConnectionError,
    TimeoutError,
    VolumeBusyError,
)


def result_of(call: str, seconds: float) -> Any:
    """What the Modal call returned; None if it has not ended within these seconds."""
    try:
        return modal.FunctionCall.from_id(call).get(timeout=seconds)
    except TimeoutError:
        return None


def cancel_call(call: str) -> None:
    """Stop the Modal call, and its container with it.

    Raises:
        RunError: Modal can't be reached.
    """
    patiently(_("cancel a call"), lambda: modal.FunctionCall.from_id(call).cancel(terminate_containers=True))


def follow(start: Callable[[], str]) -> Any:
    """Start a call and wait for what it returns, through the network's bad moments.

    Raises:
        RunError: Modal can't be reached.
    """
    call = patiently(_("start the run"), start)
    while (found := patiently("tell how the run goes on", lambda: result_of(call, ASK_S), patience_s=WAITS_S)) is None:
        pass
    return found


def commit_volume(volume: modal.Volume) -> None:
    """Show others what was written here, patiently.

    Raises:
        RunError: Modal can't be reached.
    """

    def commit() -> None:
        try:
            volume.commit()
        except RuntimeError as error:
            if OPEN_FILES not in str(error):  # a commit ends with a reload; what was written is committed by then
                raise _unless_gone(error) from None

    patiently(_("write to the volume"), commit)


def reload_volume(volume: modal.Volume) -> None:
    """Show here what others committed, patiently.

    Raises:
        OpenFilesError: a file of the volume stays open here.
        RunError: Modal can't be reached.
    """
    began = time.monotonic()

    def reload() -> None:
        try:
            volume.reload()
        except RuntimeError as error:
            if OPEN_FILES in str(error) and time.monotonic() - began > OPEN_FILES_S:
                raise OpenFilesError(_("the volume could not be read: {error}", error=error)) from None
            raise _unless_gone(error) from None

    patiently(_("read the volume"), reload)


def _unless_gone(error: RuntimeError) -> Exception:
    """Modal's NotFoundError and ConflictError come as a RuntimeError: the first lasts, the second passes."""
    return RunError(str(error)) if "not found" in str(error).lower() else VolumeBusyError(str(error))


def patiently(
    what: str,
    action: Callable[[], T],
    *,
    patience_s: float = PATIENCE_S,
    works_s: float | None = None,
    clock: Callable[[], float] = time.monotonic,
    sleep: Callable[[float], None] = time.sleep,
) -> T:
    """The value of `action()`, tried again while what goes wrong may pass.

    Args:
        what: what it does, for messages: "read the volume".
        patience_s: until what goes wrong must have passed.
        works_s: how long one try may work, where that takes time; the patience then begins with the first fault.

    Raises:
        RunError: it did not pass in time.
        Exception: what `action` raised, where that is no passing fault.
    """
    began, pause, said = clock(), FIRST_PAUSE_S, False
    faulty = None if works_s else began
    while True:
        try:
            return _within(works_s or patience_s - (clock() - began), action)
        except Exception as error:
            if not isinstance(error, PASSING):
                raise
            reason = " ".join(f"{type(error).__name__}: {error}".split())[:200]
            silent = works_s is not None and isinstance(error, SilenceError)
        faulty = clock() if faulty is None else faulty
        left = patience_s - (clock() - faulty)
        if left <= pause or silent:
            waited = duration((works_s if silent else None) or patience_s)
            raise RunError(
                _(
                    "Modal could not {what} for {waited} ({reason}). What was finished is kept, and the "
                    "same command continues when Modal answers again: see https://status.modal.com",
                    what=what,
                    waited=waited,
                    reason=reason,
                )
            )
        if not said:
            say(
                _(
                    "  Modal could not {what} ({reason}): trying again for up to {left}",
                    what=what,
                    reason=reason,
                    left=duration(left),
                )
            )
            said = True
        sleep(pause)
        pause = min(2 * pause, LONGEST_PAUSE_S)


def _within(seconds: float, action: Callable[[], T]) -> T:
    """The value of `action()`; TimeoutError where it does not come back in time."""
    values: list[T] = []
    errors: list[BaseException] = []

    def work() -> None:
        try:
            values.append(action())
        except BaseException as error:
            errors.append(error)

    thread = threading.Thread(target=work, name="modal-call", daemon=True)
    thread.start()
    thread.join(max(seconds, 0.1))
    if errors:
        raise errors[0]
    if thread.is_alive() or not values:
        raise SilenceError(_("no answer"))
    return values[0]
