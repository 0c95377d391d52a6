"""The HTTP application behind `noesis serve RUN`: who may ask, how many at once, and for how long.

    GET  /health                 is the server up? (no key)
    GET  /v1/models              the tuned model, and the base (<model>-base) if it is served
    POST /v1/chat/completions    OpenAI's chat, with the additional fields "include_analysis", "language" and
                                 "strength" (of the adapter: 0 the base, 1 as released, at most 1.5)
    POST /noesis/court           the Tribunal's opinion of an answer, if a judge is set
    POST /noesis/examples        add a hand-written example to the project, if the server has one
    GET  /noesis/about           languages, models, limits, judge, what examples may name; for the page
    GET  /metrics                for Prometheus
    GET  /                       the page, with --ui (no key: it holds no secret and asks with the key in its address)

No other site's page can read an answer: there is no CORS header, every answer requires the key, and on loopback a
foreign Host is refused.
"""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import ipaddress
import re
import time
from collections.abc import Awaitable, Callable, Collection, Sequence
from typing import Any, Protocol

import aiohttp
from aiohttp import web

from noesis.constitution.document import SystemPrompt
from noesis.core.errors import NoesisError, UsageError
from noesis.core.messages import Message
from noesis.core.text import any_of
from noesis.llm.addresses import LOCAL_NAMES
from noesis.serving.answer_check import AnswerChecker
from noesis.serving.metrics import Metrics
from noesis.serving.page.load import Page
from noesis.serving.protocol import (
    ApiError,
    Limits,
    find_model,
    parse_json,
    read_chat_request,
    read_messages,
    require_language,
)
from noesis.serving.relay import Relay, Target, no_answer

CLIENT_LEFT = 499  # nginx's status for it; in the metrics only
BODY_UNREAD = (401, 408, 413, 415, 421)  # refusals that are sent before the body was read
OPEN_ROUTES = ("/health", "/")
SERVED = "this server has OpenAI's POST /v1/chat/completions and GET /v1/models (docs/integrate.md)"
Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


class AnswerJudge(Protocol):
    """Judges single answers (`noesis.pipeline.served.live_judge.LiveJudge`)."""

    @property
    def name(self) -> str:
        """The judges' names, for display."""

    async def judge_answer(self, conversation: list[Message], answer: str, language: str, /) -> dict[str, Any]:
        """The Tribunal's opinion of `answer` to `conversation` (without system prompt), as JSON."""


class ExampleStore(Protocol):
    """Keeps examples that a person writes on the page (`noesis.pipeline.served.page_examples.PageExamples`)."""

    def choices(self) -> dict[str, Any]:
        """What an example may name, as JSON."""

    def add(self, record: dict[str, Any], /) -> dict[str, Any]:
        """Check a record and keep it. Returns JSON: where, and what a person should look at; NoesisError: refused."""


class Service:
    """The request handlers and their shared state."""

    def __init__(
        self,
        targets: dict[str, Target],
        *,
        key: str,
        system: SystemPrompt,
        language: str,
        limits: Limits,
        judge: AnswerJudge | None = None,
        examples: ExampleStore | None = None,
        page: Page | None = None,
        hosts: Sequence[str] | None = (),
    ) -> None:
        """Args:
        targets: model name → where it is served.
        language: of the system prompt where a request names none.
        hosts: names to answer under, beside addresses and names that can't be made to lead here; None: under any.
        """
        self.limits, self.metrics = limits, Metrics()
        self.stopping = False
        self.on_error: Callable[[BaseException], None] = lambda error: None  # set by the server
        self.count_connections: Callable[[], int] = lambda: 0  # set by the server
        self._targets, self._system, self._language, self._judge, self._page = targets, system, language, judge, page
        self._key = hashlib.sha256(key.encode()).digest()
        self._examples = examples
        self._hosts = None if hosts is None else LOCAL_NAMES | {"host.docker.internal", *map(str.lower, hosts)}
        self._started = int(time.time())
        self._judging, self._saving = asyncio.Lock(), asyncio.Lock()
        self._special = any_of({token for target in targets.values() for token in target.special})
        self._checker = AnswerChecker()
        self._http: dict[str, aiohttp.ClientSession] = {}  # for each model

    @property
    def _scaled(self) -> tuple[str, ...]:
        """The models whose adapter a request may scale."""
        return tuple(name for name, target in self._targets.items() if target.scales)

    @property
    def busy(self) -> bool:
        """Whether an answer is being written or judged."""
        return self.metrics.in_flight > 0 or self._judging.locked()

    def application(self) -> web.Application:
        app = web.Application(client_max_size=self.limits.body_bytes, middlewares=[self._boundary])
        app.add_routes(
            [
                web.get("/health", self._health),
                web.get("/v1/models", self._models),
                web.get("/v1/models/{name:.+}", self._model),
                web.post("/v1/chat/completions", self._chat),
                web.post("/noesis/court", self._judge_answer),
                web.post("/noesis/examples", self._save_example),
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
        for name, target in self._targets.items():
            self._http[name] = _session(target)

    async def replace(self, name: str, target: Target) -> None:
        """Send further requests for a model elsewhere: its process ended, and another was started."""
        before, self._http[name] = self._http[name], _session(target)
        self._targets[name] = target
        await before.close()

    async def _close(self, app: web.Application) -> None:
        for http in self._http.values():
            await http.close()
        self._checker.close()

    # --- the boundary: every request passes here, every error leaves as OpenAI's JSON
    @web.middleware
    async def _boundary(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        resource = request.match_info.route.resource
        route = resource.canonical if resource is not None else "other"  # a fixed set: clients can't add labels
        try:
            self._require_host(request)
            if route not in OPEN_ROUTES:
                self._require_key(request)
            response = await handler(request)
        except ApiError as error:
            response = _error_response(error)
        except web.HTTPRequestEntityTooLarge:
            response = _error_response(self._too_large())
        except web.HTTPException as error:  # no such address, or not with this method
            code = "method_not_allowed" if error.status == 405 else "not_found"
            message = f"{request.method} {request.path[:200]}: {error.reason}; {SERVED}"
            response = _error_response(ApiError(error.status, message, code=code))
            if "Allow" in error.headers:
                response.headers["Allow"] = error.headers["Allow"]
        except TimeoutError:
            response = _error_response(ApiError(504, "the answer took too long", code="timeout"))
        except aiohttp.ClientError:
            response = _error_response(no_answer())
        except NoesisError as error:  # from a judge: nothing to judge, unreachable, at its spending cap
            status = 400 if isinstance(error, UsageError) else 503
            response = _error_response(ApiError(status, str(error), code="no_verdict"))
        except (asyncio.CancelledError, ConnectionResetError):
            self.metrics.requests[route, CLIENT_LEFT] += 1
            raise
        except Exception as error:  # a mistake of ours, or an answer of llama.cpp's that nobody expected
            self.on_error(error)
            response = _error_response(ApiError(500, "the server failed at this request", code="internal_error"))
        self.metrics.requests[route, response.status] += 1
        if response.status in BODY_UNREAD and isinstance(request.transport, asyncio.Transport):
            response.force_close()
            request.transport.pause_reading()  # leave the rest of the body unread
        if self.stopping:
            response.force_close()
        response.headers.setdefault("X-Content-Type-Options", "nosniff")
        return response

    def _require_host(self, request: web.Request) -> None:
        """Refuse a request that was sent to a name which anyone may let lead here (DNS rebinding)."""
        hosts = request.headers.getall("Host", [])
        if len(hosts) > 1 or not (self._hosts is None or all(_is_one_of(self._hosts, host) for host in hosts)):
            message = "this server answers to 127.0.0.1 and localhost only: a proxy before it must send such a Host"
            raise ApiError(421, message, code="wrong_host")

    def _require_key(self, request: web.Request) -> None:
        scheme, _, given = request.headers.get("Authorization", "").partition(" ")
        same = hmac.compare_digest(hashlib.sha256(given.strip().encode(errors="replace")).digest(), self._key)
        if scheme.lower() != "bearer" or not same:
            raise ApiError(401, "send the server's key: Authorization: Bearer KEY", code="invalid_api_key")

    async def _body(self, request: web.Request) -> dict[str, Any]:
        """The request's JSON object. A body that announces too large a size is refused before it is read."""
        if request.headers.get("Content-Encoding", "").strip().lower() not in ("", "identity"):
            raise ApiError(415, "compressed bodies are not accepted")
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
        body = await self._body(request)
        chat = read_chat_request(
            body,
            models=tuple(self._targets),
            special=self._special,
            system=self._system,
            language=self._language,
            limits=self.limits,
            scaled=self._scaled,
        )
        if self.stopping:
            raise ApiError(503, "the server is stopping", code="stopping", retry_after_s=10)
        if self.metrics.in_flight >= self.limits.parallel:
            message = f"{self.limits.parallel} requests are in progress: try again"
            raise ApiError(429, message, code="rate_limit_exceeded", retry_after_s=1)
        self.metrics.in_flight += 1
        started = time.monotonic()
        try:
            if chat.schema is not None:
                await self._checker.require_checkable(chat.schema)
            relay = Relay(self._http[chat.model], self._targets[chat.model], self.metrics, self._checker)
            if chat.stream:
                return await relay.stream(chat, request, self.limits.request_s)
            async with asyncio.timeout(self.limits.request_s):
                return web.json_response(await relay.complete(chat))
        finally:
            self.metrics.in_flight -= 1
            self.metrics.seconds.add(time.monotonic() - started)

    async def _judge_answer(self, request: web.Request) -> web.StreamResponse:
        if self._judge is None:
            raise ApiError(404, "no judge is set: start the server with --judge", code="no_judge")
        body = await self._body(request)
        messages, answer = read_messages(body.get("messages"), self._special), body.get("answer")
        language = body.get("language") or self._language
        if not isinstance(answer, str):
            raise ApiError(400, "answer must be a text", param="answer")
        require_language(language, self._system)
        if self._judging.locked():
            message = "another answer is being judged: try again"
            raise ApiError(429, message, code="rate_limit_exceeded", retry_after_s=5)
        conversation = [message for message in messages if message["role"] != "system"]
        async with self._judging, asyncio.timeout(self.limits.request_s):
            return web.json_response(await self._judge.judge_answer(conversation, answer, language))

    async def _save_example(self, request: web.Request) -> web.StreamResponse:
        if self._examples is None:
            message = "this server keeps no examples: start it in a project, or name one with --project DIR"
            raise ApiError(404, message, code="no_project")
        record = await self._body(request)
        try:
            async with self._saving:
                return web.json_response(await asyncio.to_thread(self._examples.add, record))
        except NoesisError as error:
            raise ApiError(400, str(error), code="bad_example") from None

    # --- the rest
    async def _health(self, request: web.Request) -> web.StreamResponse:
        return web.json_response(
            {"status": "stopping" if self.stopping else "ok"}, status=503 if self.stopping else 200
        )

    async def _models(self, request: web.Request) -> web.StreamResponse:
        return web.json_response({"object": "list", "data": [self._describe(name) for name in self._targets]})

    async def _model(self, request: web.Request) -> web.StreamResponse:
        return web.json_response(self._describe(find_model(request.match_info["name"], tuple(self._targets))))

    def _describe(self, name: str) -> dict[str, Any]:
        return {"id": name, "object": "model", "created": self._started, "owned_by": "noesis"}

    async def _about(self, request: web.Request) -> web.StreamResponse:
        return web.json_response(
            {
                "models": list(self._targets),
                "language": self._language,
                "languages": self._system.languages,
                "system": self._system.texts,
                "judge": self._judge.name if self._judge else None,
                "examples": self._examples.choices() if self._examples else None,
                "scaled": list(self._scaled),
                "max_tokens": self.limits.max_tokens,
                "context": self.limits.context,
                "parallel": self.limits.parallel,
            }
        )

    async def _metrics_page(self, request: web.Request) -> web.StreamResponse:
        return web.Response(
            text=self.metrics.text(self.count_connections()),
            headers={"Content-Type": "text/plain; version=0.0.4; charset=utf-8"},
        )

    async def _show_page(self, request: web.Request) -> web.StreamResponse:
        assert self._page is not None
        return web.Response(text=self._page.html, content_type="text/html", charset="utf-8", headers=self._page.headers)


def _session(target: Target) -> aiohttp.ClientSession:
    """A connection for each request: llama.cpp notices at once when its reader is gone."""
    connector: aiohttp.BaseConnector = aiohttp.TCPConnector(limit=0, force_close=True)
    if target.socket:
        connector = aiohttp.UnixConnector(target.socket, limit=0, force_close=True)
    return aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=None, sock_connect=10), connector=connector)


def _is_one_of(names: Collection[str], host: str) -> bool:
    """Whether `host`, with or without a port, is an address or one of `names`."""
    name = re.sub(r"\.?(?::\d{1,5})?$", "", host).lower()  # a full name in DNS ends with a dot
    if name in names:
        return True
    try:
        ipaddress.ip_address(name.removeprefix("[").removesuffix("]"))
    except ValueError:
        return False
    return True


def _error_response(error: ApiError) -> web.Response:
    response = web.json_response(error.body(), status=error.status)
    if error.retry_after_s is not None:
        response.headers["Retry-After"] = str(error.retry_after_s)
    if error.status == 401:
        response.headers["WWW-Authenticate"] = "Bearer"
    return response
