"""A child process for what a stranger's file may do to its reader: loop for ever, take all memory, or crash it.

Chat templates, tokenizers and GGUF files are programs for jinja2, tokenizers and llama.cpp. Where they are not our own,
they run in a child that can be ended: it has a limit of memory and a time for each question, writes no files, and gets
no keys. Questions and answers are lines of JSON, so that nothing from it is ever executed here.

This module is both ends: `Child` here, `main` in the child, which calls `handle(**question)` of the worker's module.
"""

from __future__ import annotations

import importlib
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import threading
import weakref
from contextlib import suppress
from pathlib import Path
from typing import IO, Any, NoReturn

from noesis.core.errors import ModelError, NoesisError
from noesis.core.i18n import N_, _

MOST_BYTES = 64_000_000  # of one answer
MOST_WRITTEN = 1_000_000  # bytes of what it prints, the only thing that it may write
ADVICE = N_("it may be hostile: take the model from somewhere that you trust")
SHOWN = 300  # characters of what it printed last, where it crashed
_SECRET = re.compile("KEY|TOKEN|SECRET|PASSWORD|CREDENTIAL")


class Child:
    """One worker. It ends with this object, with this process, and when it oversteps a limit."""

    def __init__(self, worker: str, *, memory: int) -> None:
        """Start it, which takes some tenths of a second.

        Args:
            worker: the module whose `handle` answers.
            memory: bytes that it may allocate (where the system has such limits: Linux).
        """
        environment = {name: value for name, value in os.environ.items() if not _SECRET.search(name.upper())}
        environment["TOKENIZERS_PARALLELISM"] = "false"
        package = str(Path(__file__).resolve().parents[3])
        environment["PYTHONPATH"] = os.pathsep.join(filter(None, (package, environment.get("PYTHONPATH"))))
        self._printed = tempfile.TemporaryFile()  # noqa: SIM115  (closed when it ends)
        self._process = subprocess.Popen(
            [sys.executable, "-m", "noesis.llm.isolated.child", worker, str(memory)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._printed,
            env=environment,
            start_new_session=True,  # Ctrl-C is for us: we decide when it ends
        )
        self._lock = threading.Lock()
        self._end = weakref.finalize(self, _end, self._process, self._printed)

    @property
    def running(self) -> bool:
        """Whether it can be asked."""
        return self._end.alive and self._process.poll() is None

    def ask(self, what: str, seconds: float, **question: Any) -> Any:
        """The worker's answer to `question`, as JSON has it.

        Args:
            what: what it is about, for messages: "…/chat_template.jinja".
            seconds: how long it may take; then the child is ended.

        Raises:
            ModelError: the worker refuses, or the child overstepped a limit or crashed; then it no longer runs.
        """
        with self._lock:
            late = threading.Event()
            timer = threading.Timer(seconds, self._stop, (late,))
            timer.daemon = True
            timer.start()
            try:
                line = self._exchange(json.dumps(question))
            except (OSError, ValueError):  # it does not read any more; or it was closed before
                line = b""
            except BaseException:  # Ctrl-C: the answer that nobody waits for must not be taken for the next one's
                self.close()
                raise
            finally:
                timer.cancel()
            if not line.endswith(b"\n"):
                raise ModelError(f"{what} {self._why_it_ended(line, seconds if late.is_set() else None)}")
        answer = json.loads(line)
        if "limit" in answer:
            raise ModelError(f"{what} {answer['limit']}")
        if "error" in answer:
            raise ModelError(str(answer["error"]))
        return answer["value"]

    def _exchange(self, question: str) -> bytes:
        process = self._process
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write(question.encode() + b"\n")
        process.stdin.flush()
        return process.stdout.readline(MOST_BYTES)

    def _stop(self, late: threading.Event) -> None:
        late.set()
        self._process.kill()

    def _why_it_ended(self, line: bytes, seconds: float | None) -> str:
        if seconds is not None:
            self.close()
            return _("was stopped after {seconds:g} s without an answer; {advice}", seconds=seconds, advice=_(ADVICE))
        if len(line) >= MOST_BYTES:
            self.close()
            return _("gives more than {most_bytes:,} bytes; {advice}", most_bytes=MOST_BYTES, advice=_(ADVICE))
        printed = self._last_words()
        code = self.close()
        how = _("by {name}", name=signal.Signals(-code).name) if code and code < 0 else _("with code {code}", code=code)
        return _("ended the process that read it, {how}{printed}; {advice}", how=how, printed=printed, advice=_(ADVICE))

    def _last_words(self) -> str:
        with suppress(OSError, ValueError):
            self._process.wait(5)
            size = self._printed.seek(0, os.SEEK_END)
            self._printed.seek(max(0, size - 4 * SHOWN))
            words = " ".join(self._printed.read().decode(errors="replace").split())
            return f" ({words[-SHOWN:]})" if words else ""
        return ""

    def close(self) -> int | None:
        """End it, and return its exit code: negative is a signal."""
        self._end()
        return self._process.returncode


def _end(process: subprocess.Popen[bytes], printed: IO[bytes]) -> None:
    process.kill()
    process.wait()
    for stream in (process.stdin, process.stdout, printed):
        with suppress(OSError):  # what was not written yet goes nowhere
            if stream is not None:
                stream.close()


# --- in the child


def main(worker: str, memory: int) -> NoReturn:
    """Answer questions until nobody asks any more; then leave at once, whatever still runs."""
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what libraries print is no answer
    _limit(memory)
    handle = importlib.import_module(worker).handle
    questions: list[bytes] = []
    asked = threading.Semaphore(0)

    def read() -> None:  # a thread of its own, so that the child leaves even while it works on an answer
        for line in sys.stdin.buffer:
            questions.append(line)
            asked.release()
        os._exit(0)

    threading.Thread(target=read, daemon=True).start()
    while True:
        asked.acquire()
        try:
            answer = {"value": handle(**json.loads(questions.pop(0)))}
        except NoesisError as error:
            answer = {"error": str(error)}
        except MemoryError:
            answer = {
                "limit": _("takes more than {memory:.0f} GB of memory; {advice}", memory=memory / 1e9, advice=_(ADVICE))
            }
        answers.write(json.dumps(answer).encode() + b"\n")
        answers.flush()


def _limit(memory: int) -> None:
    if sys.platform == "win32":
        return
    import resource

    for limit, wanted in (
        (resource.RLIMIT_DATA, memory),
        (resource.RLIMIT_FSIZE, MOST_WRITTEN),
        (resource.RLIMIT_CORE, 0),
    ):
        _, hard = resource.getrlimit(limit)
        most = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
        with suppress(ValueError, OSError):  # macOS has the names, not all of the limits
            resource.setrlimit(limit, (most, most))


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
