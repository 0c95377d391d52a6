"""The Tribunal on one GPU: all answers are written first, then the judge replaces the model; both don't fit.

`--judge vllm:MODEL` is served by vLLM in an environment of its own (constraints-vllm.txt) that this package never
imports: a process there speaks OpenAI's protocol on 127.0.0.1, with a key made for it. Other judges
(`openai:URL:MODEL`) are called at their own address. Page: https://docs.vllm.ai/en/latest/cli/serve
"""

from __future__ import annotations

import os
import re
import secrets
import signal
import socket
import subprocess
import time
from collections import deque
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

from noesis.cloud.request import CloudRequest
from noesis.core.console import duration, relay, say
from noesis.core.errors import ModelError
from noesis.core.i18n import _
from noesis.core.project import Project
from noesis.core.signals import Terminated
from noesis.llm.causal_model import free_gpu_memory
from noesis.llm.http import Http
from noesis.llm.http_reply import HttpError
from noesis.pipeline.session import RunSession

if TYPE_CHECKING:
    from noesis.pipeline.results import TrialResult

COMMAND = "NOESIS_VLLM"  # environment variable: the vLLM program and its arguments before `serve`
IN_IMAGE = "/opt/vllm/bin/vllm"
PORT = 8811  # fixed, since calibrations and cached replies are stored under the judge's address
STARTS_S = 1200.0  # longest start, with a download of 15 GB
CONTEXT = 8192  # tokens of a judge's question and reply
KEY = "NOESIS_KEY_127_0_0_1"
# FlashInfer's sampler is compiled when it is first used, by a CUDA compiler that the image does not have.
SWITCHES = {"VLLM_USE_FLASHINFER_SAMPLER": "0", "VLLM_NO_USAGE_STATS": "1"}
KEPT_LINES, LONGEST_WORDS = 200, 400  # of the server's output; characters of its last words
# the line of an error, but not those that only say that there was one further up
ERROR_LINE = re.compile(r"\b(\w+(?:Error|Exception): .+)")
ONLY_POINTS = re.compile(r"root cause|Engine core init|engine core proc", re.IGNORECASE)


def trial_with_vllm_judge(s: RunSession, project: Project, request: CloudRequest, *, again: bool) -> TrialResult:
    """The run's trial by the judges of the request.

    Raises:
        ModelError: a judge can't be started or reached.
    """
    from noesis.pipeline.stages.trial import TrialRequest, run_trial

    trial = TrialRequest(judge_specs(request))
    if not request.served_judges:
        return run_trial(s, project, trial, again=again)
    command = vllm_command(request.served_judges[0])
    with temporary_key() as key:
        return run_trial(s, project, trial, again=again, judge_server=lambda: vllm_server(command, key))


def judge_specs(request: CloudRequest) -> tuple[str, ...]:
    """The judges as the Tribunal calls them: one that is served here, at its address."""
    served = tuple(f"openai:http://127.0.0.1:{PORT}/v1:{model}" for model in request.served_judges)
    return (*served, *request.remote_judges)


def vllm_command(model: str) -> list[str]:
    """The command line of the server.

    Raises:
        ModelError: vLLM is not installed.
    """
    program = os.environ.get(COMMAND, IN_IMAGE).split()
    if not os.path.exists(program[0]):
        raise ModelError(_("vLLM is not installed in this container ({program} is missing)", program=program[0]))
    return [
        *program,
        "serve",
        model,
        "--host",
        "127.0.0.1",
        "--port",
        str(PORT),
        "--max-model-len",
        str(CONTEXT),
        "--gpu-memory-utilization",
        "0.88",
    ]


def server_environment(program: str, key: str) -> dict[str, str]:
    """The environment of the server's process.

    Its own environment's programs come first on PATH, since vLLM calls `ninja` by name; not in the image's PATH, where
    they would replace the Python that runs the container.
    """
    path = os.pathsep.join([str(Path(program).parent), os.environ.get("PATH", os.defpath)])
    return {**os.environ, **SWITCHES, "PATH": path, "VLLM_API_KEY": key}


@contextmanager
def temporary_key() -> Iterator[str]:
    """A key for the judge's server, known only to this process and the server."""
    before, key = os.environ.get(KEY), secrets.token_urlsafe(24)
    os.environ[KEY] = key
    try:
        yield key
    finally:
        os.environ.pop(KEY)
        if before is not None:
            os.environ[KEY] = before


@contextmanager
def vllm_server(command: list[str], key: str, *, port: int = PORT, starts_s: float = STARTS_S) -> Iterator[None]:
    """The judge's server, ready to answer, until the end of the block.

    Raises:
        ModelError: it ended, did not answer in time, or its port is taken.
    """
    free_gpu_memory()
    with socket.socket() as probe:
        if probe.connect_ex(("127.0.0.1", port)) == 0:
            raise ModelError(_("port {port} is taken: the judge's server can't listen on it", port=port))
    process = subprocess.Popen(
        command,
        env=server_environment(command[0], key),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        encoding="utf-8",
        errors="replace",
        start_new_session=True,  # a group of its own, with the engine that it starts
    )
    output = _Output(process)
    try:
        _wait(process, output, port, key, starts_s)
        yield
    finally:
        process.terminate()
        try:
            process.wait(30)
        except (subprocess.TimeoutExpired, KeyboardInterrupt, Terminated):
            process.kill()
            process.wait()
        finally:
            with suppress(ProcessLookupError):  # an engine left behind would hold the GPU's memory
                os.killpg(process.pid, signal.SIGKILL)


class _Output:
    """The server's output: passed on line by line, its end kept."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        assert process.stdout is not None
        self._lines: deque[str] = deque(maxlen=KEPT_LINES)
        self._thread = relay(self._kept(process.stdout))  # it logs what requests and models hold

    def _kept(self, lines: Iterable[str]) -> Iterator[str]:
        for line in lines:
            self._lines.append(line.rstrip())
            yield line

    def last_words(self) -> str:
        """The last error that names a cause; else the last lines."""
        self._thread.join(2.0)  # what a process has written arrives after its end
        lines = [line for line in self._lines if line.strip()]
        errors = [found[1] for line in lines if (found := ERROR_LINE.search(line)) and not ONLY_POINTS.search(line)]
        words = errors[-1] if errors else " / ".join(line.strip() for line in lines[-3:])
        return " ".join(words.split())[:LONGEST_WORDS] or "it printed nothing"


def _wait(process: subprocess.Popen[str], output: _Output, port: int, key: str, starts_s: float) -> None:
    started, url = time.monotonic(), f"http://127.0.0.1:{port}/v1/models"
    http = Http(url, {"Authorization": f"Bearer {key}"}, timeout_s=5)
    say(_("  loading the judge …"))
    while True:
        if process.poll() is not None:
            raise ModelError(
                _(
                    "its server ended with code {returncode}: {last_words}",
                    returncode=process.returncode,
                    last_words=output.last_words(),
                )
            )
        if time.monotonic() - started > starts_s:
            raise ModelError(
                _(
                    "its server did not answer within {starts_s}: {last_words}",
                    starts_s=duration(starts_s),
                    last_words=output.last_words(),
                )
            )
        with suppress(HttpError):
            if http.request("GET", url, deadline_s=5).status == 200:
                say(_("  the judge is ready after {monotonic}", monotonic=duration(time.monotonic() - started)))
                http.close()
                return
        time.sleep(1.0)
