"""One chat request on its way to llama.cpp and its answer on the way back: whole, or streamed as server-sent events.

If the client leaves, the connection to llama.cpp is closed with it, and llama.cpp stops writing.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any

import aiohttp
from aiohttp import web

from noesis.serving.analysis_filter import AnalysisFilter, TokenFilter, ends_inside_analysis
from noesis.serving.metrics import Metrics
from noesis.serving.protocol import ApiError, ChatRequest

LAST_WORD_S = 1.0  # for a client to take the error that ends its stream
LONGEST_EVENT = 4_000_000  # bytes of one event of llama.cpp; 20 alternatives to a token are a few thousand


@dataclass(frozen=True)
class Target:
    """Where a model name leads.

    scale: of the adapter; None where there is none
    """

    url: str
    key: str
    scale: float | None = None


class Relay:
    """Requests to one target."""

    def __init__(self, http: aiohttp.ClientSession, target: Target, metrics: Metrics) -> None:
        self._http, self._target, self._metrics = http, target, metrics

    def _post(self, ask: ChatRequest) -> Any:
        body = ask.body | {"stream": ask.stream}
        if ask.stream:
            body["stream_options"] = {"include_usage": True}
        if self._target.scale is not None:
            body["lora"] = [{"id": 0, "scale": self._target.scale}]
        return self._http.post(
            self._target.url + "/v1/chat/completions",
            json=body,
            headers={"Authorization": f"Bearer {self._target.key}"},
        )

    async def complete(self, ask: ChatRequest) -> dict[str, Any]:
        """The answer as one object. Raises ApiError where llama.cpp refuses."""
        async with self._post(ask) as reply:
            if reply.status != 200:
                raise await error_from_llama(reply)
            answer = await reply.json()
        self._count(ask, answer.get("usage"))
        choice = answer["choices"][0]
        text, entries = (
            str(choice["message"].get("content") or "").removeprefix(ask.prefill),
            (choice.get("logprobs") or {}).get("content") or [],
        )
        if not ask.include_analysis:
            shown = AnalysisFilter(inside=ends_inside_analysis(ask.prefill))
            tokens = TokenFilter(shown)
            text = shown.feed(text) + shown.finish()
            entries = tokens.feed(entries)
        return {
            "id": answer["id"],
            "object": "chat.completion",
            "created": answer["created"],
            "model": ask.model,
            "choices": [
                {
                    "index": 0,
                    "message": {"role": "assistant", "content": text, "refusal": None},
                    "logprobs": {"content": entries, "refusal": None} if "logprobs" in ask.body else None,
                    "finish_reason": choice.get("finish_reason"),
                }
            ],
            "usage": _usage(answer.get("usage")),
        }

    async def stream(self, ask: ChatRequest, request: web.Request, limit_s: float) -> web.StreamResponse:
        """The answer as events. Before the first one a refusal still has a status; after it, it is an event, and the connection ends."""
        response = web.StreamResponse(
            headers={"Content-Type": "text/event-stream", "Cache-Control": "no-store", "X-Accel-Buffering": "no"}
        )
        try:
            async with asyncio.timeout(limit_s):
                await self._pass_on(ask, request, response)
        except (ApiError, aiohttp.ClientError, TimeoutError) as error:
            if not response.prepared:
                raise
            await _break_off(request, response, error)
        return response

    async def _pass_on(self, ask: ChatRequest, request: web.Request, response: web.StreamResponse) -> None:
        started = time.monotonic()
        shown = AnalysisFilter(inside=ends_inside_analysis(ask.prefill))
        tokens = None if ask.include_analysis else TokenFilter(shown)
        async with self._post(ask) as reply:
            if reply.status != 200:
                raise await error_from_llama(reply)
            await response.prepare(request)
            first = True
            async for event in events(reply.content):
                if "error" in event:
                    raise ApiError(502, _said(event), code="model_error")
                head = {
                    "id": event["id"],
                    "object": "chat.completion.chunk",
                    "created": event["created"],
                    "model": ask.model,
                }
                self._count(ask, event.get("usage"))
                for choice in event.get("choices", []):
                    delta, entries = choice.get("delta") or {}, (choice.get("logprobs") or {}).get("content") or []
                    text, ends = str(delta.get("content") or ""), choice.get("finish_reason")
                    if text and first:
                        self._metrics.first_token_seconds.add(time.monotonic() - started)
                        first = False
                    if tokens is not None:
                        text = shown.feed(text) + (shown.finish() if ends else "")
                        entries = tokens.feed(entries)
                    out = {"role": "assistant", "content": ""} if delta.get("role") else {}
                    if text:
                        out["content"] = text
                    if out or entries or ends:
                        logprobs = {"content": entries, "refusal": None} if "logprobs" in ask.body else None
                        await _send(
                            response,
                            head
                            | {"choices": [{"index": 0, "delta": out, "logprobs": logprobs, "finish_reason": ends}]},
                        )
                if event.get("usage") and ask.usage_in_stream:
                    await _send(response, head | {"choices": [], "usage": _usage(event["usage"])})
            await response.write(b"data: [DONE]\n\n")
            await response.write_eof()

    def _count(self, ask: ChatRequest, usage: dict[str, Any] | None) -> None:
        for kind in ("prompt", "completion"):
            self._metrics.tokens[ask.model, kind] += int((usage or {}).get(f"{kind}_tokens", 0))


async def events(content: aiohttp.StreamReader) -> AsyncIterator[dict[str, Any]]:
    """The JSON objects of a stream of server-sent events, up to `[DONE]`."""
    buffer = b""
    async for piece in content.iter_any():
        buffer += piece
        *whole, buffer = buffer.split(b"\n")
        if len(buffer) > LONGEST_EVENT:
            raise ApiError(502, "llama.cpp sent an event without end", code="model_error")
        for line in whole:
            if line.startswith(b"data: ") and (data := line[6:].strip()) != b"[DONE]":
                yield json.loads(data)
            elif line.startswith(b"error: "):
                yield {"error": json.loads(line[7:])}


async def error_from_llama(reply: aiohttp.ClientResponse) -> ApiError:
    """llama.cpp's error as one of ours."""
    try:
        error = (await reply.json(content_type=None))["error"]
    except (ValueError, KeyError, TypeError):
        return ApiError(502, f"llama.cpp answers with HTTP {reply.status}", code="model_error")
    if error.get("type") == "exceed_context_size_error":
        message = f"the conversation has {error.get('n_prompt_tokens')} tokens, more than the {error.get('n_ctx')} of the context: shorten it"
        return ApiError(400, message, code="context_length_exceeded", param="messages")
    return ApiError(
        reply.status if 400 <= reply.status < 500 and reply.status not in (401, 403) else 502,
        _said({"error": error}),
        code="model_error",
    )


def _said(event: dict[str, Any]) -> str:
    error = event["error"]
    return (
        f"llama.cpp refuses the request: {str(error.get('message', error) if isinstance(error, dict) else error)[:500]}"
    )


def _usage(usage: dict[str, Any] | None) -> dict[str, int] | None:
    return (
        None
        if usage is None
        else {name: int(usage.get(name, 0)) for name in ("prompt_tokens", "completion_tokens", "total_tokens")}
    )


async def _break_off(request: web.Request, response: web.StreamResponse, error: Exception) -> None:
    """Say why, if the client still reads, and end the connection: without `[DONE]`, so that nobody takes the answer for whole."""
    told = error if isinstance(error, ApiError) else ApiError(504, "the answer took too long", code="timeout")
    if isinstance(error, aiohttp.ClientError):
        told = ApiError(502, f"llama.cpp does not answer: {error}", code="model_error")
    try:
        async with asyncio.timeout(LAST_WORD_S):
            await _send(response, told.body())
            await response.write_eof()
    except TimeoutError:
        if isinstance(request.transport, asyncio.Transport):
            request.transport.abort()
    response.force_close()


async def _send(response: web.StreamResponse, event: dict[str, Any]) -> None:
    await response.write(b"data: " + json.dumps(event, ensure_ascii=False, separators=(",", ":")).encode() + b"\n\n")
