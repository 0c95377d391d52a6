"""A proxy in the environment gets nothing that is meant for this machine."""

from __future__ import annotations

import socket
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from helpers.endpoints.asking import SECTION, ask
from helpers.endpoints.raw_server import RawServer, answer, chat, ok
from helpers.tiny_gguf import write_reciter
from noesis.core.errors import UsageError
from noesis.llm import addresses
from noesis.llm.addresses import is_loopback, is_loopback_address, spare_loopback_from_proxies
from noesis.llm.clients.chat_client import LLMClient
from noesis.llm.clients.protocol import ModelReply
from noesis.llm.http import Http

KEY = "sk-a-key-of-some-length"
NAMES = ("HTTP_PROXY", "http_proxy", "HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy", "NO_PROXY", "no_proxy")


@pytest.fixture
def proxy(monkeypatch: pytest.MonkeyPatch):
    for name in NAMES:
        monkeypatch.delenv(name, raising=False)
    with RawServer(lambda number: answer(502, b"the proxy has it")) as server:
        yield server


@pytest.mark.parametrize(
    "name",
    [
        pytest.param("HTTP_PROXY", id="HTTP_PROXY"),
        pytest.param("http_proxy", id="http_proxy in lower case"),
        pytest.param("ALL_PROXY", id="ALL_PROXY"),
        pytest.param("all_proxy", id="all_proxy in lower case"),
    ],
)
@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "127.1", socket.gethostname()])
def test_a_proxy_gets_no_prompt_and_no_key(proxy: RawServer, name: str, host: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv(name, f"http://127.0.0.1:{proxy.port}")
    with RawServer(lambda number: ok(chat())) as server:
        server.url = server.url.replace("127.0.0.1", host)
        (found,) = ask(server, section=SECTION)
        answered = LLMClient(server.url, KEY, "m").complete([{"role": "user", "content": "a"}])
    assert isinstance(found, ModelReply) and answered.text == "7"
    assert proxy.requests == []


def test_a_proxy_is_used_for_other_machines(proxy: RawServer, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("HTTP_PROXY", f"http://127.0.0.1:{proxy.port}")
    http = Http("http://models.example/v1", {}, timeout_s=5)
    assert http.request("GET", "http://models.example/v1/models", deadline_s=5).message == "the proxy has it"
    assert proxy.requests[0].startswith(b"GET http://models.example/v1/models ")


@pytest.mark.parametrize(
    "value",
    [
        pytest.param("gopher://127.0.0.1:1", id="a proxy of a kind that nobody knows"),
        pytest.param("http://[::1", id="a proxy without an address"),
        pytest.param("http://a:b:c:d", id="a proxy with three ports"),
        pytest.param("socks5://127.0.0.1:1", id="a proxy by SOCKS"),
    ],
)
def test_a_proxy_that_cannot_be_used_is_told_and_does_not_matter_here(
    proxy: RawServer, value: str, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("ALL_PROXY", value)
    with RawServer(lambda number: ok(chat())) as server:
        assert LLMClient(server.url, KEY, "m").complete([{"role": "user", "content": "a"}]).text == "7"
    with pytest.raises(UsageError, match="ALL_PROXY"):
        LLMClient("http://models.example/v1", KEY, "m")


@pytest.mark.parametrize(
    ("url", "here"),
    [
        ("http://127.0.0.1:1/v1", True),
        ("http://127.8.9.10", True),
        ("http://127.1", True),
        ("http://2130706433", True),
        ("http://0x7f.1", True),
        ("http://0.0.0.0:8017", True),
        ("http://localhost", True),
        ("http://LOCALHOST.:80", True),
        ("http://judge.localhost", True),
        ("http://[::1]:8017", True),
        ("http://[::ffff:127.0.0.1]", True),
        ("http://[::]", True),
        ("http://user:word@127.0.0.1", True),
        ("http://127.0.0.1@evil.example", False),
        ("http://localhost.evil.example", False),
        ("http://127.0.0.1.evil.example", False),
        ("http://evil.example/127.0.0.1", False),
        ("http://128.0.0.1", False),
        ("http://192.168.0.1", False),
        ("http://[2001:db8::1]", False),
        ("http://", False),
        ("http://ip6-localhost:8017", True),
        ("http://%6cocalhost", True),
        ("http://127.0.0.%31:80", True),
        ("http://\uff4c\uff4f\uff43\uff41\uff4c\uff48\uff4f\uff53\uff54", True),
        ("http://\uff11\uff12\uff17.0.0.1", True),
        ("http://127\u30020\u30020\u30021", True),
        ("http://a\x1b[31mb", False),
        ("http://[::zz]", False),
    ],
    ids=lambda value: value if isinstance(value, str) else "is here" if value else "is elsewhere",
)
def test_what_counts_as_this_machine(url: str, here: bool):
    assert is_loopback(url) is here


def test_its_own_name_and_address_are_this_machine(monkeypatch: pytest.MonkeyPatch):
    import psutil

    found = {"judge.lan": ["192.0.2.7"], "own.lan": ["127.0.1.1", "192.0.2.7"], "other.lan": ["192.0.2.8"]}
    found["both.lan"] = ["127.0.0.1", "192.0.2.8"]  # a name that may lead elsewhere at the next look
    resolved = lambda host, *_, **__: [(0, 0, 0, "", (address, 0)) for address in found[host]]  # noqa: E731
    monkeypatch.setattr(socket, "getaddrinfo", resolved)
    interface = [SimpleNamespace(family=socket.AF_INET, address="192.0.2.7")]
    monkeypatch.setattr(psutil, "net_if_addrs", lambda: {"eth0": interface})
    addresses._own_addresses.cache_clear()
    addresses._resolved.cache_clear()
    names = ("192.0.2.7", "judge.lan", "own.lan", "192.0.2.8", "other.lan", "both.lan")
    assert [is_loopback(f"http://{name}:8000/v1") for name in names] == [True, True, True, False, False, False]
    addresses._own_addresses.cache_clear()
    addresses._resolved.cache_clear()


@pytest.mark.parametrize(
    ("host", "private"), [("localhost", True), ("127.0.0.2", True), ("LOCALHOST", True), ("0.0.0.0", False)]
)
def test_what_listens_is_private_by_its_address_and_not_by_its_name(host: str, private: bool):
    """`noesis serve --host` says that it is open to others, and refuses foreign names only where nobody else comes."""
    from noesis.serving.server import claim_port

    with claim_port(host, 0) as listener:
        assert is_loopback_address(listener.getsockname()[0]) is private


def test_what_other_libraries_and_children_send_is_spared_too(proxy: RawServer, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("http_proxy", f"http://127.0.0.1:{proxy.port}")
    monkeypatch.setenv("NO_PROXY", "corp.example")
    spare_loopback_from_proxies()
    code = "import sys, httpx2, urllib.request as u; print(httpx2.get(sys.argv[1]).text, u.urlopen(sys.argv[1]).read())"
    with RawServer(lambda number: ok(b"hello")) as server:
        done = subprocess.run([sys.executable, "-c", code, server.url], capture_output=True, text=True)
    assert done.stdout.split() == ["hello", "b'hello'"], done.stderr
    assert proxy.requests == []


def test_the_server_of_a_model_is_reached_without_a_proxy(
    proxy: RawServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """`noesis chat`, `serve`, `connect --probe` and `gguf` talk to llama.cpp on a socket or port of this machine."""
    from noesis.llm.llama_cpp import LlamaServer

    monkeypatch.setenv("HTTP_PROXY", f"http://127.0.0.1:{proxy.port}")
    server = LlamaServer(write_reciter(tmp_path / "a.gguf", ["plain", " words"]), parallel=1, context=256)
    client = LLMClient(server.url + "/v1", server.key, "m", socket=server.socket)
    assert client.complete([{"role": "user", "content": "a"}], max_tokens=2).completion_tokens
    client.close()
    assert server.busy() == 0 and server.stop(10)
    assert proxy.requests == []


def test_a_redirect_takes_neither_prompt_nor_key_elsewhere(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("NOESIS_KEY_127_0_0_1", KEY)
    with RawServer(lambda number: ok(chat())) as elsewhere:
        moved = answer(307, b"", f"Location: {elsewhere.url}/chat/completions")
        with RawServer(lambda number: moved) as server:
            (found,) = ask(server)
            with pytest.raises(Exception, match="HTTP 307"):
                LLMClient(server.url, KEY, "m").complete([{"role": "user", "content": "a"}])
        assert elsewhere.requests == []
    assert "HTTP 307" in str(found)
