"""Relays one chat request to llama.cpp and its answer back: whole, or streamed as server-sent events.

If the client leaves, the connection to llama.cpp is closed with it, and llama.cpp stops generating.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from typing import Any

import aiohttp
from aiohttp import web

from noesis.constitution.analysis_block import AnalysisFilter
from noesis.serving.analysis_filter import TokenFilter, ends_inside_analysis
from noesis.serving.answer_check import AnswerChecker
from noesis.serving.metrics import Metrics
from noesis.serving.protocol import FENCE, ApiError, ChatRequest

LAST_ERROR_S = 1.0  # for a client to take the error that ends its stream
UNREAD_S = 30.0  # for a client to take what is sent to it
MAX_EVENT_BYTES = 4_000_000  # of llama.cpp's; one with 20 alternatives to a token has a few thousand


@dataclass(frozen=True)
class Target:
    """Where a model is served."""

    url: str
    key: str
    socket: str | None = None  # Unix socket to connect to; None: as `url` says
    special: frozenset[str] = frozenset()  # the model's tokens that no text may contain
    scales: bool = False  # the model is a base and an adapter, which a request may scale


class Relay:
    """Relays requests to one target."""

    def __init__(self, http: aiohttp.ClientSession, target: Target, metrics: Metrics, checker: AnswerChecker) -> None:
        self._http, self._target, self._metrics, self._checker = http, target, metrics, checker

    def _post(self, chat: ChatRequest) -> Any:
        body = chat.body | {"stream": chat.stream}
        if chat.stream:
            body["stream_options"] = {"include_usage": True}
        return self._http.post(
            self._target.url + "/v1/chat/completions",
            json=body,
            headers={"Authorization": f"Bearer {self._target.key}"},
        )

    async def complete(self, chat: ChatRequest) -> dict[str, Any]:
        """The answer as one object.

        Raises:
            ApiError: llama.cpp refuses the request, or the answer breaks its schema.
        """
        async with self._post(chat) as reply:
            if reply.status != 200:
                raise await error_from_llama(reply)
            answer = await reply.json()
        self._count_tokens(chat, answer.get("usage"))
        choice = answer["choices"][0]
        text = str(choice["message"].get("content") or "").removeprefix(chat.prefill)
        if chat.is_json and FENCE.startswith(text.strip()):
            text = ""  # it was cut before the answer began: llama.cpp takes away whole fences only
        visible = _AnswerFilter(chat)
        text, entries = visible.feed(text, _logprob_entries(choice), last=True)
        await self._check(chat, text, choice.get("finish_reason"), visible)
        return {
            "id": answer["id"],
            "object": "chat.completion",
            "created": answer["created"],
            "model": chat.model,
            "choices": [
                {
                    "index": 0,
                    "message": {"role": "assistant", "content": text, "refusal": None},
                    "logprobs": _logprobs(chat, entries),
                    "finish_reason": choice.get("finish_reason"),
                }
            ],
            "usage": _usage(answer.get("usage")),
        }

    async def stream(self, chat: ChatRequest, request: web.Request, limit_s: float) -> web.StreamResponse:
        """The answer as server-sent events.

        Raises:
            ApiError: llama.cpp refuses the request. Once the first event was sent, an error is sent as an event
                instead, and the connection is closed.
        """
        response = web.StreamResponse(
            headers={"Content-Type": "text/event-stream", "Cache-Control": "no-store", "X-Accel-Buffering": "no"}
        )
        try:
            async with asyncio.timeout(limit_s):
                await self._stream_answer(chat, request, response)
        except (ApiError, aiohttp.ClientError, TimeoutError) as error:
            if not response.prepared:
                raise
            await _break_off(request, response, error)
        return response

    async def _stream_answer(self, chat: ChatRequest, request: web.Request, response: web.StreamResponse) -> None:
        started = time.monotonic()
        answer, first = _AnswerFilter(chat), True
        shown: list[str] = []
        async with self._post(chat) as reply:
            if reply.status != 200:
                raise await error_from_llama(reply)
            await response.prepare(request)
            async for event in read_events(reply.content):
                if "error" in event:
                    raise ApiError(502, _error_message(event["error"]), code="model_error")
                self._count_tokens(chat, event.get("usage"))
                if first and _has_text(event):
                    self._metrics.first_token_seconds.add(time.monotonic() - started)
                    first = False
                for chunk in _chunks(chat, event, answer):
                    for choice in chunk["choices"]:
                        shown.append(choice["delta"].get("content", ""))
                        if finish := choice["finish_reason"]:
                            await self._check(chat, "".join(shown), finish, answer)
                    await _send(response, chunk)
            await response.write(b"data: [DONE]\n\n")
            await response.write_eof()

    async def _check(self, chat: ChatRequest, text: str, finish: str | None, answer: _AnswerFilter) -> None:
        """Refuse a finished answer that is all analysis, or breaks its schema; one cut at the limit says so itself."""
        if finish != "stop":
            return
        if not text and answer.has_hidden:
            message = 'the answer is nothing but its analysis: ask again, or send "include_analysis": true to see it'
            raise ApiError(422, message, code="only_analysis")
        if chat.schema is not None:
            await self._checker.require_valid(chat.schema, text)

    def _count_tokens(self, chat: ChatRequest, usage: dict[str, Any] | None) -> None:
        for kind in ("prompt", "completion"):
            self._metrics.tokens[chat.model, kind] += int((usage or {}).get(f"{kind}_tokens", 0))


class _AnswerFilter:
    """The visible part of an answer and its log-probabilities: all of it where the client wants the analysis."""

    def __init__(self, chat: ChatRequest) -> None:
        self._text: AnalysisFilter | None = None
        if not chat.include_analysis:
            self._text = AnalysisFilter(inside=ends_inside_analysis(chat.prefill))
            self._tokens = TokenFilter(self._text)

    @property
    def has_hidden(self) -> bool:
        return self._text is not None and bool(self._text.hidden)

    def feed(self, text: str, entries: list[dict[str, Any]], *, last: bool) -> tuple[str, list[dict[str, Any]]]:
        """What can be shown now that a piece of text and its entries have arrived."""
        if self._text is None:
            return text, entries
        visible = self._text.feed(text) + (self._text.finish() if last else "")
        return visible, self._tokens.feed(entries)


def _chunks(chat: ChatRequest, event: dict[str, Any], answer: _AnswerFilter) -> Iterator[dict[str, Any]]:
    """Our events for one of llama.cpp's; none where all of it is hidden."""
    head = {
        "id": event["id"],
        "object": "chat.completion.chunk",
        "created": event["created"],
        "model": chat.model,
    }
    for choice in event.get("choices", []):
        delta, finish = choice.get("delta") or {}, choice.get("finish_reason")
        text, entries = answer.feed(str(delta.get("content") or ""), _logprob_entries(choice), last=bool(finish))
        shown = {"role": "assistant", "content": ""} if delta.get("role") else {}
        if text:
            shown["content"] = text
        if shown or entries or finish:
            logprobs = _logprobs(chat, entries)
            yield head | {"choices": [{"index": 0, "delta": shown, "logprobs": logprobs, "finish_reason": finish}]}
    if event.get("usage") and chat.usage_in_stream:
        yield head | {"choices": [], "usage": _usage(event["usage"])}


def _has_text(event: dict[str, Any]) -> bool:
    return any((choice.get("delta") or {}).get("content") for choice in event.get("choices", []))


def _logprob_entries(choice: dict[str, Any]) -> list[dict[str, Any]]:
    return (choice.get("logprobs") or {}).get("content") or []


def _logprobs(chat: ChatRequest, entries: list[dict[str, Any]]) -> dict[str, Any] | None:
    if "logprobs" not in chat.body:
        return None
    return {"content": [e | {"top_logprobs": e["top_logprobs"][: chat.alternatives]} for e in entries], "refusal": None}


def _usage(usage: dict[str, Any] | None) -> dict[str, int] | None:
    if usage is None:
        return None
    return {name: int(usage.get(name, 0)) for name in ("prompt_tokens", "completion_tokens", "total_tokens")}


async def read_events(content: aiohttp.StreamReader) -> AsyncIterator[dict[str, Any]]:
    """The JSON objects of a stream of server-sent events, up to `[DONE]`.

    Raises:
        ApiError: an event without end.
    """
    buffer = b""
    async for piece in content.iter_any():
        buffer += piece
        *lines, buffer = buffer.split(b"\n")
        if len(buffer) > MAX_EVENT_BYTES:
            raise ApiError(502, "llama.cpp sent an event without end", code="model_error")
        for line in lines:
            if line.startswith(b"data: ") and (data := line[6:].strip()) != b"[DONE]":
                yield json.loads(data)
            elif line.startswith(b"error: "):
                yield {"error": json.loads(line[7:])}


def no_answer() -> ApiError:
    """Of a connection to llama.cpp that fails: aiohttp's own words would name the socket's path."""
    message = "the model gives no answer: if its process has ended, it is being started again; try again in a while"
    return ApiError(503, message, code="model_unavailable", retry_after_s=5)


async def error_from_llama(reply: aiohttp.ClientResponse) -> ApiError:
    """llama.cpp's error response as one of ours."""
    try:
        error = (await reply.json(content_type=None))["error"]
    except (ValueError, KeyError, TypeError):
        return ApiError(502, f"llama.cpp answers with HTTP {reply.status}", code="model_error")
    if error.get("type") == "exceed_context_size_error":
        message = (
            f"the conversation has {error.get('n_prompt_tokens')} tokens, more than the context of "
            f"{error.get('n_ctx')}: shorten it"
        )
        return ApiError(400, message, code="context_length_exceeded", param="messages")
    ours = 400 <= reply.status < 500 and reply.status not in (401, 403)
    return ApiError(reply.status if ours else 502, _error_message(error), code="model_error")


def _error_message(error: Any) -> str:
    detail = error.get("message", error) if isinstance(error, dict) else error
    if "[json.exception" in str(detail):
        return "llama.cpp can't read a value in the request: leave out numbers and texts beyond the ordinary"
    return f"llama.cpp refuses the request: {str(detail)[:500]}"


async def _break_off(request: web.Request, response: web.StreamResponse, error: Exception) -> None:
    """Send the error if the client still reads, and close the connection.

    No `[DONE]` is sent, so that nobody takes the answer for complete.
    """
    if isinstance(error, aiohttp.ClientError):
        error = no_answer()
    elif not isinstance(error, ApiError):
        error = ApiError(504, "the answer took too long", code="timeout")
    try:
        async with asyncio.timeout(LAST_ERROR_S):
            await _send(response, error.body())
            await response.write_eof()
    except TimeoutError:
        if isinstance(request.transport, asyncio.Transport):
            request.transport.abort()
    response.force_close()


async def _send(response: web.StreamResponse, event: dict[str, Any]) -> None:
    """Raises TimeoutError where the client has not read for a while: it would keep its place among those served."""
    data = json.dumps(event, ensure_ascii=False, separators=(",", ":")).encode()
    async with asyncio.timeout(UNREAD_S):
        await response.write(b"data: " + data + b"\n\n")
