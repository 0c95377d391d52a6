"""Attacks on `noesis serve` below its handlers: malformed HTTP, foreign hosts, floods, and what may leak of the key."""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from helpers.running_server import KEY, Client, endless, reciters, running
from noesis.serving.protocol import Limits

pytestmark = pytest.mark.timing

HOST = b"Host: 127.0.0.1\r\n"
AUTH = f"Authorization: Bearer {KEY}\r\n".encode()
POST = b"POST /v1/chat/completions HTTP/1.1\r\n" + HOST + AUTH
BODY = json.dumps({"model": "noesis", "messages": [{"role": "user", "content": "Hi"}], "max_tokens": 1}).encode()
LIMITS = Limits(parallel=2, context=512, max_tokens=64, body_bytes=200_000, idle_s=1.0, body_s=1.0)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Client]:
    with running(reciters(tmp_path_factory.mktemp("gguf")), LIMITS) as client:
        yield client


def exchange(server: Client, raw: bytes) -> bytes:
    """What comes back until the server closes the connection, at the latest when it stays idle."""
    sock, received = server.raw(), b""
    try:
        with contextlib.suppress(OSError):  # it may refuse to read on
            sock.sendall(raw)
        while piece := sock.recv(65536):
            received += piece
    except ConnectionResetError:
        pass
    finally:
        sock.close()
    return received


def logged(caplog: pytest.LogCaptureFixture) -> str:
    """What pytest caught before it would have been printed."""
    return "".join(line + "\n" for line in caplog.text.splitlines() if "HTTP Request:" not in line)


def chunked(chunks: bytes) -> bytes:
    return POST + b"Transfer-Encoding: chunked\r\n\r\n" + chunks


def sized(body: bytes, more: bytes = b"") -> bytes:
    return POST + more + b"Content-Length: %d\r\n\r\n" % len(body) + body


MALFORMED = [
    pytest.param(b"GET / HTTP/1.1\r\n" + HOST + b"X: " + b"a" * 100_000 + b"\r\n\r\n", id="a header of 100 kB"),
    pytest.param(b"GET /" + b"a" * 100_000 + b" HTTP/1.1\r\n" + HOST + b"\r\n", id="an address of 100 kB"),
    pytest.param(
        b"GET / HTTP/1.1\r\n" + HOST + b"".join(b"X%d: a\r\n" % i for i in range(50_000)) + b"\r\n",
        id="50,000 headers",
    ),
    pytest.param(POST + b"Content-Length: 5\r\nContent-Length: 6\r\n\r\nhello!", id="two lengths"),
    pytest.param(POST + b"Content-Length: -1\r\n\r\n", id="a negative length"),
    pytest.param(POST + b"Content-Length: 0x10\r\n\r\n" + b"a" * 16, id="a length in hexadecimal"),
    pytest.param(POST + b"Content-Length: " + b"9" * 40 + b"\r\n\r\n", id="a length of 40 digits"),
    pytest.param(
        POST + b"Transfer-Encoding: chunked\r\nContent-Length: 4\r\n\r\n0\r\n\r\n",
        id="a length and chunks at once (request smuggling)",
    ),
    pytest.param(chunked(b"zz\r\nhello\r\n0\r\n\r\n"), id="a chunk whose size is no number"),
    pytest.param(chunked(b"-5\r\nhello\r\n0\r\n\r\n"), id="a chunk of negative size"),
    pytest.param(chunked(b"f" * 40 + b"\r\nhello"), id="a chunk size of 40 digits"),
    pytest.param(chunked(b"5;" + b"x" * 100_000 + b"\r\nhello\r\n0\r\n\r\n"), id="a chunk extension of 100 kB"),
    pytest.param(POST + b"Transfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n", id="a compressed transfer"),
    pytest.param(b"GET / HTTP/1.1\r\n" + HOST + b"X: a\x00b\r\n\r\n", id="a zero byte in a header"),
    pytest.param(b"GET / HTTP/1.1\r\n" + HOST + b"X y: a\r\n\r\n", id="a space in a header's name"),
    pytest.param(b"GET / HTTP/1.1\r\n" + HOST + b"X: a\r\n folded\r\n\r\n", id="a folded header"),
    pytest.param(b"GET / HTTP/9.9\r\n" + HOST + b"\r\n", id="an unknown version of HTTP"),
    pytest.param(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", id="the beginning of HTTP/2"),
    pytest.param(b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + b"\x00" * 300, id="the beginning of TLS"),
    pytest.param(b"\xff" * 10_000, id="bytes that are no text"),
    pytest.param(b"GET\r\n\r\n", id="a request line without address"),
    pytest.param(AUTH + b"\r\n" + AUTH, id="the key where the request line should be"),
    pytest.param(b"GET / HTTP/1.1\r\n" + HOST + b"Host: evil.example\r\n\r\n", id="two hosts"),
    pytest.param(POST + b"Content-Encoding: br\r\nContent-Length: 2\r\n\r\n{}", id="a body compressed with Brotli"),
    pytest.param(b"CONNECT evil.example:443 HTTP/1.1\r\n" + HOST + b"\r\n", id="CONNECT, as to a proxy"),
    pytest.param(b"TRACE / HTTP/1.1\r\n" + HOST + AUTH + b"\r\n", id="TRACE, which would echo the key"),
    pytest.param(b"GET /../../etc/passwd HTTP/1.1\r\n" + HOST + AUTH + b"\r\n", id="an address that climbs up"),
    pytest.param(b"GET /%2e%2e%2fetc/passwd HTTP/1.1\r\n" + HOST + AUTH + b"\r\n", id="one that climbs up, encoded"),
    pytest.param(
        POST + b"Expect: 200-nonsense\r\nContent-Length: 2\r\n\r\n{}", id="an expectation that nobody can meet"
    ),
]


@pytest.mark.parametrize("raw", MALFORMED)
def test_malformed_http_is_refused_without_a_word_about_the_key(
    server: Client, raw: bytes, capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
):
    received = exchange(server, raw)
    assert received.startswith((b"HTTP/1.1 4", b"HTTP/1.0 4")), received[:100]
    assert received.count(b"HTTP/1.") == 1  # and nothing behind it is answered
    said = "".join(capfd.readouterr()) + logged(caplog)
    assert KEY not in said and "Traceback" not in said
    assert server.chat(max_tokens=1).status_code == 200


@pytest.mark.parametrize(
    "raw",
    [
        pytest.param(POST + b"Content-Length: 500\r\n\r\n{", id="a body that does not go on"),
        pytest.param(chunked(b"1\r\n{\r\n"), id="chunks that do not go on"),
        pytest.param(b"GET /health HTT", id="a request line that does not go on"),
        pytest.param(b"GET /health HTTP/1.1\r\nX: ", id="a header that does not go on"),
        pytest.param(b"", id="a connection that says nothing"),
    ],
)
def test_who_dawdles_loses_the_connection_and_nobody_waits(server: Client, raw: bytes):
    sock = server.raw(raw)
    assert server.chat(max_tokens=1).status_code == 200
    sock.settimeout(60)
    while sock.recv(65536):
        pass  # an error, or nothing, and the end
    sock.close()


@pytest.mark.parametrize(
    "head", [pytest.param(POST + b"Content-Length: 1000\r\n\r\n", id="a body"), pytest.param(chunked(b""), id="chunks")]
)
def test_a_byte_now_and_then_does_not_prolong_the_time_to_send(server: Client, head: bytes):
    sock, started = server.raw(head), time.monotonic()
    try:
        for _ in range(100):
            sock.sendall(b"1\r\n{\r\n" if b"chunked" in head else b"{")
            time.sleep(0.2)
    except OSError:
        pass
    assert time.monotonic() - started < 15  # not the 20 s that it would take
    sock.close()


def test_a_thousand_requests_on_one_connection_are_answered_in_turn(server: Client):
    received = exchange(server, (b"GET /health HTTP/1.1\r\n" + HOST + b"\r\n") * 1000)
    assert received.count(b"HTTP/1.1 200") == 1000
    assert server.chat(max_tokens=1).status_code == 200


def test_a_refused_request_does_not_smuggle_another_behind_it(server: Client):
    """The body of a refused request is not read, so it must never be taken for the next request."""
    inner = b"GET /v1/models HTTP/1.1\r\n" + HOST + AUTH + b"\r\n"
    wrong = b"POST /v1/chat/completions HTTP/1.1\r\n" + HOST + b"Content-Length: %d\r\n\r\n" % len(inner)
    received = exchange(server, wrong + inner)
    assert received.startswith(b"HTTP/1.1 401") and b"200 OK" not in received


@pytest.mark.parametrize(
    "host",
    [
        pytest.param("evil.example", id="a name that was made to lead here (DNS rebinding)"),
        pytest.param("evil.example:8017", id="such a name with the port"),
        pytest.param("localhost.evil.example", id="a name that begins with localhost"),
        pytest.param("127.0.0.1.evil.example", id="a name that begins with 127.0.0.1"),
        pytest.param("evil-localhost", id="a name that ends with localhost"),
        pytest.param("127.0.0.1@evil.example", id="an address as user name"),
        pytest.param("localhost..", id="localhost with two dots"),
        pytest.param("evil.example.", id="such a name with a dot"),
        pytest.param("", id="no name"),
    ],
)
def test_a_foreign_host_is_refused(server: Client, host: str):
    for path in ("/", "/health", "/v1/models"):
        assert server.http.get(path, headers={"Host": host}).status_code in (400, 421)


@pytest.mark.parametrize(
    "host",
    [
        "127.0.0.1",
        "localhost:99",
        "localhost.",
        "LocalHost.:8017",
        "[::1]:8017",
        "host.docker.internal:8017",
        "LOCALHOST",
    ],
)
def test_this_machines_own_names_are_accepted(server: Client, host: str):
    assert server.http.get("/health", headers={"Host": host}).status_code == 200


@pytest.mark.parametrize(
    "raw",
    [
        pytest.param(b"GET / HTTP/9.9\r\n\r\n", id="malformed requests"),
        pytest.param(b"GET /v1/models HTTP/1.1\r\n" + HOST + b"\r\n", id="requests without the key"),
        pytest.param(b"GET / HTTP/1.1\r\n" + HOST + b"X: a\x00" + AUTH + b"\r\n", id="malformed headers with a key"),
        pytest.param(chunked(b"zz\r\n"), id="malformed bodies"),
    ],
)
def test_a_flood_writes_no_line_each(
    server: Client, raw: bytes, capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
):
    before = server.metric("noesis_internal_errors_total") + refused(server)
    for _ in range(50):
        exchange(server, raw)
    said = "".join(capfd.readouterr()) + logged(caplog)
    assert said.count("\n") <= 2 and KEY not in said
    assert server.metric("noesis_internal_errors_total") + refused(server) >= before + 50  # but it counts


def refused(server: Client) -> int:
    lines = server.http.get("/metrics").text.splitlines()
    return sum(int(line.rsplit(" ", 1)[1]) for line in lines if 'status="40' in line)


def test_llama_cpp_listens_on_no_port_and_only_this_user_may_reach_it(tmp_path: Path):
    import httpx2

    from noesis.llm.isolated.llama_process import NO_ORIGIN
    from noesis.llm.llama_cpp import LlamaServer

    backend = LlamaServer(reciters(tmp_path).tuned, parallel=1, context=512)
    socket_file = Path(str(backend.socket))
    assert socket_file.is_socket() and socket_file.parent.stat().st_mode & 0o077 == 0
    with httpx2.Client(transport=httpx2.HTTPTransport(uds=backend.socket), trust_env=False) as http:
        for path in ("/v1/models", "/slots", "/props", "/v1/chat/completions"):
            reply = http.get(backend.url + path, headers={"Origin": "https://evil.example"})
            assert reply.status_code in (401, 404)
            assert reply.headers.get("access-control-allow-origin", NO_ORIGIN) == NO_ORIGIN
    assert backend.stop(10.0) and not socket_file.exists()


def test_a_client_that_does_not_read_loses_its_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("noesis.serving.relay.UNREAD_S", 0.5)
    with running(endless(tmp_path), Limits(parallel=1, context=30_000, max_tokens=25_000)) as server:
        sock = server.begin_stream(25_000, logprobs=True, top_logprobs=20)  # megabytes, which no buffer takes
        until_idle = time.monotonic() + 60
        while server.metric("noesis_in_flight"):
            assert time.monotonic() < until_idle
            time.sleep(0.1)
        assert server.chat(max_tokens=1).status_code == 200
        received = b""
        while piece := sock.recv(1 << 20):
            received += piece
        assert b"[DONE]" not in received  # it was cut off
