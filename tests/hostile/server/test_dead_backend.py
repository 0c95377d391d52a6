"""Attacks that end llama.cpp's process under the server: clients get an honest error, and a new process starts."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from helpers.running_server import Client, endless, running
from noesis.serving.protocol import Limits

pytestmark = pytest.mark.timing


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Client]:
    with running(endless(tmp_path), Limits(parallel=2, context=60_000, max_tokens=50_000)) as client:
        yield client


def kill_llama(server: Client) -> None:
    """End the youngest process that loaded a model for this test's server."""
    children = [p for p in psutil.Process().children() if "noesis.llm.isolated.llama_worker" in p.cmdline()]
    max(children, key=lambda p: p.create_time()).kill()


def test_a_process_that_was_killed_is_started_again_and_no_path_is_shown(
    server: Client, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("noesis.serving.server.RESTART_S", 0.1)
    for _ in range(2):  # not only once
        sock = server.begin_stream(50_000)
        kill_llama(server)
        received = b""
        while piece := sock.recv(65536):
            received += piece
        assert b'"code":"model_unavailable"' in received and b"[DONE]" not in received
        until, refusals = time.monotonic() + 60, []
        while (reply := server.chat(max_tokens=2)).status_code != 200:
            assert time.monotonic() < until
            error = reply.json()["error"]
            refusals.append((reply.status_code, reply.headers["retry-after"], error["code"]))
            assert "/" not in error["message"]
            time.sleep(0.05)
        assert set(refusals) <= {(503, "5", "model_unavailable")}
        assert "/" not in received.decode().rsplit('"message":', 1)[1]
