"""An endpoint that `noesis connect --probe` or a user's program talks to, and a judge's text that is a trap."""

from __future__ import annotations

import json
import time

import pytest

from helpers.endpoints.raw_server import RawServer, answer, chat, ok
from helpers.project import ROOT
from noesis.core.errors import ModelError, UsageError
from noesis.llm.clients.cached_client import UnusableReplyError
from noesis.llm.clients.chat_client import LLMClient
from noesis.llm.clients.protocol import ModelReply
from noesis.tribunal.judge import SCORES, parse_reply
from noesis.tribunal.rubric import load_rubrics

KEY = "sk-a-key-of-some-length"
HI = [{"role": "user", "content": "Hi"}]
SSE = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nConnection: close\r\n\r\n"


def event(value: object) -> bytes:
    return b"data: " + (value if isinstance(value, bytes) else json.dumps(value).encode()) + b"\n\n"


def piece(**delta: object) -> dict:
    return {"choices": [{"delta": delta}]}


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("noesis.llm.clients.chat_client.LONGEST_WAIT_S", 0.01)


@pytest.mark.parametrize(
    "odd",
    [
        pytest.param(ok(b"[" * 100_000), id="an answer of a hundred thousand brackets"),
        pytest.param(ok(b'{"choices":[{"message":{"content":"\\ud800"}}]}'), id="an answer of half a character"),
        pytest.param(ok({"choices": []}), id="an answer without choices"),
        pytest.param(ok({"choices": [{"message": {"content": [7]}}]}), id="an answer that is a list of numbers"),
        pytest.param(ok(b"<html>"), id="an answer in HTML"),
        pytest.param(ok(b'"' + b"y" * (9 << 20) + b'"'), id="an answer of nine megabytes"),
        pytest.param(answer(500, {"error": {"message": f"\x1b[31m {KEY}"}}), id="an error that repeats the key"),
        pytest.param(answer(429, b"", "Retry-After: ²"), id="a Retry-After that only looks like a number"),
        pytest.param(answer(503, b"", "Retry-After: 1e999"), id="a Retry-After without end"),
        pytest.param(answer(302, b"", "Location: http://[::1"), id="an answer that leads nowhere"),
        pytest.param(b"HTTP/1.1 200 OK\r\nContent-Encoding: br\r\n\r\nx", id="an answer in a coding that was not asked for"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("streamed", [False, True], ids=["whole", "streamed"])
def test_an_odd_answer_is_one_message(odd: bytes, streamed: bool):
    with RawServer(lambda number: odd) as server, pytest.raises(ModelError) as told:
        LLMClient(server.url, KEY, "m", timeout_s=5).complete(HI, on_token=print if streamed else None)
    assert str(told.value).isprintable() and KEY not in str(told.value) and len(str(told.value)) < 600


@pytest.mark.parametrize(
    "events",
    [
        pytest.param(event(b"{"), id="an event that is no JSON"),
        pytest.param(event(b"[" * 100_000), id="an event of a hundred thousand brackets"),
        pytest.param(event(piece(content=[7])), id="a piece that is a list of numbers"),
        pytest.param(event({"choices": "x"}), id="choices that are a text"),
        pytest.param(event({"choices": [None]}), id="a choice that is null"),
        pytest.param(event({"choices": [{"delta": "x"}]}), id="a delta that is a text"),
        pytest.param(event({"choices": [{"delta": {}, "logprobs": [1]}]}), id="log-probabilities that are a list"),
        pytest.param(event({"error": {"message": "\x1b]0;x\x07" + KEY}}), id="an error in the stream that repeats the key"),
        pytest.param(b"data: " + b"x" * (9 << 20), id="a line of nine megabytes"),
        pytest.param(event(piece(content="x" * 9000)) * 1000, id="nine megabytes of pieces"),
    ],
)  # fmt: skip
def test_an_odd_stream_is_one_message(events: bytes):
    with RawServer(lambda number: SSE + events) as server, pytest.raises(ModelError) as told:
        LLMClient(server.url, KEY, "m", timeout_s=5).complete(HI, on_token=lambda text: None)
    assert str(told.value).isprintable() and KEY not in str(told.value) and len(str(told.value)) < 600


def test_a_stream_with_odd_ends_of_lines_is_read_whole():
    text = "one\u2028two\u0085three"
    with RawServer(lambda number: SSE + b": hi\n\n" + event(json.dumps(piece(content=text), ensure_ascii=False).encode()) + b"data: [DONE]\r\n\r\n") as server:  # fmt: skip
        assert LLMClient(server.url, KEY, "m").complete(HI, on_token=lambda text: None).text == text


@pytest.mark.parametrize(
    "usage",
    [
        pytest.param({"prompt_tokens": "x", "completion_tokens": []}, id="tokens of other types"),
        pytest.param({"prompt_tokens": -5, "completion_tokens": 1}, id="fewer than no tokens"),
        pytest.param([], id="a usage that is a list"),
        pytest.param("1e999", id="a usage that is a text"),
    ],
)
def test_an_odd_usage_counts_as_none(usage: object):
    with RawServer(lambda number: ok(chat("7", usage=usage))) as server:
        found = LLMClient(server.url, KEY, "m").complete(HI)
    assert (found.text, found.total_tokens) == ("7", 0)


def drip(head: bytes, piece: bytes):
    def part(number: int):
        yield head
        while True:
            time.sleep(0.05)
            yield piece

    return part


@pytest.mark.timing
@pytest.mark.parametrize(
    ("part", "streamed"),
    [
        pytest.param(drip(b"HTTP/1.1 200 OK\r\n", b"X-A: a\r\n"), False, id="headers without end"),
        pytest.param(drip(b"HTTP/1.1 200 OK\r\n\r\n", b" "), False, id="a body of a byte now and then"),
        pytest.param(drip(SSE, event(piece(content=""))), True, id="a stream of nothing, without end"),
        pytest.param(drip(SSE, b": ping\n"), True, id="a stream of comments, without end"),
    ],
)
def test_an_answer_has_a_deadline(part, streamed: bool, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("noesis.llm.clients.chat_client.STREAM_FACTOR", 1)
    started = time.monotonic()
    with RawServer(part) as server, pytest.raises(ModelError, match="no whole reply within 1 s"):
        LLMClient(server.url, KEY, "m", timeout_s=1.0).complete(HI, on_token=print if streamed else None)
    assert time.monotonic() - started < 20


@pytest.mark.parametrize(
    "url", ["http://[::1", "http://x:port/v1", "http://", "file:///etc/passwd", "x", "http://x:99999"]
)
def test_what_is_no_address_is_told(url: str):
    with pytest.raises(UsageError, match="give one such as"):
        LLMClient(url, KEY, "m")


# --- the text of a judge

ITEMS = load_rubrics(ROOT / "data" / "tribunal" / "judges").rubrics["veritas"].applicable_items({})


def verdict(**fields: object) -> str:
    reply: dict[str, object] = {"reasoning": "as it should be"}
    for item in ITEMS:
        reply |= ({f"{item.id}_span": ""} if item.span != "none" else {}) | {item.id: SCORES[1]}
    return json.dumps(reply | fields)


def test_the_plain_verdict_is_read():
    assert parse_reply(ModelReply("Well: " + verdict()), ITEMS)["reasoning"] == "as it should be"


@pytest.mark.parametrize(
    ("reason", "read"),
    [
        pytest.param("\ud800", "\\ud800", id="a reason of half a character, which no file takes"),
        pytest.param(7, "7", id="a reason that is a number"),
    ],
)
def test_a_reason_that_is_no_text_becomes_one_that_files_take(reason: object, read: str):
    found = parse_reply(ModelReply(verdict(reasoning=reason)), ITEMS)["reasoning"]
    assert found == read
    assert found.encode()


NAME = ITEMS[0].id


@pytest.mark.parametrize(
    "text",
    [
        pytest.param(verdict(**{NAME: True}), id="a score that is true"),
        pytest.param(verdict(**{NAME: 1.5}), id="a score between two"),
        pytest.param(verdict(**{NAME: None}), id="a score that is null"),
        pytest.param(verdict(**{NAME: [["2"]]}), id="a score in brackets"),
        pytest.param(verdict().replace('"1"', "1" * 5000, 1), id="a score of five thousand digits"),
        pytest.param(verdict().replace('"1"', "NaN", 1), id="a score that is NaN"),
        pytest.param(verdict().replace('"1"', "1e999", 1), id="a score of infinity"),
        pytest.param('{"a":' * 200_000, id="two hundred thousand objects inside each other"),
        pytest.param('{"a":[' * 200_000, id="objects and lists inside each other"),
        pytest.param("{" * 1_000_000, id="a million brackets"),
        pytest.param('{"' * 500_000, id="half a million objects that begin"),
        pytest.param('{"a":"' * 200_000, id="texts that end where the next begins"),
        pytest.param("", id="an empty text"),
    ],
)
def test_a_trap_in_a_judges_text_is_unusable_at_once(text: str):
    started = time.monotonic()
    with pytest.raises(UnusableReplyError) as told:
        parse_reply(ModelReply(text), ITEMS)
    assert time.monotonic() - started < 5
    assert str(told.value).isprintable() and len(str(told.value)) < 200
