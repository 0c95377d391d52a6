"""The Tribunal on one card: all answers first, then the answering model leaves the card and the judge is loaded; both don't fit.

`--judge vllm:MODEL` is served by vLLM, in an environment of its own (constraints-vllm.txt) that this package never imports: a process of
that environment speaks OpenAI's protocol on 127.0.0.1, with a key made for it. Other judges (`openai:URL:MODEL`) are asked where they are.
"""

from __future__ import annotations

import os
import secrets
import socket
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

from noesis.cloud.request import LOCAL_JUDGE, CloudRequest
from noesis.core.console import duration, say
from noesis.core.errors import ModelError, UsageError
from noesis.core.project import Project
from noesis.core.signals import Terminated
from noesis.llm.torch_generate import free_gpu_memory
from noesis.pipeline.session import RunSession

COMMAND = "NOESIS_VLLM"  # how vLLM is called: the program and what comes before `serve`
IN_IMAGE = "/opt/vllm/bin/vllm"
PORT = 8811  # always the same: calibrations and replies are kept under the judge's address
STARTS_S = 1200.0  # at most, its download of 15 GB included
WINDOW = 8192  # tokens of a judge's question and reply
KEY = "NOESIS_KEY_127_0_0_1"


def trial_with_vllm_judge(
    s: RunSession, project: Project, request: CloudRequest, *, again: bool
) -> dict[str, Any] | None:
    """The trial of the run before the judges that were asked for.

    Returns:
        its result; None where a judge could not be started: then no verdict is given, and the run goes on.
    """
    from noesis.pipeline.stages.trial import TrialRequest
    from noesis.pipeline.stages.trial import run_trial as trial

    served = [text.removeprefix(LOCAL_JUDGE) for text in request.judges if text.startswith(LOCAL_JUDGE)]
    if len(served) > 1:
        raise UsageError(
            f"--judge: one {LOCAL_JUDGE} model at a time fits the card; name {served[0]!r} or {served[1]!r}, and others by their address"
        )
    others = tuple(text for text in request.judges if not text.startswith(LOCAL_JUDGE))
    if not served:
        return trial(s, project, TrialRequest(others), again=again).to_json()
    try:
        command = vllm_command(served[0])
    except ModelError as error:
        say(f"  the trial is not held: {error}")
        return None
    ask = TrialRequest((f"openai:http://127.0.0.1:{PORT}/v1:{served[0]}", *others))
    try:
        with temporary_key() as key:
            served_judge = partial(vllm_server, command, key)
            return trial(s, project, ask, again=again, judge_server=served_judge).to_json()
    except ModelError as error:
        say(f"  the trial is not held: {error}")
        return None


def vllm_command(model: str) -> list[str]:
    """What starts the server.

    Raises:
        ModelError: vLLM is not here.
    """
    program = os.environ.get(COMMAND, IN_IMAGE).split()
    if not os.path.exists(program[0]):
        raise ModelError(
            f"vLLM is not here ({program[0]} is missing): its image is built where training_config.yaml names a vllm: judge under modal: judges"
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
        str(WINDOW),
        "--gpu-memory-utilization",
        "0.88",
    ]


@contextmanager
def temporary_key() -> Iterator[str]:
    """A key for the judge's server, known to this process and to the server alone."""
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
    """A judge's server, from the moment that it answers to the end of the block.

    Raises:
        ModelError: it ended, or did not answer in time, or something else listens on its port.
    """
    free_gpu_memory()
    with socket.socket() as probe:
        if probe.connect_ex(("127.0.0.1", port)) == 0:
            raise ModelError(f"port {port} is taken: something else listens where the judge should")
    process = subprocess.Popen(command, env={**os.environ, "VLLM_API_KEY": key})
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


def _wait(process: subprocess.Popen[bytes], port: int, key: str, starts_s: float) -> None:
    began = time.monotonic()
    say("  loading the judge …")
    while True:
        if process.poll() is not None:
            raise ModelError(
                f"the judge's server ended with code {process.returncode} before it answered; its own words are above"
            )
        if time.monotonic() - began > starts_s:
            raise ModelError(f"the judge's server did not answer within {duration(starts_s)}")
        ask = urllib.request.Request(f"http://127.0.0.1:{port}/v1/models", headers={"Authorization": f"Bearer {key}"})
        try:
            with urllib.request.urlopen(ask, timeout=5) as reply:  # noqa: S310
                if reply.status == 200:
                    say(f"  the judge answers after {duration(time.monotonic() - began)}")
                    return
        except (urllib.error.URLError, OSError):
            time.sleep(1.0)
