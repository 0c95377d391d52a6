"""Endpoints as providers really are: what they refuse, how they spell it, and what stands in a reply."""

from __future__ import annotations

import json
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest

from helpers.endpoints.asking import MAX_TOKENS, SECTION, ask
from helpers.endpoints.raw_server import USAGE, RawServer, answer, chat, ok
from noesis.core.errors import ModelError
from noesis.llm.clients.chat_client import LLMClient
from noesis.llm.clients.protocol import ModelReply, NoReplyError
from noesis.llm.clients.spending import Spending
from noesis.llm.http_reply import HttpReply, retry_after_of


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("noesis.llm.clients.openai_client.FIRST_WAIT", 0.001)


def message(**fields: Any) -> dict[str, Any]:
    return chat() | {"choices": [{"message": {"role": "assistant"} | fields, "finish_reason": "stop"}]}


# --- what is in a reply


@pytest.mark.parametrize(
    "body",
    [
        pytest.param(message(content=[{"type": "thinking", "thinking": [{"type": "text", "text": "hm"}]}, {"type": "text", "text": "7"}]), id="Mistral: thinking and text as parts"),
        pytest.param(message(content=[{"type": "output_text", "text": "7", "annotations": []}]), id="a part with annotations"),
        pytest.param(message(content="7", reasoning_content="hm {", refusal=None, tool_calls=[], audio=None), id="vLLM and DeepSeek: reasoning_content"),
        pytest.param(message(content="7", reasoning="hm", reasoning_details=[{"type": "reasoning.text"}]), id="OpenRouter: reasoning_details"),
        pytest.param(message(content="<think>\n{\"a\": 1}\n</think>7"), id="a thought in the text"),
        pytest.param(message(content="[THINK]hm[/THINK]7"), id="Magistral's marks of a thought"),
        pytest.param(chat("7", logprobs=None, index=0, content_filter_results={"hate": {"filtered": False}}), id="Azure: the content filter's results"),
        pytest.param(chat("7", finish_reason="eos"), id="Together: it ended with eos"),
        pytest.param(chat("7", finish_reason=None), id="no reason why it ended"),
        pytest.param(message(content=["7"]), id="parts that are plain texts"),
        pytest.param(message(content=[{"text": "7"}, {"type": "reference"}]), id="a part without a type"),
        pytest.param(chat("7", finish_reason=1), id="why it ended as a number"),
        pytest.param(chat("7", finish_reason={"type": "stop", "matched": 2}), id="SGLang: why it ended as an object"),
        pytest.param(chat("7", finish_reason="⏹"), id="why it ended in a word that nobody knows"),
        pytest.param(chat("7") | {"error": None, "timings": {"prompt_n": 3}, "system_fingerprint": None}, id="llama.cpp: error null and timings"),
    ],
)  # fmt: skip
def test_the_answer_is_read(body: dict):
    with RawServer(lambda number: ok(body)) as server:
        (found,) = ask(server)
    assert isinstance(found, ModelReply) and found.text.strip() == "7"


@pytest.mark.parametrize(
    "raw",
    [
        pytest.param(
            json.dumps(chat("7", logprobs=float("-inf"))).encode(), id="vLLM: minus infinity where nobody looks"
        ),
        pytest.param(b"\xef\xbb\xbf" + json.dumps(chat("7")).encode(), id="a byte order mark"),
    ],
)
def test_a_paid_reply_is_read_though_it_is_no_strict_json(raw: bytes):
    with RawServer(lambda number: ok(raw)) as server:
        (found,) = ask(server)
    assert isinstance(found, ModelReply) and found.text == "7"


@pytest.mark.parametrize(
    "word", ["length", "MAX_TOKENS", "max_tokens", "model_length", "max_output_tokens", {"type": "length", "length": 9}]
)
def test_cut_off_is_told_however_it_is_spelt(word: Any):
    with RawServer(lambda number: ok(chat("7", finish_reason=word))) as server:
        (found,) = ask(server)
    assert isinstance(found, ModelReply) and found.finish == "length"


@pytest.mark.parametrize(
    ("body", "why"),
    [
        pytest.param(message(content=None, refusal="I can't help with that."), "the model refuses: \"I can't", id="OpenAI: a refusal"),
        pytest.param(message(content=None, reasoning_content="so it is 7"), "thoughts, but no answer", id="vLLM: all of it in reasoning_content"),
        pytest.param(message(content="<think>so it is 7"), "thoughts, but no answer", id="a thought that does not end"),
        pytest.param(chat(None, finish_reason="content_filter"), "content_filter", id="Azure: a content filter"),
    ],
)  # fmt: skip
def test_a_reply_without_an_answer_says_why(body: dict, why: str):
    with RawServer(lambda number: ok(body)) as server:
        (found,) = ask(server)
    assert isinstance(found, ModelReply) and not found.text and why in found.finish


@pytest.mark.parametrize(
    ("usage", "tokens", "usd"),
    [
        pytest.param(dict.fromkeys(USAGE), (0, 0), None, id="a usage of nulls"),
        pytest.param(USAGE | {"prompt_tokens_details": None, "cost": None, "total_tokens": None}, (1000, 200), 1.2, id="details and cost null"),
        pytest.param("none", (0, 0), None, id="a usage in words"),
        pytest.param(USAGE | {"total_tokens": 1700}, (1000, 700), 1.7, id="Gemini and xAI: thoughts in the total alone"),
        pytest.param({"prompt_tokens": 1000.0, "completion_tokens": 200.0, "total_tokens": 1200.0}, (1000, 200), 1.2, id="whole numbers as fractions"),
        pytest.param({"input_tokens": 1000, "output_tokens": 200}, (1000, 200), 1.2, id="the names of OpenAI's and Anthropic's other protocols"),
        pytest.param(USAGE | {"prompt_tokens": 10.5}, (0, 0), None, id="half a token"),
        pytest.param(USAGE | {"total_tokens": 7}, (1000, 200), 1.2, id="a total below its parts"),
    ],
)  # fmt: skip
def test_a_paid_reply_is_kept_whatever_its_usage(usage: Any, tokens: tuple[int, int], usd: float | None):
    with RawServer(lambda number: ok(chat(usage=usage))) as server:
        (found,) = ask(server)
    assert isinstance(found, ModelReply) and found.text == "7"
    assert (found.prompt_tokens, found.completion_tokens) == tokens
    assert found.usd == pytest.approx(usd) if usd else found.usd > 0


def test_a_stream_whose_pieces_are_parts_is_read():
    """Mistral's, while it thinks and when it answers."""
    parts = [[{"type": "thinking", "thinking": [{"type": "text", "text": "hm"}]}], [{"type": "text", "text": "7"}], "!"]
    events = [json.dumps({"choices": [{"delta": {"content": part}, "finish_reason": None}]}) for part in parts]
    body = "".join(f"data: {event}\n\n" for event in [*events, "[DONE]"]).encode()
    with RawServer(lambda number: ok(body, "Content-Type: text/event-stream")) as server:
        client = LLMClient(server.url, "sk-a-key-of-some-length", "m")
        assert client.complete([{"role": "user", "content": "a"}], on_token=lambda text: None).text == "7!"


# --- what is refused

FASTAPI = {"detail": [{"type": "extra_forbidden", "loc": ["body", "seed"], "msg": "Extra inputs", "input": {"temperature": 0}}]}  # fmt: skip
OPTIONAL = ("max_tokens", "temperature", "seed", "logprobs")


@pytest.mark.parametrize(
    ("status", "body", "left_out"),
    [
        pytest.param(400, {"error": {"message": "Unsupported parameter: 'max_tokens' is not supported with this model. Use 'max_completion_tokens' instead.", "param": "max_tokens"}}, "max_tokens", id="OpenAI: max_completion_tokens"),
        pytest.param(400, {"error": {"message": "Unsupported value: 'temperature' does not support 0 with this model.", "param": "temperature"}}, "temperature", id="OpenAI: the default temperature only"),
        pytest.param(422, {"object": "error", "message": FASTAPI}, "seed", id="Mistral: no seed, and the request repeated"),
        pytest.param(422, FASTAPI, "seed", id="FastAPI: the field by its place"),
        pytest.param(400, [{"error": {"code": 400, "message": "Invalid JSON payload received. Unknown name \"seed\": Cannot find field.", "status": "INVALID_ARGUMENT"}}], "seed", id="Gemini: an error in a list"),
        pytest.param(400, {"error": "`logprobs` is not supported with this model, set seed"}, "logprobs", id="the one that is named first"),
        pytest.param(200, {"error": {"code": 400, "message": "seed is not supported"}}, "seed", id="OpenRouter: an error with HTTP 200"),
        pytest.param(422, b"Unprocessable: unknown field", "seed", id="none is named: one after the other"),
        pytest.param(400, b"<html><head><title>400 Bad Request</title></head></html>", "seed", id="a page of HTML names none"),
    ],
)  # fmt: skip
def test_what_an_endpoint_refuses_is_left_out_and_nothing_else(status: int, body: Any, left_out: str):
    def part(number: int) -> bytes:
        sent = json.loads(server.requests[number - 1].split(b"\r\n\r\n", 1)[1])
        return answer(status, body) if left_out in sent else ok(chat(logprobs={"content": []}))

    with RawServer(part) as server:
        found = ask(server, 2, section=SECTION.model_copy(update={"concurrency": 1}), logprobs=5)
        sent = [json.loads(request.split(b"\r\n\r\n", 1)[1]) for request in server.requests]
    assert all(isinstance(one, ModelReply) for one in found)
    assert len(sent) == 3 and set(OPTIONAL) - set(sent[1]) == set(OPTIONAL) - set(sent[2]) == {left_out}
    assert ("max_completion_tokens" in sent[2]) is (left_out == "max_tokens")


def test_a_refusal_that_leaving_out_did_not_end_changes_no_other_request():
    """A text about temperature that is refused must not switch the temperature off."""

    def part(number: int) -> bytes:
        refused = b"number, please: 0" in server.requests[number - 1]
        return answer(400, {"error": {"message": "context too long: … the temperature …"}}) if refused else ok(chat())

    with RawServer(part) as server:
        first, second = ask(server, 2, section=SECTION.model_copy(update={"concurrency": 1}))
        assert b'"temperature"' in server.requests[-1]
    assert isinstance(first, NoReplyError) and "context too long" in str(first)
    assert isinstance(second, ModelReply)


@pytest.mark.parametrize(
    ("reply", "words"),
    [
        pytest.param(answer(402, {"error": {"message": "Insufficient credits"}}), "can't pay.*Insufficient credits", id="HTTP 402"),
        pytest.param(ok({"error": {"code": 402, "message": "Insufficient credits"}}), "can't pay.*Insufficient credits", id="402 inside HTTP 200"),
        pytest.param(answer(429, {"error": {"code": "insufficient_quota", "message": "You exceeded your current quota"}}), "can't pay.*exceeded your current", id="OpenAI: a quota that is used up, as 429"),
        pytest.param(answer(401, {"error": {"message": "Incorrect API key"}}), "key is not accepted.*Incorrect API key", id="HTTP 401"),
        pytest.param(answer(404, {"error": {"message": "model 'm' not found, try pulling it first"}}), "no such model.*pulling it first", id="Ollama: a model that was not pulled"),
    ],
)  # fmt: skip
def test_what_would_refuse_every_request_ends_the_command_in_the_provider_s_words(reply: bytes, words: str):
    with RawServer(lambda number: reply) as server, pytest.raises(ModelError, match=words) as told:
        (found,) = ask(server, section=SECTION.model_copy(update={"attempts": 3}))
        assert len(server.requests) == 1
        raise found
    assert not isinstance(told.value, NoReplyError)


def test_a_text_that_moderation_refuses_does_not_end_the_command():
    flagged = answer(403, {"error": {"message": "requires moderation", "metadata": {"reasons": ["violence"]}}})
    with RawServer(lambda number: flagged if number == 2 else ok(chat())) as server:
        found = ask(server, 3, section=SECTION.model_copy(update={"concurrency": 1}))
    assert [type(one) for one in found] == [ModelReply, NoReplyError, ModelReply]
    assert "requires moderation" in str(found[1])


@pytest.mark.parametrize(
    ("reply", "words"),
    [
        pytest.param(answer(429, {"error": {"message": "Rate limit reached"}}, "Retry-After: 0"), "HTTP 429, 2 attempts: 'Rate limit", id="429 without end"),
        pytest.param(ok({"error": {"message": "Provider returned error", "code": 502}}), "HTTP 502, 2 attempts: 'Provider returned", id="OpenRouter: 502 inside HTTP 200"),
        pytest.param(ok({"error": "model is loading"}), "HTTP 504, 2 attempts: 'model is loading", id="LM Studio: an error as text with HTTP 200"),
        pytest.param(ok(chat(None, error={"code": 502, "message": "upstream broke"}, finish_reason="error")), "upstream broke", id="OpenRouter: an error inside a choice"),
        pytest.param(answer(503, b"<!DOCTYPE html><html><head><title>Service &amp; more</title></head><body>" + b"x" * 9999), "'Service & more'", id="a page of HTML has its title shown"),
        pytest.param(answer(422, {"detail": "text too long"}), "'text too long'", id="FastAPI: a detail in words"),
    ],
)  # fmt: skip
def test_the_provider_s_own_words_are_the_reason(reply: bytes, words: str):
    with RawServer(lambda number: reply) as server:
        (found,) = ask(server, section=SECTION.model_copy(update={"attempts": 2}))
    assert isinstance(found, NoReplyError) and words in str(found)


def test_retry_after_in_milliseconds_is_read():
    response = SimpleNamespace(headers={"retry-after-ms": "250", "retry-after": "9"})
    assert retry_after_of(response) == 0.25  # type: ignore[arg-type]
    assert HttpReply(400, b'{"error": null, "detail": "no"}').message == "no"


# --- models that think


@pytest.mark.parametrize(
    "starved",
    [
        pytest.param(chat("", finish_reason="length"), id="nothing"),
        pytest.param(chat(None, finish_reason="max_tokens"), id="null"),
        pytest.param(chat("<think>let me see", finish_reason="length"), id="a thought"),
        pytest.param(message(content='{"reas', reasoning_content="hm"), id="the beginning of an answer"),
    ],
)
def test_a_model_that_thinks_gets_four_times_the_room_and_the_price_is_said(starved: dict, capsys):
    starved = starved | {"choices": [starved["choices"][0] | {"finish_reason": "length"}]}

    def part(number: int) -> bytes:
        roomy = json.loads(server.requests[number - 1].split(b"\r\n\r\n", 1)[1])["max_tokens"] == 4 * MAX_TOKENS
        return ok(chat("7") if roomy else starved)

    spending = Spending()
    with RawServer(part) as server:
        first, second = ask(server, 2, spending=spending, section=SECTION.model_copy(update={"concurrency": 1}))
        assert len(server.requests) == 3  # the second request has the room from the start
    assert isinstance(first, ModelReply) and isinstance(second, ModelReply)
    assert (first.text, first.usd, second.usd) == ("7", pytest.approx(2.4), pytest.approx(1.2))
    assert spending.usd == pytest.approx(3.6)
    said = capsys.readouterr().out
    assert said.count("thinks") == 1 and "at most 0.4000 USD each" in said


def test_it_is_asked_once_more_only():
    with RawServer(lambda number: ok(chat("", finish_reason="length"))) as server:
        (found,) = ask(server)
        assert len(server.requests) == 2
    assert isinstance(found, ModelReply) and replace(found, usd=0.0).finish == "length"
