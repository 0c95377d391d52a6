"""Addresses of endpoints: which are usable, and which lead to this machine, however they are spelt."""

from __future__ import annotations

import ipaddress
import os
import re
import socket
import unicodedata
from contextlib import suppress
from functools import cache
from urllib.parse import unquote, urlsplit

from noesis.core.errors import UsageError
from noesis.core.i18n import _

LOCAL_NAMES = frozenset(
    ("localhost", "localhost4", "localhost6", "localhost.localdomain", "ip6-localhost", "ip6-loopback")
)
_HOST = re.compile(r"\w(?:[\w-]*\w)?(?:\.\w(?:[\w-]*\w)?)*\.?", re.ASCII)  # docker's names have underscores
_AUTHORITY = re.compile(r"https?://([^/?#\\]*)", re.IGNORECASE)


def check_url(url: str, option: str) -> str:
    """`url` without a slash at its end.

    It has to say plainly where text goes: no user or password before the host, nothing that programs read differently.

    Args:
        option: where it was given, for messages.

    Raises:
        UsageError: it is not such an address; the message never shows a password.
    """
    problem = _url_problem(url)
    if problem is not None:
        raise UsageError(
            _(
                "{option} {without_password!r}: {problem}; "
                "give one such as http://127.0.0.1:8017/v1 or https://api.openai.com/v1",
                option=option,
                without_password=without_password(url),
                problem=problem,
            )
        )
    return url.rstrip("/")


def without_password(text: str) -> str:
    """`text` for a message: what may be a user and a password in a URL is left out."""
    start, end = text.find("//"), text.rfind("@")
    return f"{text[:start]}//…{text[end:]}" if 0 <= start < end else text


def host_and_port(url: str) -> str:
    """Where a checked URL sends text, for a message: `api.openai.com`, `127.0.0.1:8017`."""
    return urlsplit(url).netloc


def _url_problem(url: str) -> str | None:
    authority = _AUTHORITY.match(url)
    if authority is None:
        return _("this is no http or https address")
    if "@" in authority[1]:
        return _("an address holds no user and no password: a key comes from its environment variable")
    if not url.isascii() or not url.isprintable() or " " in url or "\\" in url:
        return _("an address has plain ASCII characters only: write a name with other letters as its DNS name, xn--…")
    try:
        parts = urlsplit(url)
        host, port = parts.hostname or "", parts.port
        if re.fullmatch(r"\[[0-9a-fA-F:.]+\](?::[0-9]+)?", authority[1]):
            ipaddress.IPv6Address(host)
        elif not _HOST.fullmatch(host):
            return _("{host!r} is no name of a host", host=host)
    except ValueError as error:  # a bracket or a port that is none
        return str(error)
    if port == 0:
        return _("port 0 is none")
    if parts.query or parts.fragment or url.endswith(("?", "#")):
        return _("a base URL ends before ? and # (Azure's is https://RESOURCE.openai.azure.com/openai/v1)")
    return None


# --- this machine


def is_loopback(url: str) -> bool:
    """Whether `url` leads to this machine: `127.1`, `[::1]`, its own name or address, a name that resolves to them."""
    try:
        host = urlsplit(url).hostname or ""
    except ValueError:
        return False
    host = unicodedata.normalize("NFKC", unquote(host)).replace("。", ".").rstrip(".").lower()
    if host in LOCAL_NAMES or host.endswith(".localhost"):
        return True
    with suppress(OSError, ValueError):  # the short forms that the system's resolver takes, too
        host = socket.inet_ntoa(socket.inet_aton(host))
    try:
        return _is_own(host)
    except ValueError:
        addresses = _resolved(host)
        return bool(addresses) and all(map(_is_own, addresses))


def is_loopback_address(address: str) -> bool:
    """Whether nothing but this machine reaches what listens at `address`, an IP address."""
    return _parsed(address).is_loopback


def spare_loopback_from_proxies() -> None:
    """Have libraries and child processes, which make their own clients, reach this machine without a proxy."""
    own = ("localhost", "127.0.0.1", "::1", socket.gethostname())
    for name in ("no_proxy", "NO_PROXY"):
        hosts = [host for host in os.environ.get(name, os.environ.get(name.swapcase(), "")).split(",") if host.strip()]
        os.environ[name] = ",".join([*hosts, *(h for h in own if h and h not in hosts)])


def _is_own(address: str) -> bool:
    """Raises ValueError where it is no IP address."""
    found = _parsed(address)
    return found.is_loopback or found.is_unspecified or found in _own_addresses()


def _parsed(address: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address:
    found = ipaddress.ip_address(address.partition("%")[0])
    return getattr(found, "ipv4_mapped", None) or found


@cache
def _own_addresses() -> frozenset[ipaddress.IPv4Address | ipaddress.IPv6Address]:
    import psutil

    families = (socket.AF_INET, socket.AF_INET6)
    try:
        interfaces = psutil.net_if_addrs()
    except OSError:  # a sandbox that does not show them
        return frozenset()
    return frozenset(_parsed(one.address) for of in interfaces.values() for one in of if one.family in families)


@cache
def _resolved(host: str) -> frozenset[str]:
    try:
        return frozenset(str(found[4][0]) for found in socket.getaddrinfo(host, None, type=socket.SOCK_STREAM))
    except (OSError, UnicodeError, ValueError):
        return frozenset()
