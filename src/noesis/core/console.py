"""What commands print: stage headings, plain lines, progress with rate and time left, and commands to type next.

The only place that writes to a terminal. Names of files, answers of models and errors of servers are hostile text, and
a terminal obeys what it is sent, so control characters are made visible in every line (`printable`). A line stays one
line whatever it quotes (`quoted`): a name with a line break in it can't forge a line of ours. What libraries log and
the tracebacks of bugs come through `guard_terminal`.

On a terminal a progress line is redrawn in place; elsewhere (CI, `modal app logs`) it is a plain line now and then.
Everything goes to stderr when the command's result on stdout is meant for a script (`--json`).
"""

from __future__ import annotations

import errno
import json
import logging
import shlex
import shutil
import sys
import threading
import time
import traceback
import unicodedata
import warnings
from collections.abc import Iterable
from pathlib import Path
from typing import Any, TextIO

from noesis.core.errors import NoesisError, UsageError
from noesis.core.i18n import _, in_english, number
from noesis.core.machine.streams import OutputClosed, is_utf8, silence

_quiet_stdout = False


def use_stderr() -> None:
    """Print everything to stderr from now on, so that stdout holds nothing but the result."""
    global _quiet_stdout
    _quiet_stdout = True


def _out() -> TextIO:
    """The stream to print to; looked up each time, since a caller may have replaced sys.stdout."""
    return sys.stderr if _quiet_stdout else sys.stdout


def _print(text: str, stream: TextIO, end: str = "\n") -> None:
    try:
        print(text, end=end, file=stream, flush=True)
    except OSError as error:
        silence(stream)  # what is still in its buffer would be tried again at the end
        if isinstance(error, BrokenPipeError):
            raise OutputClosed from None
        if error.errno != errno.EIO:  # a terminal that went away: the work goes on
            raise


def say(text: str = "") -> None:
    """Print one line and flush it, so that a pipe shows it at once."""
    _print(quoted(text), _out())


def say_text(text: str) -> None:
    """Print a text with the lines that it has: a model's answer, a page of help."""
    _print(printable(text), _out())


def complain(text: str) -> None:
    """Print one line to stderr: why work stopped."""
    _print(quoted(text), sys.stderr)


def complain_traceback(error: BaseException) -> None:
    """Print the traceback of a bug to stderr."""
    _print(_traceback(error), sys.stderr)


def report_error(error: NoesisError) -> None:
    """Print an error to stderr: its message, and its details indented below."""
    message, *details = error.args
    complain(_("error: {message}", message=message))
    for line in details:
        complain(f"  {line}")


def show(piece: str) -> None:
    """Print a piece of a text that arrives bit by bit; the line stays open."""
    _print(printable(piece), _out(), end="")


def say_coloured(text: str) -> None:
    """Print one line with its colours. What it quotes must have been through `printable`: nothing is escaped here."""
    _print(text, _out())


def print_json(value: Any) -> None:
    """Print a command's result to stdout as indented JSON.

    What a terminal would obey is escaped as JSON has it, so that the value that a script reads is unchanged.
    """
    text = json.dumps(in_english(value), ensure_ascii=not is_utf8(sys.stdout), indent=2, default=str)
    _print("".join(c if c == "\n" or c.isprintable() else json.dumps(c)[1:-1] for c in text), sys.stdout)


def require_consent(what: str, remedy: str) -> None:
    """Announce what the user has not asked for, and go on only after a yes on the terminal.

    Args:
        what: will happen; shown before anything does.
        remedy: how to ask for it, or how to do without.

    Raises:
        UsageError: the answer is not yes, or there is no terminal to ask on.
    """
    if not (sys.stdin.isatty() and sys.stderr.isatty()):
        raise UsageError(
            _("{what}; there is no terminal to ask on, so nothing was done: {remedy}", what=what, remedy=remedy)
        )
    _print(quoted(_("{what}. Go on? [y/N] ", what=what)), sys.stderr, end="")
    if sys.stdin.readline().strip().lower() not in ("y", "yes", *_("y yes").split()):
        raise UsageError(_("nothing was done: {remedy}", remedy=remedy))


def relay(lines: Iterable[str]) -> threading.Thread:
    """Complain of each line that another program prints, until it ends; in a thread, which the caller joins."""

    def print_all() -> None:
        for line in lines:
            complain(line.rstrip("\r\n"))

    thread = threading.Thread(target=print_all, daemon=True)
    thread.start()
    return thread


def heading(number: int, total: int, name: str, what: str) -> None:
    """Announce a stage: `[3/7] train — …`."""
    say()
    say(f"[{number}/{total}] {name} — {what}")


def command(*words: str | Path) -> str:
    """A `noesis` command to copy and paste: `command("chat", run.path)` → `noesis chat 'my runs/demo'`.

    Args:
        words: a `Path` is written relative to the working directory; words that need quotes get them.

    Returns:
        the command, starting with the program as it was started: `noesis`, its path where it is not on PATH, or
        `python -m noesis`.
    """
    return f"{_program()} {shell_command(*words)}"


def shell_command(*words: str | Path) -> str:
    """Any command to copy and paste, each word quoted where a shell would take it for something else."""
    return " ".join(_shell_path(word) if isinstance(word, Path) else shell_word(word) for word in words)


def shell_word(word: str) -> str:
    """`word` for a POSIX shell; what a terminal would obey is written as in `$'\\x1b'`, to be shown and pasted."""
    if word.isprintable():
        return shlex.quote(word)
    escaped = (
        c if c.isprintable() and c not in "\\'" else "".join(f"\\x{byte:02x}" for byte in _bytes(c)) for c in word
    )
    return "$'" + "".join(escaped) + "'"


def _bytes(c: str) -> bytes:
    """A character as it stands in a file's name; half a pair of surrogates stands in none."""
    return c.encode("utf-8", "surrogateescape" if "\udc80" <= c <= "\udcff" else "surrogatepass")


def _shell_path(path: Path) -> str:
    shown = path_here(path)
    return shell_word(f"./{shown}" if shown.startswith("-") else shown)


def path_here(path: Path) -> str:
    """`path` as typed from the working directory: relative if it is below, else unchanged."""
    try:
        full, here = path.absolute(), Path.cwd()
    except FileNotFoundError:  # the working directory was removed
        return str(path)
    return str(full.relative_to(here)) if full.is_relative_to(here) else str(path)


def _program() -> str:
    started = Path(sys.argv[0])
    if started.name == "__main__.py" and started.parent.name == "noesis":
        on_path = shutil.which("python")
        same = on_path is not None and Path(on_path) == Path(sys.executable)
        return f"{'python' if same else _shell_path(Path(sys.executable))} -m noesis"
    if started.stem == "noesis" and shutil.which("noesis") is None and started.is_file():
        return _shell_path(started)
    return "noesis"


def duration(seconds: float) -> str:
    """Seconds as a person reads them: `8.4 s`, `3 min 05 s`, `2 h 10 min`."""
    if seconds < 60:
        return _("{seconds:.1f} s", seconds=seconds)
    if seconds < 3600:
        return f"{int(seconds // 60)} min {int(seconds % 60):02d} s"
    return f"{int(seconds // 3600)} h {int(seconds % 3600 // 60):02d} min"


def size(count: float) -> str:
    """Bytes as a person reads them: `512 kB`, `1.4 GB` (powers of ten)."""
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:.0f} {unit}" if unit in ("B", "kB") else _("{size:.1f} {unit}", size=count, unit=unit)
        count /= 1000
    return _("{size:.1f} {unit}", size=count, unit="TB")


class Progress:
    """A counter with rate and time left: `with Progress("train", total=52_000, unit="tok") as p: p.advance(400)`."""

    def __init__(self, what: str, total: int, unit: str, every_s: float = 10.0) -> None:
        self.what, self.total, self.unit = what, total, unit
        self.done = 0
        self.started = self.last_shown = time.monotonic()
        self.shown = self.finished = False
        self.out = _out()
        self.live = self.out.isatty()
        self.every_s = 0.2 if self.live else every_s

    def __enter__(self) -> Progress:
        return self

    def advance(self, count: int, note: str = "") -> None:
        """Count `count` more units and show the line if it is time to; work of under a second shows none."""
        self.done += count
        now = time.monotonic()
        finished = self.done >= self.total
        if not self.finished and (now - self.last_shown >= self.every_s or (finished and now - self.started >= 1.0)):
            self.last_shown, self.shown, self.finished = now, True, finished
            self._show(now, note)

    def _show(self, now: float, note: str) -> None:
        rate = self.done / max(now - self.started, 1e-9)
        left = max(self.total - self.done, 0) / max(rate, 1e-9)
        speed = number(rate, ",.0f" if rate >= 10 else ".2g")
        line = f"  {self.what} {number(self.done, ',')}/{number(self.total, ',')} {self.unit} · {speed} {self.unit}/s"
        line += _(" · {time} left", time=duration(left)) + (f" · {note}" if note else "")
        if self.live:
            _print("\r\x1b[K" + quoted(line), self.out, end="")
        else:
            _print(quoted(line), self.out)

    def __exit__(self, *_: object) -> None:
        if self.live and self.shown:
            _print("", self.out)


def printable(text: str) -> str:
    """`text` with control characters, which a terminal would obey, written as Python does: `\\x1b`, `\\u202e`.

    So is what reorders text, and what hides in it. Newlines and tabs stay as they are, and so does what writing needs:
    spaces of every width, and the joiners of emoji and of Persian and Indic scripts.
    """
    return "".join(c if c.isprintable() or _is_writing(c) else c.encode("unicode_escape").decode() for c in text)


def quoted(text: str) -> str:
    """A line that quotes names or messages of strangers: `printable`, and they can't begin a line."""
    return printable(text).replace("\n", "\\n").replace("\t", "\\t")


def _indented(text: str) -> str:
    """A text of other code, whose lines can't be told from those of what it quotes: no later one begins as ours do."""
    return printable(text.rstrip("\n")).replace("\n", "\n    ")


def _traceback(error: BaseException) -> str:
    return "\n".join(_indented(part) for part in traceback.format_exception(error))


def _is_writing(c: str) -> bool:
    return c in "\n\t\u00ad\u200c\u200d" or unicodedata.category(c) == "Zs"


def guard_terminal() -> None:
    """Make what other code prints in this process printable: tracebacks, warnings, and what libraries log."""
    sys.excepthook = lambda kind, error, trace: complain_traceback(error)
    threading.excepthook = lambda failed: complain_traceback(failed.exc_value or SystemError("a thread ended"))
    warnings.showwarning = _print_warning
    logging.setLogRecordFactory(_PrintableRecord)  # whatever handlers a library has set up, or will


def _print_warning(
    message: Warning | str,
    category: type[Warning],
    filename: str,
    lineno: int,
    file: TextIO | None = None,
    line: str | None = None,
) -> None:
    text = warnings.formatwarning(message, category, filename, lineno, line)
    _print(_indented(text), file or sys.stderr)


class _PrintableRecord(logging.LogRecord):
    """What is logged, with control characters visible in its message, its traceback and its stack."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.name = quoted(self.name)
        if self.exc_info and self.exc_info[1] is not None:
            self.exc_text = _traceback(self.exc_info[1])
        if self.stack_info:
            self.stack_info = _indented(self.stack_info)

    def getMessage(self) -> str:
        return _indented(super().getMessage())
