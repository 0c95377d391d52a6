"""The three standard streams as they come: closed, without a reader, or in an encoding that lacks our signs."""

from __future__ import annotations

import codecs
import contextlib
import io
import os
import select
import sys
from typing import TextIO

NO_READER = 141  # exit code, as of a program that SIGPIPE ends
_SIGNS = str.maketrans(
    {"→": "->", "—": "-", "–": "-", "−": "-", "…": "...", "·": "*", "×": "x", "≥": ">=", "≤": "<=", "±": "+-", "ē": "e"}
)


class OutputClosed(BaseException):
    """Whoever read what we print has gone (`noesis … | head`); no Exception, so that nothing takes it for its own."""


def settle_streams() -> None:
    """Make printing possible whatever the streams are; before any file is opened.

    A closed descriptor becomes the null device; the next file to be opened would get its number, and what is printed.
    What an encoding can't express is spelled: `->` for `→`, `\\u4e2d` for a letter. Children of ours do the same.
    """
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        try:
            os.fstat(number)
        except OSError:
            os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, "w" if number else "r", encoding="utf-8"))  # noqa: SIM115
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="noesis.spell")
    if not is_utf8(sys.stdout):
        os.environ["PYTHONIOENCODING"] = f"{sys.stdout.encoding}:backslashreplace"


def is_utf8(stream: TextIO) -> bool:
    """Whether a stream can carry any text."""
    return (stream.encoding or "utf-8").lower().replace("-", "").replace("_", "") in ("utf8", "utf8sig")


def silence(stream: TextIO) -> None:
    """Let what is written to `stream` from now on, and what its buffer holds, go nowhere."""
    with contextlib.suppress(OSError, ValueError):
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, stream.fileno())
        os.close(null)


def has_no_reader(stream: TextIO) -> bool:
    """Whether a stream is a pipe that nobody reads any more."""
    try:
        poll = select.poll()
        poll.register(stream.fileno(), select.POLLOUT)
        return any(event & select.POLLERR for _, event in poll.poll(0))
    except (OSError, ValueError, AttributeError):  # no file, or a system without poll
        return False


def _spell(error: UnicodeError) -> tuple[str, int]:
    if not isinstance(error, UnicodeEncodeError):
        raise error
    piece = error.object[error.start : error.end].translate(_SIGNS)
    return piece.encode("ascii", "backslashreplace").decode("ascii"), error.end


codecs.register_error("noesis.spell", _spell)
