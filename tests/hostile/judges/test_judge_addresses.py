"""Addresses of judges that hide where text goes, hold a password, or end in a traceback."""

from __future__ import annotations

import pytest

from noesis.core.errors import UsageError
from noesis.llm.addresses import host_and_port, is_loopback
from noesis.llm.clients.chat_client import LLMClient
from noesis.llm.clients.openai_client import key_for
from noesis.llm.clients.spec import parse_spec

KEY = "sk-a-key-of-some-length"
BAD = [
    pytest.param("http://ex\x1bample.com/v1", id="an escape character in a judge's host"),
    pytest.param("http://host/v1\x1b[31m", id="an escape sequence in a judge's path"),
    pytest.param("http://host\n.evil.example/v1", id="a line break in a judge's host"),
    pytest.param("http://api.openai.com\\@evil.example/v1", id="a backslash before the real host"),
    pytest.param("http://api.openai.com%2f@evil.example/v1", id="an escaped slash before the real host"),
    pytest.param("http://us%65r:secret@evil.example/v1", id="a user and a password in a judge's address"),
    pytest.param("http://:secret@evil.example/v1", id="a password alone in a judge's address"),
    pytest.param("http://secret@api.openai.com@evil.example/v1", id="a host that is part of a password"),
    pytest.param("http://%6cocalhost/v1", id="a percent-encoded judge's host"),
    pytest.param("http://１２７.0.0.1/v1", id="a judge's host in full-width digits"),
    pytest.param("http://аpi.openai.com/v1", id="a Cyrillic letter in a judge's host"),
    pytest.param("http://api.openai.com。evil.example/v1", id="an ideographic full stop in a judge's host"),
    pytest.param("http://[::zz]/v1", id="brackets without an address"),
    pytest.param("http://[::1/v1", id="a bracket that is never closed"),
    pytest.param("http://[fe80::1%25eth0]evil.example/v1", id="words after the bracket"),
    pytest.param("http://host:99999/v1", id="a port above all ports"),
    pytest.param("http://host:0/v1", id="port 0"),
    pytest.param("http://a..b/v1", id="a host with an empty label"),
    pytest.param("http://-x/v1", id="a host that looks like an option"),
    pytest.param("http://host/v1?key=secret", id="a key in a judge's query"),
    pytest.param("http://host/v1#secret", id="a fragment in a judge's address"),
    pytest.param("file:///etc/passwd", id="a file as a judge's address"),
]


@pytest.mark.parametrize("url", BAD)
def test_an_address_that_does_not_say_where_text_goes_is_refused(url: str):
    with pytest.raises(UsageError) as told:
        parse_spec(f"openai:{url}:m")
    with pytest.raises(UsageError) as told_client:
        LLMClient(url, KEY, "m")
    for message in (str(told.value), str(told_client.value)):
        assert message.isprintable() and ("secret" not in message or "@" not in url)


@pytest.mark.parametrize(
    ("text", "url", "model"),
    [
        ("openai:https://api.openai.com/v1:gpt-5-mini", "https://api.openai.com/v1", "gpt-5-mini"),
        ("openai:http://127.0.0.1:11434/v1:qwen3:8b", "http://127.0.0.1:11434/v1", "qwen3:8b"),
        ("openai:http://llm_judge:8000/v1/:m", "http://llm_judge:8000/v1", "m"),
        ("openai:http://[::1]:8080/v1:m", "http://[::1]:8080/v1", "m"),
        ("openai:http://localhost:8080:m@latest", "http://localhost:8080", "m@latest"),
        ("openai:https://api.cloudflare.com/ai/v1:@cf/meta/llama", "https://api.cloudflare.com/ai/v1", "@cf/meta/llama"),
        ("openai:https://openrouter.ai/api/v1/chat/completions:a/b:free", "https://openrouter.ai/api/v1", "a/b:free"),
        ("openai:https://x.openai.azure.com/openai/v1/:gpt 5", "https://x.openai.azure.com/openai/v1", "gpt 5"),
    ],
)  # fmt: skip
def test_addresses_as_people_write_them_are_read(text: str, url: str, model: str):
    spec = parse_spec(text)
    assert (spec.url, spec.model) == (url, model)


@pytest.mark.parametrize("model", ["m\x1b[31m", "m\n", " m", "m\u202e"], ids=ascii)
def test_a_model_whose_name_would_paint_the_terminal_is_refused(model: str):
    with pytest.raises(UsageError, match="the model's name"):
        parse_spec(f"openai:http://127.0.0.1/v1:{model}")


def test_it_is_announced_with_its_port_and_without_a_password():
    assert host_and_port(parse_spec("openai:http://127.0.0.1:9/v1:m").url) == "127.0.0.1:9"


def test_a_key_goes_by_tls_or_stays_here(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("NOESIS_KEY_EVIL_EXAMPLE", KEY)
    monkeypatch.setenv("NOESIS_KEY_IP6__LOCALHOST", KEY)
    urls = ("http://evil.example/v1", "https://evil.example/v1", "http://ip6-localhost:8000/v1")
    assert [key_for(url) for url in urls] == [None, KEY, KEY]
    assert is_loopback(urls[2])
