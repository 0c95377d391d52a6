"""Replies that would kill the process, fill its memory, or have it wait forever."""

from __future__ import annotations

import gzip
import json
import resource
import time
import zlib

import pytest

from helpers.endpoints.asking import SECTION, ask
from helpers.endpoints.raw_server import RawServer, answer, chat, ok
from noesis.core.console import say
from noesis.llm.clients.protocol import ModelReply, NoReplyError

KEY = "sk-a-key-of-some-length"
ZEROS = gzip.compress(bytes(200 << 20), 9)


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("noesis.llm.clients.openai_client.FIRST_WAIT", 0.001)


def others_go_on(odd, *, logprobs: int = 0, seconds: float = 5.0) -> str:
    """Why the second of three requests, which gets `odd`, has no reply; the other two have theirs."""
    section = SECTION.model_copy(update={"concurrency": 1, "timeout_seconds": seconds})

    def part(number: int):
        if number != 2:
            return ok(chat(logprobs={"content": []}))
        return odd(number) if callable(odd) else odd

    with RawServer(part) as server:
        first, second, third = ask(server, 3, section=section, logprobs=logprobs)
    assert isinstance(first, ModelReply) and isinstance(third, ModelReply)
    assert isinstance(second, NoReplyError), second
    reason = str(second)
    assert reason.isprintable() and 5 < len(reason) < 600
    return reason


def body(text: str) -> bytes:
    return ok(text.encode())


def entries(*entry: object) -> bytes:
    return ok(chat(logprobs={"content": list(entry)}))


BOMB = b'{"choices":[' + b'{"message":{"content":"7"}},' * 20_000


@pytest.mark.parametrize(
    "odd",
    [
        pytest.param(body("[" * 100_000), id="a hundred thousand brackets"),
        pytest.param(body('{"a":' * 100_000), id="a hundred thousand objects inside each other"),
        pytest.param(body('{"choices":' + "1" * 5000 + "}"), id="a number of five thousand digits"),
        pytest.param(body('{"choices":[{"message":{"content":"\\ud800"}}]}'), id="half a character in JSON's escapes"),
        pytest.param(body('{"choices":[{"message":{"content":"a\\udc00\\ud800"}}]}'), id="two halves in the wrong order"),
        pytest.param(ok(b'{"choices":[{"message":{"content":"\xed\xa0\x80"}}]}'), id="half a character in UTF-8"),
        pytest.param(ok(b'{"choices":[{"message":{"content":"\xff\xfe"}}]}'), id="bytes that are no UTF-8"),
        pytest.param(ok('{"choices":[{"message":{"content":"7"}}]}'.encode("utf-16")), id="a body in UTF-16"),
        pytest.param(body('{"choices":[{"message":{"content":NaN}}]}'), id="NaN in place of a text"),
        pytest.param(body('{"choices":[{"message":{"content":1e999}}]}'), id="infinity in place of a text"),
        pytest.param(body("null"), id="a body that is null"),
        pytest.param(body("7"), id="a body that is a number"),
        pytest.param(body('"choices"'), id="a body that is a text"),
        pytest.param(body("[]"), id="a body that is a list"),
        pytest.param(body('{"choices":[{"message":{"content":"7"}}]}{}'), id="two bodies in one"),
        pytest.param(ok({"choices": []}), id="no choices"),
        pytest.param(ok({"choices": {"0": {}}}), id="choices that are an object"),
        pytest.param(ok({"choices": "choices"}), id="choices that are a text"),
        pytest.param(ok({"choices": [None]}), id="a choice that is null"),
        pytest.param(ok({"choices": [[]]}), id="a choice that is a list"),
        pytest.param(ok({"choices": [0] * 500_000}), id="half a million choices of the wrong type"),
        pytest.param(ok({"choices": [{}]}), id="a choice without a message"),
        pytest.param(ok({"choices": [{"message": "7"}]}), id="a message that is a text"),
        pytest.param(ok(chat(["7"])), id="a text that is a list"),
        pytest.param(ok(chat({"text": "7"})), id="a text that is an object"),
        pytest.param(ok(chat(7)), id="a text that is a number"),
        pytest.param(ok(chat(True)), id="a text that is true"),
        pytest.param(ok(chat(finish_reason=7)), id="a finish that is a number"),
        pytest.param(ok(chat("7" * 20_000)), id="a text that is longer than its tokens"),
        pytest.param(ok(b"<!doctype html><h1>Sign in"), id="HTML with HTTP 200"),
        pytest.param(ok(b"", "Content-Type: application/json"), id="an empty body that claims to be JSON"),
        pytest.param(BOMB, id="a status line that is JSON"),
        pytest.param(answer(204, b""), id="HTTP 204"),
        pytest.param(answer(206, chat()), id="a part of a reply, HTTP 206"),
        pytest.param(answer(999, b"?"), id="HTTP 999"),
        pytest.param(answer(302, b"", "Location: http://127.0.0.1:1/"), id="a redirect to elsewhere"),
        pytest.param(answer(307, b"", "Location: /v1/chat/completions"), id="a redirect to itself"),
        pytest.param(answer(302, b"", "Location: http://[::1"), id="a redirect to no address"),
        pytest.param(answer(302, b"", "Location: file:///etc/passwd"), id="a redirect to a file"),
        pytest.param(answer(301, b"", "Location: http://169.254.169.254/latest/meta-data/"), id="a redirect to a cloud's metadata service"),
        pytest.param(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n{}\r\n0\r\n\r\n", id="chunks of no size"),
        pytest.param(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nffffffffffffffffffff\r\n{}", id="a chunk of more bytes than there are"),
        pytest.param(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\n{}", id="a chunk that ends early"),
        pytest.param(b"HTTP/1.1 200 OK\r\nContent-Length: -5\r\n\r\n{}", id="a length below 0"),
        pytest.param(b"HTTP/1.1 200 OK\r\nContent-Length: nine\r\n\r\n{}", id="a length that is no number"),
        pytest.param(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nContent-Length: 9\r\n\r\n{}", id="two lengths"),
        pytest.param(b"HTTP/1.1 200 OK\r\nContent-Length: 99999999999999999999\r\n\r\n{}", id="a length beyond all memory"),
        pytest.param(b"HTTP/1.1 200 OK\r\nContent-Length: " + b"9" * 5000 + b"\r\n\r\n{}", id="a length of five thousand digits"),
        pytest.param(b"HTTP/1.1 200 OK\r\n" + b"X-A: " + b"a" * 300_000 + b"\r\n\r\n{}", id="a header of 300 kB"),
        pytest.param(b"HTTP/1.1 200 OK\r\n" + b"X-A: a\r\n" * 50_000 + b"\r\n{}", id="fifty thousand headers"),
        pytest.param(b"HTTP/1.1 100 Continue\r\n\r\n" * 50_000, id="fifty thousand times Continue"),
        pytest.param(b"HTTP/9.9 200 OK\r\n\r\n{}", id="another version of HTTP"),
        pytest.param(b"HTTP/1.1 200 OK\r\nX\x00: a\r\n\r\n{}", id="a header's name with a zero byte"),
        pytest.param(ok(b"{}", "Content-Encoding: gzip"), id="gzip that is none"),
        pytest.param(ok(gzip.compress(b"{}" * 99)[:20], "Content-Encoding: gzip"), id="gzip that ends early"),
        pytest.param(ok(ZEROS, "Content-Encoding: gzip"), id="gzip that becomes a thousand times as much"),
        pytest.param(ok(gzip.compress(ZEROS), "Content-Encoding: gzip, gzip"), id="gzip inside gzip"),
        pytest.param(ok(zlib.compress(bytes(50 << 20)), "Content-Encoding: deflate"), id="a coding that was not asked for"),
        pytest.param(ok(b"{}", "Content-Encoding: gzip\x00, br\x1b[31m"), id="a coding with control characters"),
        pytest.param(ok(b'{"x":"' + b"y" * (9 << 20) + b'"}'), id="a body of nine megabytes"),
        pytest.param(answer(422, {"error": {"message": "\x1b]0;owned\x07\x1b[2J\u202e" + "no " * 9999}}), id="an error that would paint the terminal"),
        pytest.param(answer(422, b"\x1b[31m\x9b31m" + b"\xff" * 9999), id="an error in bytes"),
        pytest.param(answer(422, {"error": ["no", {"message": "no"}]}), id="an error that is a list"),
        pytest.param(answer(422, {"error": {"message": {"a": "\x1b"}}}), id="an error's message that is an object"),
    ],
)  # fmt: skip
def test_an_odd_reply_is_unscored_and_the_others_go_on(odd: bytes):
    started, before = time.monotonic(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    others_go_on(odd)
    assert time.monotonic() - started < 30
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 200_000  # kB; a bomb would take more


@pytest.mark.parametrize(
    "odd",
    [
        pytest.param(ok(chat(logprobs=[])), id="log-probabilities that are a list"),
        pytest.param(ok(chat(logprobs="x")), id="log-probabilities that are a text"),
        pytest.param(ok(chat(logprobs={"content": {"0": 1}})), id="log-probabilities whose content is an object"),
        pytest.param(entries(7), id="log-probabilities of a number"),
        pytest.param(entries({"token": "A"}), id="a token without a log-probability"),
        pytest.param(entries({"token": 7, "logprob": -1}), id="a token that is a number"),
        pytest.param(entries({"token": "A", "logprob": "-1"}), id="a log-probability as text"),
        pytest.param(entries({"token": "A", "logprob": 1e6}), id="a log-probability whose exponential is infinite"),
        pytest.param(entries({"token": "A", "logprob": -1, "top_logprobs": {"A": -1}}), id="alternatives that are an object"),
        pytest.param(entries({"token": "A", "logprob": -1, "top_logprobs": [None]}), id="an alternative that is null"),
        pytest.param(entries({"token": "A", "logprob": -1, "bytes": [256]}), id="a byte of 256"),
        pytest.param(entries({"token": "A", "logprob": -1, "bytes": [0.5]}), id="half a byte"),
        pytest.param(ok(json.dumps(chat(logprobs={"content": [{"token": "A", "logprob": -5}]})).replace("-5", "-1e999").encode()), id="a log-probability of minus infinity"),
    ],
)  # fmt: skip
def test_odd_log_probabilities_are_unscored(odd: bytes):
    assert "does not follow the OpenAI protocol" in others_go_on(odd, logprobs=5)


def test_log_probabilities_that_nobody_asked_for_are_not_read():
    with RawServer(lambda number: ok(chat(logprobs="x"))) as server:
        (found,) = ask(server)
    assert isinstance(found, ModelReply)


def drip(head: bytes, piece: bytes, every: float = 0.02):
    def part(number: int):
        yield head
        while True:
            time.sleep(every)
            yield piece

    return part


def flood(head: bytes, piece: bytes):
    def part(number: int):
        yield head
        while True:
            yield piece

    return part


HEAD = b"HTTP/1.1 200 OK\r\n"
CHUNKED = HEAD + b"Transfer-Encoding: chunked\r\n\r\n"
EMPTY_BLOCK = zlib.compressobj(0, zlib.DEFLATED, 31)


@pytest.mark.timing
@pytest.mark.parametrize(
    "odd",
    [
        pytest.param(drip(HEAD + b"\r\n", b" "), id="a byte now and then, without end"),
        pytest.param(drip(HEAD, b"X-A: a\r\n"), id="a header now and then, without end"),
        pytest.param(drip(b"", b"H"), id="a status line that never ends"),
        pytest.param(drip(CHUNKED, b"1\r\n \r\n"), id="a chunk now and then, without end"),
        pytest.param(drip(b"", b"HTTP/1.1 102 Processing\r\n\r\n"), id="it is always still processing"),
        pytest.param(drip(b"", b""), id="a connection that says nothing"),
        pytest.param(flood(HEAD + b"\r\n", b" " * 65536), id="a body without end"),
        pytest.param(flood(CHUNKED, b"1\r\n \r\n" * 9999), id="chunks without end"),
        pytest.param(
            flood(HEAD + b"Content-Encoding: gzip\r\n\r\n" + EMPTY_BLOCK.compress(b""), b"\x00\x00\x00\xff\xff" * 9999),
            id="gzip that never becomes a byte",
        ),
    ],
)
def test_a_reply_has_one_deadline_and_one_limit(odd):
    started = time.monotonic()
    others_go_on(odd, seconds=1.0)
    assert time.monotonic() - started < 20


# --- Retry-After

YEARS = "Wed, 21 Oct 9999 07:28:00 GMT"


@pytest.mark.parametrize(
    "value",
    [
        pytest.param("-5", id="Retry-After below 0"),
        pytest.param("nan", id="Retry-After NaN"),
        pytest.param("inf", id="Retry-After infinity"),
        pytest.param("1e999", id="Retry-After 1e999"),
        pytest.param("", id="an empty Retry-After"),
        pytest.param("²", id="Retry-After with a superscript"),
        pytest.param("soon", id="Retry-After in words"),
        pytest.param("0x10", id="Retry-After in hexadecimal"),
        pytest.param("1, 2", id="two values of Retry-After"),
        pytest.param("Wed, 21 Oct 1999 07:28:00 GMT", id="Retry-After in the past"),
        pytest.param("Wed, 21 Oct 0000 07:28:00 GMT", id="Retry-After in the year 0"),
        pytest.param("Wed, 99 Oct 2024 99:99:99 GMT", id="Retry-After on a day that is none"),
        pytest.param("Wed, 21 Oct 2024 07:28:00 +99999999", id="Retry-After in a zone that is none"),
        pytest.param("Wed, 21 Oct 99999999999 07:28:00 GMT", id="Retry-After in a year beyond all calendars"),
        pytest.param("9" * 5000, id="Retry-After of five thousand digits"),
        pytest.param("31536000", id="Retry-After of a year"),
        pytest.param(YEARS, id="Retry-After in eight thousand years"),
    ],
)
def test_an_endpoint_cannot_have_us_wait_forever(value: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("noesis.llm.clients.openai_client.LONGEST_WAIT", 0.3)
    section = SECTION.model_copy(update={"attempts": 2, "timeout_seconds": 20})
    started = time.monotonic()
    limited = answer(429, b"", f"Retry-After: {value}")
    with RawServer(lambda number: limited if number == 1 else ok(chat())) as server:
        (found,) = ask(server, section=section)
    assert isinstance(found, ModelReply)
    assert time.monotonic() - started < 15


# --- what is shown


def test_a_key_that_an_endpoint_repeats_is_not_shown(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("NOESIS_KEY_127_0_0_1", KEY)
    with RawServer(lambda number: answer(422, {"error": {"message": f"Bearer {KEY} is wrong"}})) as server:
        (found,) = ask(server)
        assert KEY.encode() in server.requests[0]
    assert "[key] is wrong" in str(found) and KEY not in str(found)


def test_an_error_is_shown_with_its_control_characters_visible(capsys: pytest.CaptureFixture):
    say(others_go_on(answer(422, {"error": {"message": "\x1b[31mred\r\nnext\u202e"}})))
    assert r"\x1b[31mred\r\nnext\u202e" in capsys.readouterr().out


def test_parts_refused_to_requests_at_once_are_dropped_for_all():
    """Each of eight requests at once learns of the refusal; the first to learn must not cost the others theirs."""

    def part(number: int):
        time.sleep(0.1)
        if b'"seed"' in server.requests[number - 1]:
            return answer(400, {"error": "seed is not supported"})
        return ok(chat())

    with RawServer(part) as server:
        found = ask(server, 8)
    assert all(isinstance(one, ModelReply) for one in found)


def test_an_endpoint_that_refuses_every_part_is_not_asked_forever():
    with RawServer(lambda number: answer(400, "max_tokens temperature seed logprobs response_format")) as server:
        (found,) = ask(server, logprobs=5)
        assert len(server.requests) <= 6
    assert isinstance(found, NoReplyError) and "HTTP 400" in str(found)
