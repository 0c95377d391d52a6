"""HTTP as clients of models use it: every HTTP client of the package is made here.

An endpoint is hostile. A reply has one deadline, from its first byte to its last, and a limit in bytes after
decompression; redirects are not followed. Nothing that is meant for this machine goes through a proxy.
"""

from __future__ import annotations

import asyncio
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any
from urllib.request import getproxies

from noesis.core.errors import UsageError
from noesis.core.i18n import _
from noesis.llm.addresses import is_loopback
from noesis.llm.http_reply import HttpError, HttpReply, check_encoding, check_size, retry_after_of, shown

CONNECT_S = 10.0


# --- where a request goes


def _options(url: str, headers: dict[str, str]) -> dict[str, Any]:
    import httpx2

    options: dict[str, Any] = {"headers": headers | {"Accept-Encoding": "gzip, identity"}, "follow_redirects": False}
    if getproxies() and is_loopback(url):  # certificates are still those of the environment
        options |= {"trust_env": False, "verify": httpx2.create_ssl_context()}
    return options


@contextmanager
def _explained_proxy() -> Iterator[None]:
    import httpx2

    try:
        yield
    except (ImportError, ValueError, httpx2.InvalidURL) as error:
        raise UsageError(
            _("the proxy that HTTP_PROXY, HTTPS_PROXY or ALL_PROXY names can't be used: {error}", error=error)
        ) from None


# --- clients


class AsyncHttp:
    """A client of one endpoint, inside one event loop."""

    def __init__(self, url: str, headers: dict[str, str], *, connections: int) -> None:
        import httpx2

        with _explained_proxy():
            self._client = httpx2.AsyncClient(
                timeout=None, limits=httpx2.Limits(max_connections=connections), **_options(url, headers)
            )

    async def post(self, url: str, body: dict[str, Any], *, deadline_s: float) -> HttpReply:
        """The whole reply to `body`. Raises HttpError where there is none within `deadline_s` seconds."""
        import httpx2

        limits = httpx2.Timeout(deadline_s, connect=min(CONNECT_S, deadline_s / 2))
        try:
            async with asyncio.timeout(deadline_s):
                async with self._client.stream("POST", url, json=body, timeout=limits) as response:
                    check_encoding(response)
                    size, parts = 0, []
                    async for part in response.aiter_bytes():
                        size = check_size(size + len(part))
                        parts.append(part)
                    return HttpReply(response.status_code, b"".join(parts), retry_after_of(response))
        except (TimeoutError, httpx2.TimeoutException) as error:
            raise HttpError(
                _("no reply within {deadline_s:g} s", deadline_s=deadline_s), sent=_was_sent(error)
            ) from None
        except _errors() as error:
            raise HttpError(_said(error), sent=_was_sent(error)) from None

    async def close(self) -> None:
        await self._client.aclose()


class Http:
    """A client of one endpoint, for calls that block. Each request has a connection of its own.

    llama.cpp's server closes a connection that streamed, and the next request on it would be lost.
    """

    def __init__(self, url: str, headers: dict[str, str], *, timeout_s: float, unix_socket: str | None = None) -> None:
        """Prepare a client.

        Args:
            timeout_s: seconds that the endpoint may be silent.
            unix_socket: path of a socket to connect to, whatever host `url` names.
        """
        import httpx2

        limits, options = httpx2.Limits(max_keepalive_connections=0), _options(url, headers)
        if unix_socket is not None:
            options |= {"trust_env": False, "transport": httpx2.HTTPTransport(uds=unix_socket, limits=limits)}
        with _explained_proxy():
            self._client = httpx2.Client(
                timeout=httpx2.Timeout(timeout_s, connect=min(CONNECT_S, timeout_s)), limits=limits, **options
            )

    def request(self, method: str, url: str, body: dict[str, Any] | None = None, *, deadline_s: float) -> HttpReply:
        """The whole reply. Raises HttpError where there is none within `deadline_s` seconds."""
        with self.stream(method, url, body, deadline_s=deadline_s) as (status, retry_after, parts):
            return HttpReply(status, b"".join(parts), retry_after)

    @contextmanager
    def stream(
        self, method: str, url: str, body: dict[str, Any] | None = None, *, deadline_s: float
    ) -> Iterator[tuple[int, float | None, Iterator[bytes]]]:
        """(status, Retry-After in seconds, the body as it comes). Raises HttpError, also while the body is read."""
        deadline = _Deadline(deadline_s)
        try:
            with (
                deadline,
                self._client.stream(method, url, json=body, extensions={"trace": deadline.watch}) as response,
            ):
                check_encoding(response)
                yield response.status_code, retry_after_of(response), _limited(response.iter_bytes(), deadline)
        except _errors() as error:
            raise HttpError(deadline.reason if deadline.passed else _said(error), sent=_was_sent(error)) from None

    def close(self) -> None:
        self._client.close()


class _Deadline:
    """Shuts a connection down at its deadline, which also ends a read that waits: a byte a second would keep it alive.

    `watch` is httpcore's `trace`, which is told each connection that is made.
    """

    def __init__(self, seconds: float) -> None:
        self.passed, self.reason = False, _("no whole reply within {seconds:g} s", seconds=seconds)
        self._socket: socket.socket | None = None
        self._timer = threading.Timer(min(seconds, threading.TIMEOUT_MAX), self._cut)
        self._timer.daemon = True

    def __enter__(self) -> None:
        self._timer.start()

    def __exit__(self, *_: object) -> None:
        self._timer.cancel()

    def watch(self, event: str, info: dict[str, Any]) -> None:
        if event.endswith((".connect_tcp.complete", ".connect_unix_socket.complete", ".start_tls.complete")):
            self._socket = info["return_value"].get_extra_info("socket")
            if self.passed:
                self._cut()

    def _cut(self) -> None:
        self.passed = True
        if self._socket is not None:
            with suppress(OSError):
                self._socket.shutdown(socket.SHUT_RDWR)


def _limited(parts: Iterator[bytes], deadline: _Deadline) -> Iterator[bytes]:
    size = 0
    for part in parts:
        size = check_size(size + len(part))
        yield part
    if deadline.passed:  # a body without a length ends where its connection does
        raise HttpError(deadline.reason)


def _errors() -> tuple[type[Exception], ...]:
    """What httpx2 raises on what a network or an endpoint does."""
    import httpx2

    return (httpx2.HTTPError, httpx2.InvalidURL, httpx2.StreamError, httpx2.CookieConflict)


def _was_sent(error: Exception) -> bool:
    import httpx2

    before = (httpx2.ConnectError, httpx2.ConnectTimeout, httpx2.PoolTimeout, httpx2.ProxyError)
    return not isinstance(error, (*before, httpx2.UnsupportedProtocol, httpx2.LocalProtocolError))


def _said(error: Exception) -> str:
    """An error of httpx2 in words; they may hold the endpoint's."""
    return f"{type(error).__name__}: {shown(str(error))}" if str(error) else type(error).__name__
