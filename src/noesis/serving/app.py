"""The HTTP application: who may ask, how much at once, and for how long. `noesis serve RUN` runs it.

    GET  /health                 is the server up? (no key)
    GET  /v1/models              noesis, and noesis-base where the base is served
    POST /v1/chat/completions    OpenAI's chat; besides: "include_analysis", "language" (of the system prompt: pt, en)
    POST /noesis/court           what the court says of an answer, if a judge is set
    GET  /noesis/about           languages, models, limits, judge; for the page
    GET  /metrics                for Prometheus
    GET  /                       the page, with --ui (no key: it holds no secret; it asks with the key in its address)

No other site's page may read an answer: there is no CORS header, and every answer asks for the key.
"""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any

import aiohttp
from aiohttp import web

from noesis.constitution.document import SystemPrompt
from noesis.core.errors import NoesisError, UsageError
from noesis.serving.metrics import Metrics
from noesis.serving.page import Page
from noesis.serving.protocol import ApiError, Limits, parse_json, read_chat_request, read_messages
from noesis.serving.relay import Relay, Target

CLIENT_LEFT = 499  # nginx's number, in the metrics only
UNREAD = (401, 408, 413, 415)  # refusals that come before the body was read
OPEN_ROUTES = ("/health", "/")
Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


@dataclass(frozen=True)
class AnswerJudge:
    """Who judges, and how: `hear(conversation, answer, language)` → the court's opinion as JSON."""

    name: str
    hear: Callable[[list[dict[str, str]], str, str], Awaitable[dict[str, Any]]]


class Service:
    """The handlers, and what they share."""

    def __init__(
        self,
        targets: dict[str, Target],
        *,
        key: str,
        system: SystemPrompt,
        language: str,
        limits: Limits,
        court: AnswerJudge | None = None,
        page: Page | None = None,
    ) -> None:
        """targets: model name → where it is. language: of the system prompt where a request names none."""
        self.limits, self.metrics = limits, Metrics()
        self.stopping = False
        self.connections: Callable[[], int] = lambda: 0  # open now; the server knows
        self._targets, self._system, self._language, self._court, self._page = targets, system, language, court, page
        self._key = hashlib.sha256(key.encode()).digest()
        self._started = int(time.time())
        self._hearing = asyncio.Lock()
        self._http: aiohttp.ClientSession | None = None

    @property
    def busy(self) -> bool:
        """Whether an answer or a hearing is under way."""
        return self.metrics.in_flight > 0 or self._hearing.locked()

    def application(self) -> web.Application:
        app = web.Application(client_max_size=self.limits.body_bytes, middlewares=[self._boundary])
        app.add_routes(
            [
                web.get("/health", self._health),
                web.get("/v1/models", self._models),
                web.get("/v1/models/{name}", self._model),
                web.post("/v1/chat/completions", self._chat),
                web.post("/noesis/court", self._hear),
                web.get("/noesis/about", self._about),
                web.get("/metrics", self._metrics_page),
            ]
        )
        if self._page is not None:
            app.router.add_get("/", self._show_page)
        app.on_startup.append(self._open)
        app.on_cleanup.append(self._close)
        return app

    async def _open(self, app: web.Application) -> None:
        # one connection a request: llama.cpp sees at once when its reader is gone
        timeout = aiohttp.ClientTimeout(total=None, sock_connect=10)
        self._http = aiohttp.ClientSession(timeout=timeout, connector=aiohttp.TCPConnector(limit=0, force_close=True))

    async def _close(self, app: web.Application) -> None:
        assert self._http is not None
        await self._http.close()

    # --- the boundary: every request passes here, every error leaves as OpenAI's JSON
    @web.middleware
    async def _boundary(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        resource = request.match_info.route.resource
        route = resource.canonical if resource is not None else "other"  # a fixed set: a client can't make labels
        try:
            if route not in OPEN_ROUTES:
                self._require_key(request)
            response = await handler(request)
        except ApiError as error:
            response = _refused(error)
        except web.HTTPRequestEntityTooLarge:
            response = _refused(self._too_large())
        except web.HTTPException as error:
            response = _refused(
                ApiError(error.status, f"{request.method} {request.path[:200]}: {error.reason}", code="not_found")
            )
        except TimeoutError:
            response = _refused(ApiError(504, "the answer took too long", code="timeout"))
        except aiohttp.ClientError as error:
            response = _refused(ApiError(502, f"llama.cpp does not answer: {error}", code="model_error"))
        except NoesisError as error:  # of a judge: no answer to judge, out of reach, at its cap
            response = _refused(ApiError(400 if isinstance(error, UsageError) else 503, str(error), code="no_verdict"))
        except (asyncio.CancelledError, ConnectionResetError):
            self.metrics.requests[route, CLIENT_LEFT] += 1
            raise
        self.metrics.requests[route, response.status] += 1
        if response.status in UNREAD and isinstance(request.transport, asyncio.Transport):
            response.force_close()
            request.transport.pause_reading()  # what is left of the body stays where it is
        if self.stopping:
            response.force_close()
        response.headers.setdefault("X-Content-Type-Options", "nosniff")
        return response

    def _require_key(self, request: web.Request) -> None:
        kind, _, given = request.headers.get("Authorization", "").partition(" ")
        same = hmac.compare_digest(hashlib.sha256(given.strip().encode(errors="replace")).digest(), self._key)
        if kind.lower() != "bearer" or not same:
            raise ApiError(401, "send the server's key: Authorization: Bearer KEY", code="invalid_api_key")

    async def _body(self, request: web.Request) -> dict[str, Any]:
        """The request's JSON; refused by its length before it is read, where it says one."""
        if request.headers.get("Content-Encoding", "identity") != "identity":
            raise ApiError(415, "compressed bodies are not read")
        if (request.content_length or 0) > self.limits.body_bytes:
            raise self._too_large()
        try:
            async with asyncio.timeout(self.limits.body_s):
                return parse_json(await request.read())
        except TimeoutError:
            raise ApiError(408, f"the request did not arrive within {self.limits.body_s:g} s", code="timeout") from None

    def _too_large(self) -> ApiError:
        return ApiError(413, f"the request is larger than {self.limits.body_bytes:,} bytes", code="request_too_large")

    # --- chat
    async def _chat(self, request: web.Request) -> web.StreamResponse:
        raw = await self._body(request)
        ask = read_chat_request(
            raw, models=tuple(self._targets), system=self._system, language=self._language, limits=self.limits
        )
        if self.stopping:
            raise ApiError(503, "the server is stopping", code="stopping", retry_after_s=10)
        if self.metrics.in_flight >= self.limits.parallel:
            raise ApiError(
                429,
                f"{self.limits.parallel} requests are under way already: try again",
                code="rate_limit_exceeded",
                retry_after_s=1,
            )
        assert self._http is not None
        relay = Relay(self._http, self._targets[ask.model], self.metrics)
        self.metrics.in_flight += 1
        started = time.monotonic()
        try:
            if ask.stream:
                return await relay.stream(ask, request, self.limits.request_s)
            async with asyncio.timeout(self.limits.request_s):
                return web.json_response(await relay.complete(ask))
        finally:
            self.metrics.in_flight -= 1
            self.metrics.seconds.add(time.monotonic() - started)

    async def _hear(self, request: web.Request) -> web.StreamResponse:
        if self._court is None:
            raise ApiError(404, "no judge is set: start the server with --judge", code="no_judge")
        raw = await self._body(request)
        said, answer, language = (
            read_messages(raw.get("messages")),
            raw.get("answer"),
            raw.get("language") or self._language,
        )
        if not isinstance(answer, str) or language not in ("pt", "en"):
            raise ApiError(400, "answer must be a text, and language pt or en", param="answer")
        if self._hearing.locked():
            raise ApiError(
                429, "the court is hearing another answer: try again", code="rate_limit_exceeded", retry_after_s=5
            )
        async with self._hearing, asyncio.timeout(self.limits.request_s):
            return web.json_response(
                await self._court.hear([m for m in said if m["role"] != "system"], answer, language)
            )

    # --- the rest
    async def _health(self, request: web.Request) -> web.StreamResponse:
        return web.json_response(
            {"status": "stopping" if self.stopping else "ok"}, status=503 if self.stopping else 200
        )

    async def _models(self, request: web.Request) -> web.StreamResponse:
        return web.json_response({"object": "list", "data": [self._described(name) for name in self._targets]})

    async def _model(self, request: web.Request) -> web.StreamResponse:
        name = request.match_info["name"]
        if name not in self._targets:
            raise ApiError(
                404,
                f"the model {name[:80]!r} does not exist; there is {', '.join(self._targets)}",
                code="model_not_found",
                param="model",
            )
        return web.json_response(self._described(name))

    def _described(self, name: str) -> dict[str, Any]:
        return {"id": name, "object": "model", "created": self._started, "owned_by": "noesis"}

    async def _about(self, request: web.Request) -> web.StreamResponse:
        about = {
            "models": list(self._targets),
            "language": self._language,
            "judge": self._court.name if self._court else None,
        }
        return web.json_response(
            about
            | {"max_tokens": self.limits.max_tokens, "context": self.limits.context, "parallel": self.limits.parallel}
        )

    async def _metrics_page(self, request: web.Request) -> web.StreamResponse:
        return web.Response(
            text=self.metrics.text(self.connections()),
            headers={"Content-Type": "text/plain; version=0.0.4; charset=utf-8"},
        )

    async def _show_page(self, request: web.Request) -> web.StreamResponse:
        assert self._page is not None
        return web.Response(text=self._page.html, content_type="text/html", charset="utf-8", headers=self._page.headers)


def _refused(error: ApiError) -> web.Response:
    response = web.json_response(error.body(), status=error.status)
    if error.retry_after_s is not None:
        response.headers["Retry-After"] = str(error.retry_after_s)
    if error.status == 401:
        response.headers["WWW-Authenticate"] = "Bearer"
    return response
