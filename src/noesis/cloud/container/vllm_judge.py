"""The Tribunal on one GPU: all answers are written first, then the judge replaces the model; both don't fit.

`--judge vllm:MODEL` is served by vLLM in an environment of its own (constraints-vllm.txt) that this package never
imports: a process there speaks OpenAI's protocol on 127.0.0.1, with a key made for it. Other judges
(`openai:URL:MODEL`) are called at their own address. Page: https://docs.vllm.ai/en/latest/cli/serve
"""

from __future__ import annotations

import os
import secrets
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any

from noesis.cloud.request import LOCAL_JUDGE, CloudRequest
from noesis.core.console import duration, relay, say
from noesis.core.errors import ModelError, UsageError
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


def trial_with_vllm_judge(s: RunSession, project: Project, request: CloudRequest, *, again: bool) -> TrialResult | None:
    """The run's trial by the judges of the request.

    Returns:
        its result; None if a judge could not be started: then there is no verdict, and the run continues.
    """
    from noesis.pipeline.stages.trial import TrialRequest, run_trial

    served = [spec.removeprefix(LOCAL_JUDGE) for spec in request.judges if spec.startswith(LOCAL_JUDGE)]
    if len(served) > 1:
        raise UsageError(
            f"--judge: the GPU has room for one {LOCAL_JUDGE} model; name {served[0]!r} or {served[1]!r}, "
            "and other judges by their address"
        )
    others = tuple(spec for spec in request.judges if not spec.startswith(LOCAL_JUDGE))
    if not served:
        return run_trial(s, project, TrialRequest(others), again=again)
    trial = TrialRequest((f"openai:http://127.0.0.1:{PORT}/v1:{served[0]}", *others))
    try:
        command = vllm_command(served[0])
        with temporary_key() as key:
            return run_trial(s, project, trial, again=again, judge_server=lambda: vllm_server(command, key))
    except ModelError as error:
        say(f"  there is no trial: {error}")
        return None


def vllm_command(model: str) -> list[str]:
    """The command line of the server.

    Raises:
        ModelError: vLLM is not installed.
    """
    program = os.environ.get(COMMAND, IN_IMAGE).split()
    if not os.path.exists(program[0]):
        raise ModelError(
            f"vLLM is not installed ({program[0]} is missing): "
            "its image is built only if training_config.yaml names a vllm: judge under modal: judges"
        )
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
            raise ModelError(f"port {port} is taken: the judge's server can't listen on it")
    pipes: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
    environment = {**os.environ, "VLLM_API_KEY": key}
    process = subprocess.Popen(command, env=environment, encoding="utf-8", errors="replace", **pipes)
    assert process.stdout is not None
    relay(process.stdout)  # it logs what requests and models hold
    try:
        _wait(process, port, key, starts_s)
        yield
    finally:
        process.terminate()
        try:
            process.wait(30)
        except (subprocess.TimeoutExpired, KeyboardInterrupt, Terminated):
            process.kill()
            process.wait()


def _wait(process: subprocess.Popen[str], port: int, key: str, starts_s: float) -> None:
    started, url = time.monotonic(), f"http://127.0.0.1:{port}/v1/models"
    http = Http(url, {"Authorization": f"Bearer {key}"}, timeout_s=5)
    say("  loading the judge …")
    while True:
        if process.poll() is not None:
            raise ModelError(
                f"the judge's server ended with code {process.returncode} before it answered; its output is above"
            )
        if time.monotonic() - started > starts_s:
            raise ModelError(f"the judge's server did not answer within {duration(starts_s)}")
        with suppress(HttpError):
            if http.request("GET", url, deadline_s=5).status == 200:
                say(f"  the judge is ready after {duration(time.monotonic() - started)}")
                http.close()
                return
        time.sleep(1.0)
