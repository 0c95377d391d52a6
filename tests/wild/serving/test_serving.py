"""What clients and people really send to `noesis serve`: each has its documented answer, and none a 500."""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterator
from typing import Any

import pytest

from helpers.running_server import KEY, Client, reciters, running
from helpers.tiny_gguf import write_reciter
from noesis.serving.protocol import Limits
from noesis.serving.server import ModelFiles

pytestmark = pytest.mark.timing
HI = [{"role": "user", "content": "Hello"}]
SAID = "Courage is knowledge."


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Client]:
    limits = Limits(parallel=2, context=512, max_tokens=64)
    with running(reciters(tmp_path_factory.mktemp("gguf")), limits) as client:
        yield client


ANSWERED = {
    "options of a stream that is none": {"stream_options": {"include_usage": True}},
    "fields that are null": dict.fromkeys(
        ("stream", "stream_options", "n", "stop", "max_tokens", "max_completion_tokens", "temperature", "top_p", "seed",
         "presence_penalty", "frequency_penalty", "logit_bias", "tools", "tool_choice", "parallel_tool_calls", "user",
         "response_format", "logprobs", "top_logprobs", "metadata", "store", "audio", "modalities", "functions")
    ),
    "no tools, and none chosen": {"tools": [], "tool_choice": "none", "functions": [], "function_call": "none"},
    "a choice of tools left to the model": {"tool_choice": "auto", "parallel_tool_calls": True},
    "no biases": {"logit_bias": {}},
    "who asks, and for what": {"user": "a", "metadata": {"a": "b"}, "store": True, "service_tier": "auto"},
    "fields of other servers": {"top_k": 40, "min_p": 0.1, "reasoning_effort": "low", "keep_alive": "5m", "options": {}},
    "text asked for by name": {"response_format": {"type": "text"}, "modalities": ["text"]},
    "a number as a float": {"n": 1.0, "max_tokens": 60.0, "seed": 7.0},
    "one text that stops": {"stop": "zzz"},
    "a list of texts that stop": {"stop": ["zzz", "yyy"]},
    "an empty list of them": {"stop": []},
    "an empty text that stops": {"stop": ""},
    "more texts that stop than OpenAI takes": {"stop": [f"zz{i}" for i in range(9)] + [""]},
    "no limit, as LM Studio says it": {"max_tokens": -1},
    "a developer's message": {"messages": [{"role": "developer", "content": "Be brief."}, *HI]},
    "names and ids in messages": {"messages": [{"role": "user", "name": "Ana", "id": 3, "content": "Hello"}]},
    "content in parts": {"messages": [{"role": "user", "content": [{"type": "text", "text": "Hello"}]}]},
    "content in parts of the newer protocol": {"messages": [{"role": "user", "content": [{"type": "input_text", "text": "Hello"}]}]},
    "an answer of before in parts": {"messages": [*HI, {"role": "assistant", "content": [{"type": "output_text", "text": "a"}, {"type": "refusal", "refusal": "b"}]}, *HI]},
    "the model behind a provider's name": {"model": "openai/noesis"},
    "the model in another case": {"model": "Noesis"},
    "the model with Ollama's tag": {"model": "noesis:latest"},
    "no content": {"messages": [{"role": "user", "content": None}]},
    "no calls of tools": {"messages": [*HI, {"role": "assistant", "content": "a", "tool_calls": None}, *HI]},
    "a system message alone": {"messages": [{"role": "system", "content": "x"}]},
}  # fmt: skip


@pytest.mark.parametrize("body", ANSWERED.values(), ids=ANSWERED)
def test_what_clients_send_beside_the_question_is_answered(server: Client, body: dict[str, Any]):
    reply = server.chat(**body)
    assert reply.status_code == 200, reply.text
    assert reply.json()["choices"][0]["message"]["content"] == SAID


REFUSED = {
    "tools": {"tools": [{"type": "function", "function": {"name": "f"}}]},
    "tool_choice": {"tool_choice": "required"},
    "function_call": {"function_call": {"name": "f"}},
    "logit_bias": {"logit_bias": {"5": 1}},
    "modalities": {"modalities": ["text", "audio"]},
    "n": {"n": True},
    "seed": {"seed": 1.5},
    "max_tokens": {"max_tokens": -2},
    "messages": {"messages": []},
    "messages[0].content": {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {}}]}]},
    "messages[0].role": {"messages": [{"role": "tool", "content": "x", "tool_call_id": "1"}]},
    "messages[1].tool_calls": {"messages": [*HI, {"role": "assistant", "content": None, "tool_calls": [{"id": "1"}]}]},
    "model": {"model": "modèle-日本"},
}


@pytest.mark.parametrize(("param", "body"), REFUSED.items(), ids=REFUSED)
def test_what_is_not_supported_is_refused_by_name(server: Client, param: str, body: dict[str, Any]):
    reply = server.chat(**body)
    assert (reply.status_code, reply.json()["error"]["param"]) == (404 if param == "model" else 400, param)


def test_the_last_message_may_be_the_beginning_of_the_answer(server: Client):
    assert server.chat(messages=[*HI, {"role": "assistant", "content": "x"}], max_tokens=4).status_code == 200


@pytest.mark.parametrize("count", [None, 0, 2])
def test_as_many_alternatives_to_a_token_as_were_asked_for(server: Client, count: int | None):
    """issue 15, 20: none where `top_logprobs` is 0."""
    for entries in (
        server.chat(logprobs=True, top_logprobs=count).json()["choices"][0]["logprobs"]["content"],
        [e for event in server.events(logprobs=True, top_logprobs=count)
         for e in event["choices"][0]["logprobs"]["content"]],
    ):  # fmt: skip
        assert len(entries) > 2 and all(len(e["top_logprobs"]) == (count or 0) for e in entries)


PROBES = [
    *(("POST", f"/v1/{name}") for name in ("embeddings", "completions", "responses", "messages", "moderations")),
    *(("POST", f"/v1/{name}") for name in ("messages/count_tokens", "audio/speech", "images/generations")),
    *(("GET", name) for name in ("/v1", "/props", "/slots", "/version", "/models", "/api/tags", "/api/version")),
    *(("POST", name) for name in ("/api/chat", "/api/generate", "/api/show", "/completion", "/tokenize")),
]


@pytest.mark.parametrize(("method", "path"), PROBES)
def test_other_servers_addresses_are_not_found_in_words(server: Client, method: str, path: str):
    reply = server.http.request(method, path)
    assert (reply.status_code, reply.json()["error"]["code"]) == (404, "not_found")
    assert "POST /v1/chat/completions" in reply.json()["error"]["message"]
    assert server.http.request(method, path, headers={"Authorization": ""}).status_code == 401


@pytest.mark.parametrize(
    ("method", "path", "status", "allow"),
    [
        ("HEAD", "/health", 200, None),
        ("HEAD", "/v1/models", 200, None),
        ("HEAD", "/v1/chat/completions", 405, "POST"),
        ("GET", "/v1/chat/completions", 405, "POST"),
        ("OPTIONS", "/v1/models", 405, "GET,HEAD"),
        ("OPTIONS", "/v1/chat/completions", 405, "POST"),
        ("DELETE", "/v1/models/noesis", 405, "GET,HEAD"),
    ],
)
def test_methods(server: Client, method: str, path: str, status: int, allow: str | None):
    reply = server.http.request(method, path)
    assert (reply.status_code, reply.headers.get("allow")) == (status, allow)
    assert not any(name.lower().startswith("access-control") for name in reply.headers)


BODY = json.dumps({"model": "noesis", "messages": HI}).encode()


@pytest.mark.parametrize(
    ("version", "headers", "body", "expected"),
    [
        pytest.param(b"1.0", b"Content-Length: %d" % len(BODY), BODY, b"HTTP/1.0 200", id="HTTP/1.0"),
        pytest.param(
            b"1.1", b"Transfer-Encoding: chunked", b"%x\r\n%b\r\n0\r\n\r\n" % (len(BODY), BODY), b" 200", id="in chunks"
        ),
        pytest.param(
            b"1.1", b"Expect: 100-continue\r\nContent-Length: %d" % len(BODY), BODY, b"HTTP/1.1 100", id="told to go on"
        ),
        pytest.param(
            b"1.1", b"Content-Encoding: Identity\r\nContent-Length: %d" % len(BODY), BODY, b" 200", id="not compressed"
        ),
        pytest.param(
            b"1.1",
            b"Content-Encoding: gzip\r\nContent-Length: %d" % len(gzip.compress(BODY, mtime=0)),
            gzip.compress(BODY, mtime=0),
            b" 415",
            id="compressed",
        ),
    ],
)
def test_ways_to_send(server: Client, version: bytes, headers: bytes, body: bytes, expected: bytes):
    head = b"POST /v1/chat/completions HTTP/" + version + b"\r\nHost: 127.0.0.1\r\nConnection: close\r\n"
    sock = server.raw(head + f"Authorization: Bearer {KEY}\r\n".encode() + headers + b"\r\n\r\n" + body)
    received = b""
    while piece := sock.recv(65536):
        received += piece
    assert expected in received[:14] and (b" 415" in received or SAID.encode() in received)


def test_a_connection_that_is_kept_serves_several_requests(server: Client):
    sock = server.raw()
    for _ in range(3):
        sock.sendall(b"GET /health HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n")
        assert sock.recv(4096).startswith(b"HTTP/1.1 200")
    sock.close()


@pytest.fixture(scope="module")
def pensive(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Client]:
    file = tmp_path_factory.mktemp("pensive") / "pensive.gguf"
    pieces = ["[ANÁLISE", " INTERNA]", " Pois", " é.", " [Fim", " da reflexão]", " Sim."]
    with running(
        ModelFiles(write_reciter(file, pieces), None), Limits(parallel=2, context=512, max_tokens=64)
    ) as client:
        yield client


def test_an_answer_that_is_all_analysis_says_so(pensive: Client):
    reply = pensive.chat()
    assert (reply.status_code, reply.json()["error"]["code"]) == (422, "only_analysis")
    assert "include_analysis" in reply.json()["error"]["message"]
    lines = pensive.chat(stream=True).text.splitlines()
    assert json.loads(lines[-2].removeprefix("data: "))["error"]["code"] == "only_analysis" and "Pois" not in str(lines)
    assert "Sim." in pensive.chat(include_analysis=True).json()["choices"][0]["message"]["content"]
    cut = pensive.chat(max_tokens=3).json()["choices"][0]
    assert (cut["message"]["content"], cut["finish_reason"]) == ("", "length")
