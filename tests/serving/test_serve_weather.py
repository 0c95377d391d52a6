"""`noesis serve` in bad weather: clients that vanish, dawdle, flood, and a server that is told to stop. It goes on, and ends well."""

from __future__ import annotations

import json
import os
import resource
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import psutil
import pytest

from helpers.project import ROOT
from helpers.running_server import KEY, Client, endless, reciters, running
from noesis.serving.protocol import Limits

pytestmark = pytest.mark.timing
LONG = 6000  # tokens: seconds for the tiny model
LIMITS = Limits(
    parallel=2, context=8000, max_tokens=LONG, body_bytes=1_000_000, idle_s=1.0, body_s=1.0, connections=100
)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory):
    with running(endless(tmp_path_factory.mktemp("gguf")), LIMITS) as client:
        yield client


def until(true, seconds: float = 60.0) -> None:
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end, "it did not come true"
        time.sleep(0.02)


def idle(server: Client) -> bool:
    return server.metric("noesis_in_flight") == 0


def test_clients_that_vanish_in_mid_stream_free_their_places(server: Client):
    for _ in range(3):  # more than there are places
        for sock in [server.begin_stream(LONG) for _ in range(LIMITS.parallel)]:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")  # a reset, as of a killed process
            sock.close()
        until(lambda: idle(server))
    assert server.chat(max_tokens=3).status_code == 200
    assert 'status="499"' in server.http.get("/metrics").text


def test_requests_above_the_limit_are_asked_to_come_again(server: Client):
    socks = [server.begin_stream(LONG) for _ in range(LIMITS.parallel)]
    refused = server.chat(max_tokens=3)
    assert (refused.status_code, refused.headers["retry-after"], refused.json()["error"]["type"]) == (
        429,
        "1",
        "rate_limit_error",
    )
    for sock in socks:
        sock.close()
    until(lambda: idle(server))
    assert server.chat(max_tokens=3).status_code == 200


def test_a_body_of_100_mb_is_refused_without_being_read(server: Client):
    before = psutil.Process().memory_info().rss
    head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: 127.0.0.1\r\nAuthorization: Bearer {KEY}\r\nContent-Length: 100000000\r\n\r\n"
    sock = server.raw(head.encode())
    assert sock.recv(100).startswith(b"HTTP/1.1 413")
    sock.close()
    # without a length: read up to the limit, no further
    sock = server.raw(head.replace("Content-Length: 100000000", "Transfer-Encoding: chunked").encode())
    chunk, sent = b"10000\r\n" + b"x" * 0x10000 + b"\r\n", 0
    try:
        for _ in range(1600):
            sock.sendall(chunk)
            sent += len(chunk)
    except (BrokenPipeError, ConnectionResetError):
        pass
    assert sent < 60_000_000
    sock.close()
    assert psutil.Process().memory_info().rss - before < 50_000_000
    assert (
        server.http.post(
            "/v1/chat/completions", content=b"\x1f\x8b" + b"0" * 100, headers={"Content-Encoding": "gzip"}
        ).status_code
        == 415
    )


def test_a_thousand_connections(server: Client):
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(hard, 4096), hard))
    socks = []
    try:
        for _ in range(1000):
            sock = socket.create_connection(("127.0.0.1", server.port), timeout=60)
            socks.append(sock)
        said = 0
        for sock in socks[200:]:
            sock.settimeout(60)
            said += sock.recv(20).startswith(b"HTTP/1.1 503") if len(socks) else 0
            if said > 100:
                break
        assert said > 100  # those above the limit were told so
    finally:
        for sock in socks:
            sock.close()
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    until(lambda: server.raw(b"GET /health HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n").recv(100).startswith(b"HTTP/1.1 200"))
    assert server.chat(max_tokens=3).status_code == 200
    assert server.metric("noesis_refused_connections_total") >= 100


@pytest.mark.slow
def test_connections_that_say_nothing_or_too_slowly_are_closed(server: Client):
    for beginning in (b"", b"POST /v1/chat/completions HTTP/1.1\r\nHo"):
        sock = server.raw(beginning)
        sock.settimeout(60)
        assert sock.recv(10) == b""
    slow = server.raw(
        f"POST /v1/chat/completions HTTP/1.1\r\nHost: 127.0.0.1\r\nAuthorization: Bearer {KEY}\r\nContent-Length: 50\r\n\r\n{{".encode()
    )
    assert slow.recv(100).startswith(b"HTTP/1.1 408")
    slow.close()


@pytest.mark.slow
def test_an_answer_has_a_time_limit(tmp_path: Path):
    with running(endless(tmp_path), Limits(parallel=1, context=60_000, max_tokens=50_000, request_s=2.0)) as server:
        assert (reply := server.chat()).status_code == 504 and reply.json()["error"]["code"] == "timeout"
        sock = server.begin_stream(50_000)
        received = b""
        while piece := sock.recv(65536):
            received += piece
        assert b'"code":"timeout"' in received and b"[DONE]" not in received
        until(lambda: idle(server))


def test_stopping_finishes_what_is_under_way(tmp_path: Path):
    finished: list[bytes] = []
    with running(endless(tmp_path), Limits(parallel=2, context=4000, max_tokens=1500)) as server:
        sock = server.begin_stream(1500)

        def read() -> None:
            received = b""
            while piece := sock.recv(65536):
                received += piece
            finished.append(received)

        reader = threading.Thread(target=read)
        reader.start()
    reader.join(60)
    assert b'"finish_reason":"length"' in finished[0] and b"[DONE]" in finished[0]


@pytest.mark.slow
def test_stopping_does_not_wait_for_ever(tmp_path: Path):
    with running(endless(tmp_path), Limits(parallel=1, context=100_000, max_tokens=90_000, grace_s=0.2)) as server:
        sock = server.begin_stream(90_000)
        started = time.monotonic()
    assert time.monotonic() - started < 15
    sock.close()


PROGRAM = """
import asyncio, sys
from pathlib import Path
from noesis.constitution.document import SystemPrompt
from noesis.serving.protocol import Limits
from noesis.serving.server import ModelFiles, Server, Settings

server = Server(ModelFiles(Path(sys.argv[1]), None), Settings(sys.argv[2], SystemPrompt(pt="x", en="x"), "en", port=0, limits=Limits(parallel=2, context=60000, max_tokens=50000)))
asyncio.run(server.run(lambda: print(server.port, flush=True)))
server.free()
print("stopped", flush=True)
"""


@pytest.mark.slow
@pytest.mark.parametrize(("first", "again"), [(signal.SIGTERM, False), (signal.SIGINT, False), (signal.SIGTERM, True)])
def test_signals(tmp_path: Path, first: int, again: bool):
    """One signal: what is under way is finished. A second one: it is cut short. Both end with 0 and in time."""
    environment = os.environ | {"PYTHONPATH": str(ROOT / "src")}
    process = subprocess.Popen(
        [sys.executable, "-c", PROGRAM, str(endless(tmp_path).tuned), KEY],
        stdout=subprocess.PIPE,
        text=True,
        env=environment,
    )
    try:
        assert "loading" in process.stdout.readline()
        port = int(process.stdout.readline())
        client = Client(f"http://127.0.0.1:{port}", port, process.terminate)
        sock = client.begin_stream(50_000 if again else 2000)
        process.send_signal(first)
        until(lambda: not answers(port))
        if again:
            process.send_signal(first)
        received = b""
        try:
            while piece := sock.recv(65536):
                received += piece
        except ConnectionResetError:
            assert again
        assert (b"[DONE]" in received) == (not again)
        assert process.wait(60) == 0
        assert process.stdout.read().strip() == "stopped"
    finally:
        process.kill()


def answers(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port), timeout=60).close()
    except OSError:
        return False
    return True


def test_hostile_schemas_do_not_end_the_server(tmp_path: Path):
    """What llama.cpp makes a grammar of comes from a client."""
    deep: dict = {"type": "string"}
    for _ in range(12):
        deep = {"type": "array", "items": deep}
    schemas = [
        deep,
        {"$ref": "#"},
        {"$ref": "#/$defs/a", "$defs": {"a": {"$ref": "#/$defs/a"}}},
        {"$ref": "https://example.org/x.json"},
        {"type": "string", "pattern": "^(a{1,2000}){1,2000}$"},
        {"type": "string", "pattern": "(((("},
        {"type": "nonsense"},
        {"enum": []},
        {"type": "object", "properties": {f"p{i}": {"type": "integer"} for i in range(300)}},
        {"allOf": [{"$ref": "#"}, {"$ref": "#"}]},
    ]
    with running(reciters(tmp_path), Limits(parallel=2, context=2000, max_tokens=8, request_s=10)) as server:
        for schema in schemas:
            body = {"response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": schema}}}
            assert server.chat(**body).status_code in (200, 400, 502, 504), json.dumps(schema)[:80]
            assert server.chat(max_tokens=2).status_code == 200
