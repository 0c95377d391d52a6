"""`noesis serve RUN`: load the models, listen, and on SIGTERM or Ctrl-C finish the requests in progress before exiting.

The port is claimed before anything is loaded. A second signal cuts requests short. Those that do not end within the
grace period are abandoned, and their models freed all the same.
"""

from __future__ import annotations

import asyncio
import errno
import json
import signal
import socket
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path

from aiohttp import web

from noesis.constitution.document import SystemPrompt
from noesis.core.console import complain, say
from noesis.core.errors import ModelError, UsageError
from noesis.core.i18n import _
from noesis.llm.addresses import is_loopback_address
from noesis.llm.llama_cpp import LlamaServer
from noesis.serving.app import AnswerJudge, ExampleStore, Service
from noesis.serving.error_log import ErrorLog
from noesis.serving.page.load import Page
from noesis.serving.protocol import ApiError, Limits
from noesis.serving.relay import Target

MIN_KEY_CHARS = 11
POLL_S = 0.5  # between looks at whether llama.cpp's processes still run
RESTART_S = 30.0  # from one start of a process to the next
FREE_S = 10.0  # for llama.cpp to notice that nobody reads


@dataclass(frozen=True)
class ModelFiles:
    """The GGUF files to serve."""

    tuned: Path | None  # a merged model; None where `adapter` turns `base` into it
    base: Path | None  # None where only the tuned model is at hand
    adapter: Path | None = None


@dataclass(frozen=True)
class Settings:
    """How to serve them."""

    key: str
    system: SystemPrompt  # added to conversations without one
    language: str  # of the system prompt where a request names none
    host: str = "127.0.0.1"
    port: int = 8017
    limits: Limits = field(default_factory=Limits)
    model: str = "noesis"  # id of the tuned model; the base's is `<model>-base`


class Server:
    """One running server."""

    def __init__(
        self,
        files: ModelFiles,
        settings: Settings,
        *,
        judge: AnswerJudge | None = None,
        examples: ExampleStore | None = None,
        page: Page | None = None,
        port: socket.socket | None = None,
    ) -> None:
        """Claim the port and load the models.

        Args:
            port: already claimed with `claim_port`.

        Raises:
            UsageError: the port is in use, or the key is too short.
            ModelError: a file can't be loaded.
        """
        if len(settings.key) < MIN_KEY_CHARS:
            raise UsageError(
                _(
                    "the key has {key} characters, but needs at least {min_key_chars}: "
                    "choose a longer one, or leave it out to have one generated",
                    key=len(settings.key),
                    min_key_chars=MIN_KEY_CHARS,
                )
            )
        self.settings, self._judge, self._examples, self._page = settings, judge, examples, page
        self._socket = port or claim_port(settings.host, settings.port)
        self.port = int(self._socket.getsockname()[1])
        self.is_private = is_loopback_address(self._socket.getsockname()[0])  # nothing but this machine reaches it
        host = f"[{settings.host}]" if ":" in settings.host else settings.host
        self.url = f"http://{host}:{self.port}"
        self._llama_servers: dict[str, LlamaServer] = {}
        self._scaled = settings.model if files.adapter is not None else None  # the model whose adapter may be scaled
        self._load(files)
        self.models = tuple(self._llama_servers)

    def _load(self, files: ModelFiles) -> None:
        limits = self.settings.limits

        def start(name: str, model: Path, adapter: Path | None = None) -> None:
            if adapter is None:
                say(_("  loading {name} …", name=model.name))
            else:
                say(_("  loading {name} with {adapter} …", name=model.name, adapter=adapter.name))
            self._llama_servers[name] = LlamaServer(
                model, adapter=adapter, parallel=limits.parallel, context=limits.context
            )

        # One each, also where base and adapter are at hand: within one, an answer with the adapter and one without
        # wait for each other to end.
        tuned = files.tuned or files.base
        assert tuned is not None
        start(self.settings.model, tuned, files.adapter)
        if files.base is not None:
            start(f"{self.settings.model}-base", files.base)

    async def run(self, ready: Callable[[], None] = lambda: None, stop: asyncio.Event | None = None) -> None:
        """Serve until a signal arrives, then finish the requests in progress. Call `free` and exit afterwards.

        Args:
            ready: called when requests are accepted.
            stop: stops the server when set, like a signal.
        """
        settings, limits = self.settings, self.settings.limits
        stop, hurry = stop or asyncio.Event(), asyncio.Event()
        _on_signals(stop, hurry)
        service = Service(
            {name: _target(server, scales=name == self._scaled) for name, server in self._llama_servers.items()},
            key=settings.key,
            system=settings.system,
            language=settings.language,
            limits=limits,
            judge=self._judge,
            examples=self._examples,
            page=self._page,
            hosts=(settings.host,) if self.is_private else None,
        )
        errors = ErrorLog(service.metrics)
        service.on_error = errors.count
        asyncio.get_running_loop().set_exception_handler(errors.on_loop_error)
        runner = web.AppRunner(
            service.application(),
            access_log=None,
            logger=errors.logger,
            handle_signals=False,
            handler_cancellation=True,
            keepalive_timeout=limits.idle_s,
            lingering_time=2.0,
            auto_decompress=False,
            shutdown_timeout=1.0,
        )
        await runner.setup()
        web_server = runner.server
        assert web_server is not None
        service.count_connections = lambda: len(web_server.connections)

        def connect() -> asyncio.Protocol:
            if len(web_server.connections) >= limits.connections:
                service.metrics.refused_connections += 1
                return _RefuseConnection()
            return web_server()

        listener = await asyncio.get_running_loop().create_server(connect, sock=self._socket, backlog=1024)
        revivals = [
            asyncio.create_task(_revive(name, server, service, scales=name == self._scaled))
            for name, server in self._llama_servers.items()
        ]
        ready()
        await stop.wait()
        service.stopping = True
        for task in revivals:
            task.cancel()
        listener.close()
        await _first_of(hurry.wait(), _idle(service), limits.grace_s)
        await runner.cleanup()

    def free(self) -> None:
        """Free the models, also those that are still busy."""
        self._socket.close()
        for server in self._llama_servers.values():
            if not server.stop(FREE_S):
                complain(_("llama.cpp was still busy; it is ended all the same"))


def claim_port(host: str, port: int) -> socket.socket:
    """A socket that listens on host and port (0: any free one). Connections wait until the server runs.

    Raises:
        UsageError: the port is in use, or there is no such host.
    """
    try:
        family, kind, protocol, _ignored, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
    except socket.gaierror as error:
        raise UsageError(_("--host {host!r}: {strerror}", host=host, strerror=error.strerror)) from None
    sock = socket.socket(family, kind, protocol)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        sock.bind(address)
        sock.listen(1024)  # two sockets may be bound to a port, but only one may listen
    except OSError as error:
        sock.close()
        if error.errno in (errno.EADDRINUSE, errno.EACCES):
            why = _("is in use") if error.errno == errno.EADDRINUSE else _("needs more privileges")
            raise UsageError(
                _(
                    "port {port} on {host} {why}: choose another with --port, or 0 for any free one",
                    port=port,
                    host=host,
                    why=why,
                )
            ) from None
        raise UsageError(
            _("--host {host!r} --port {port}: {strerror}", host=host, port=port, strerror=error.strerror)
        ) from None
    return sock


def _on_signals(stop: asyncio.Event, hurry: asyncio.Event) -> None:
    """The first signal sets `stop`, the second `hurry`."""

    def on_signal() -> None:
        (hurry if stop.is_set() else stop).set()

    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        try:
            loop.add_signal_handler(number, on_signal)
        except (NotImplementedError, RuntimeError, ValueError):  # Windows; or not the main thread
            return


def _target(server: LlamaServer, *, scales: bool) -> Target:
    return Target(server.url, server.key, server.socket, server.special, scales)


async def _revive(name: str, server: LlamaServer, service: Service, *, scales: bool) -> None:
    """Start a model's process again when it has ended, at most once each RESTART_S: one that can't live is not spun."""
    while True:
        await asyncio.sleep(POLL_S)
        if server.running:
            continue
        complain(_("the process of {name} has ended; starting it again …", name=name))
        try:
            await asyncio.to_thread(server.restart)
            await service.replace(name, _target(server, scales=scales))
        except (ModelError, OSError) as error:
            complain(str(error))
        await asyncio.sleep(RESTART_S)


async def _idle(service: Service) -> None:
    while service.busy:
        await asyncio.sleep(0.05)


async def _first_of(one: Awaitable[object], other: Awaitable[object], seconds: float) -> None:
    """Wait for either, for at most this many seconds."""
    tasks = [asyncio.ensure_future(one), asyncio.ensure_future(other)]
    await asyncio.wait(tasks, timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
    for task in tasks:
        task.cancel()


class _RefuseConnection(asyncio.Protocol):
    """Answers a connection above the limit with an error and closes it, without reading."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        error = ApiError(503, "too many connections", code="too_many_connections", retry_after_s=2)
        body = json.dumps(error.body()).encode()
        head = (
            f"HTTP/1.1 {error.status} Service Unavailable\r\n"
            "Content-Type: application/json\r\n"
            f"Content-Length: {len(body)}\r\n"
            f"Retry-After: {error.retry_after_s}\r\n"
            "Connection: close\r\n\r\n"
        )
        transport.write(head.encode() + body)
        transport.close()
