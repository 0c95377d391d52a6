"""`noesis serve RUN`: load the models, listen, and on SIGTERM or Ctrl-C finish what is under way before leaving.

The port is taken before anything is loaded. A second signal cuts short what is under way. What does not end within the time that was
given to it is left behind: the process leaves all the same.
"""

from __future__ import annotations

import asyncio
import errno
import os
import signal
import socket
import sys
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path

from aiohttp import web

from noesis.constitution.document import SystemPrompt
from noesis.core.console import say
from noesis.core.errors import UsageError
from noesis.llm.llama_cpp import LlamaServer
from noesis.serving.app import AnswerJudge, Service
from noesis.serving.page import Page
from noesis.serving.protocol import ApiError, Limits
from noesis.serving.relay import Target

LOOPBACK = ("127.0.0.1", "::1", "localhost")
MIN_KEY_CHARS = 11  # characters
FREEING_S = 10.0  # for llama.cpp to notice that nobody reads


@dataclass(frozen=True)
class ModelFiles:
    """What is served.

    tuned: a merged model; or None where `adapter` turns `base` into it
    base: None where only the tuned model is at hand
    """

    tuned: Path | None
    base: Path | None
    adapter: Path | None = None


@dataclass(frozen=True)
class Settings:
    """How it is served."""

    key: str
    system: SystemPrompt
    language: str
    host: str = "127.0.0.1"
    port: int = 8017
    limits: Limits = field(default_factory=Limits)


class Server:
    """One running server."""

    def __init__(
        self,
        files: ModelFiles,
        settings: Settings,
        *,
        court: AnswerJudge | None = None,
        page: Page | None = None,
        port: socket.socket | None = None,
    ) -> None:
        """Take the port, unless it is given as `claim` took it, and load the models.

        Raises:
            UsageError: the port is taken, or the key is too short.
            ModelError: a file can't be loaded.
        """
        if len(settings.key) < MIN_KEY_CHARS:
            raise UsageError(
                f"the key has {len(settings.key)} characters: at least {MIN_KEY_CHARS} are needed; leave it out to have one made"
            )
        self.settings, self._court, self._page = settings, court, page
        self._socket = port or claim_port(settings.host, settings.port)
        self.port = int(self._socket.getsockname()[1])
        host = f"[{settings.host}]" if ":" in settings.host else settings.host
        self.url = f"http://{host}:{self.port}"
        self._backends: list[LlamaServer] = []
        self._targets = self._load(files)
        self.models = tuple(self._targets)

    def _load(self, files: ModelFiles) -> dict[str, Target]:
        limits = self.settings.limits

        def start(model: Path, adapter: Path | None = None) -> LlamaServer:
            say(f"  loading {model.name}{' with ' + adapter.name if adapter else ''} …")
            backend = LlamaServer(model, adapter=adapter, parallel=limits.parallel, context=limits.context)
            self._backends.append(backend)
            return backend

        if files.tuned is None:
            assert files.base is not None and files.adapter is not None
            both = start(files.base, files.adapter)
            return {"noesis": Target(both.url, both.key, 1.0), "noesis-base": Target(both.url, both.key, 0.0)}
        tuned = start(files.tuned)
        targets = {"noesis": Target(tuned.url, tuned.key)}
        if files.base is not None:
            base = start(files.base)
            targets["noesis-base"] = Target(base.url, base.key)
        return targets

    async def run(self, ready: Callable[[], None] = lambda: None, stop: asyncio.Event | None = None) -> None:
        """Serve until a signal comes (or `stop` is set), then finish what is under way. The process is to leave afterwards."""
        s, limits = self.settings, self.settings.limits
        stop, hurry = stop or asyncio.Event(), asyncio.Event()
        _on_signals(stop, hurry)
        service = Service(
            self._targets,
            key=s.key,
            system=s.system,
            language=s.language,
            limits=limits,
            court=self._court,
            page=self._page,
        )
        runner = web.AppRunner(
            service.application(), access_log=None, handle_signals=False, handler_cancellation=True,
            keepalive_timeout=limits.idle_s, lingering_time=2.0, auto_decompress=False, shutdown_timeout=1.0,
        )  # fmt: skip
        await runner.setup()
        web_server = runner.server
        assert web_server is not None

        service.connections = lambda: len(web_server.connections)

        def connect() -> asyncio.Protocol:
            if len(web_server.connections) >= limits.connections:
                service.metrics.refused_connections += 1
                return _Refuse()
            return web_server()

        listener = await asyncio.get_running_loop().create_server(connect, sock=self._socket, backlog=1024)
        ready()
        await stop.wait()
        service.stopping = True
        listener.close()
        await _first(hurry.wait(), _idle(service), limits.grace_s)
        await runner.cleanup()

    def free(self) -> None:
        """Free the models. Those that do not come to rest keep the process from ending by itself: it is ended here, with code 1."""
        self._socket.close()
        for backend in self._backends:
            if not backend.stop(FREEING_S):
                print("llama.cpp does not come to rest; leaving all the same", file=sys.stderr, flush=True)  # noqa: T201
                os._exit(1)


def claim_port(host: str, port: int) -> socket.socket:
    """A socket that listens on host and port; who connects waits until the server runs. Port 0: any free one.

    Raises:
        UsageError: the port is taken, or there is no such host.
    """
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
    except socket.gaierror as error:
        raise UsageError(f"--host {host!r}: {error.strerror}") from None
    sock = socket.socket(family, kind, protocol)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        sock.bind(address)
        sock.listen(1024)  # two sockets may be bound to a port, only one may listen
    except OSError as error:
        sock.close()
        if error.errno in (errno.EADDRINUSE, errno.EACCES):
            why = "is in use" if error.errno == errno.EADDRINUSE else "needs more rights"
            raise UsageError(
                f"port {port} on {host} {why}: choose another with --port, or 0 for any free one"
            ) from None
        raise UsageError(f"--host {host!r} --port {port}: {error.strerror}") from None
    return sock


def _on_signals(stop: asyncio.Event, hurry: asyncio.Event) -> None:
    """The first signal stops, the second hurries."""

    def arrived() -> None:
        (hurry if stop.is_set() else stop).set()

    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        try:
            loop.add_signal_handler(number, arrived)
        except (NotImplementedError, RuntimeError, ValueError):  # Windows; or not the main thread
            return


async def _idle(service: Service) -> None:
    while service.busy:
        await asyncio.sleep(0.05)


async def _first(one: Awaitable[object], other: Awaitable[object], seconds: float) -> None:
    """Wait for either, but no longer than that."""
    tasks = [asyncio.ensure_future(one), asyncio.ensure_future(other)]
    await asyncio.wait(tasks, timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
    for task in tasks:
        task.cancel()


class _Refuse(asyncio.Protocol):
    """A connection above the limit: told so, and closed, without reading."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        error = web.json_response(ApiError(503, "too many connections", code="too_many_connections").body())
        body = error.body
        assert isinstance(body, bytes)
        head = f"HTTP/1.1 503 Service Unavailable\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\nRetry-After: 2\r\nConnection: close\r\n\r\n"
        transport.write(head.encode() + body)
        transport.close()
