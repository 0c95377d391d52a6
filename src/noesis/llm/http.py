"""HTTP as clients of models use it: every HTTP client of the package is made here.

An endpoint is hostile. A reply has one deadline, from its first byte to its last, and a limit in bytes after
decompression; redirects are not followed. Nothing that is meant for this machine goes through a proxy.
"""

from __future__ import annotations

import email.utils
import ipaddress
import json
import os
import re
import socket
import threading
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from noesis.core.errors import UsageError

if TYPE_CHECKING:
    import httpx2

MOST_BYTES = 8 << 20  # of a reply; one of 4,000 tokens, each with 20 alternatives, takes about 6 MB
CONNECT_S = 10.0
SHOWN = 200  # characters of an endpoint's own words in a message


class HttpError(Exception):
    """There is no whole reply; the message says why.

    sent: the request may have reached the endpoint
    """

    def __init__(self, reason: str, *, sent: bool = True) -> None:
        super().__init__(reason)
        self.sent = sent


@dataclass(frozen=True)
class HttpReply:
    """A whole reply. retry_after: seconds, where the endpoint says so"""

    status: int
    body: bytes
    retry_after: float | None = None

    @property
    def message(self) -> str:
        """The message in an error of OpenAI's form or any other; else the beginning of the body as text."""
        try:
            return error_message(parse_json(self.body))
        except ValueError:
            return self.body[: 4 * SHOWN].decode(errors="replace")


# --- where a request goes


def is_loopback(url: str) -> bool:
    """Whether `url` leads to this machine by its loopback interface, however that is spelt: `127.1`, `[::1]`, …"""
    host = (urlsplit(url).hostname or "").rstrip(".").lower()
    if host == "localhost" or host.endswith(".localhost"):
        return True
    with suppress(OSError):  # the short forms that the system's resolver takes, too
        host = socket.inet_ntoa(socket.inet_aton(host))
    try:
        address = ipaddress.ip_address(host.partition("%")[0])
    except ValueError:
        return False
    address = getattr(address, "ipv4_mapped", None) or address
    return address.is_loopback or address.is_unspecified


def spare_loopback_from_proxies() -> None:
    """Have libraries and child processes, which make their own clients, reach this machine without a proxy."""
    for name in ("no_proxy", "NO_PROXY"):
        hosts = [host for host in os.environ.get(name, os.environ.get(name.swapcase(), "")).split(",") if host.strip()]
        os.environ[name] = ",".join([*hosts, *(h for h in ("localhost", "127.0.0.1", "::1") if h not in hosts)])


def _options(url: str, headers: dict[str, str]) -> dict[str, Any]:
    import httpx2

    options: dict[str, Any] = {"headers": headers | {"Accept-Encoding": "gzip, identity"}, "follow_redirects": False}
    if is_loopback(url):  # certificates are still those of the environment
        options |= {"trust_env": False, "verify": httpx2.create_ssl_context()}
    return options


@contextmanager
def _explained_proxy() -> Iterator[None]:
    import httpx2

    try:
        yield
    except (ImportError, ValueError, httpx2.InvalidURL) as error:
        raise UsageError(f"the proxy that HTTP_PROXY, HTTPS_PROXY or ALL_PROXY names can't be used: {error}") from None


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
        import asyncio

        import httpx2

        limits = httpx2.Timeout(deadline_s, connect=min(CONNECT_S, deadline_s / 2))
        try:
            async with asyncio.timeout(deadline_s):
                async with self._opened(url, body, limits) as response:
                    _check_encoding(response)
                    size, parts = 0, []
                    async for part in response.aiter_bytes():
                        size = _check_size(size + len(part))
                        parts.append(part)
                    return HttpReply(response.status_code, b"".join(parts), _retry_after_of(response))
        except (TimeoutError, httpx2.TimeoutException) as error:
            raise HttpError(f"no reply within {deadline_s:g} s", sent=_was_sent(error)) from None
        except _errors() as error:
            raise HttpError(_said(error), sent=_was_sent(error)) from None

    @asynccontextmanager
    async def _opened(self, url: str, body: dict[str, Any], limits: httpx2.Timeout) -> AsyncIterator[httpx2.Response]:
        async with self._client.stream("POST", url, json=body, timeout=limits) as response:
            yield response

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
                _check_encoding(response)
                yield response.status_code, _retry_after_of(response), _limited(response.iter_bytes(), deadline)
        except _errors() as error:
            raise HttpError(deadline.reason if deadline.passed else _said(error), sent=_was_sent(error)) from None

    def close(self) -> None:
        self._client.close()


class _Deadline:
    """Shuts a connection down at its deadline, which also ends a read that waits: a byte a second would keep it alive.

    `watch` is httpcore's `trace`, which is told each connection that is made.
    """

    def __init__(self, seconds: float) -> None:
        self.passed, self.reason = False, f"no whole reply within {seconds:g} s"
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


# --- replies


def lines(parts: Iterator[bytes]) -> Iterator[bytes]:
    """The lines of a body that comes in parts; only a newline byte ends one."""
    line: list[bytes] = []
    for part in parts:
        first, *rest = part.split(b"\n")
        line.append(first)
        for piece in rest:
            yield b"".join(line)
            line = [piece]
    yield b"".join(line)


def parse_json(data: bytes | str) -> Any:
    """The value that `data` holds; no NaN, no half characters, not nested beyond reason.

    Raises:
        ValueError: it is not such JSON; the message says where.
    """
    from pydantic_core import from_json

    try:
        return from_json(data, allow_inf_nan=False)
    except ValueError as error:
        raise ValueError(f"not JSON ({error})") from None


def error_message(body: Any) -> str:
    """The message in a parsed error of OpenAI's form or any other."""
    error = body.get("error", body) if isinstance(body, dict) else body
    message = error.get("message", error) if isinstance(error, dict) else error
    return message if isinstance(message, str) else json.dumps(message, ensure_ascii=False)


def shown(text: str, secret: str | None = None) -> str:
    """An endpoint's words in a message: quoted, shortened, with escapes for control characters, without `secret`."""
    text = text.replace(secret, "[key]") if secret else text
    return repr(text if len(text) <= SHOWN else text[:SHOWN] + "…")


def retry_after(value: str | None) -> float | None:
    """Seconds of a Retry-After header, a number or an HTTP date; None where there is none or it can't be read."""
    if not value:
        return None
    if re.fullmatch(r"[0-9]+(?:\.[0-9]+)?", value.strip()):
        return float(value)
    try:
        return max(0.0, email.utils.parsedate_to_datetime(value).timestamp() - time.time())
    except (ValueError, OverflowError, OSError):
        return None


def _retry_after_of(response: httpx2.Response) -> float | None:
    return retry_after(response.headers.get("retry-after"))


def _check_encoding(response: httpx2.Response) -> None:
    coding = response.headers.get("content-encoding", "identity").strip().lower()
    if coding not in ("gzip", "identity", ""):  # codings inside each other multiply without giving a byte
        raise HttpError(f"a reply in the coding {shown(coding)}, which was not asked for")


def _check_size(size: int) -> int:
    if size > MOST_BYTES:
        raise HttpError(f"a reply of more than {MOST_BYTES >> 20} MiB")
    return size


def _limited(parts: Iterator[bytes], deadline: _Deadline) -> Iterator[bytes]:
    size = 0
    for part in parts:
        size = _check_size(size + len(part))
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
