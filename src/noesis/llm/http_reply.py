"""An endpoint's reply over HTTP, as hostile input: what is accepted of it, and how its words are shown."""

from __future__ import annotations

import email.utils
import html
import json
import re
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from noesis.core.i18n import _
from noesis.core.jsonl import BYTE_ORDER_MARK

if TYPE_CHECKING:
    import httpx2

MOST_BYTES = 8 << 20  # of a reply; one of 4,000 tokens, each with 20 alternatives, takes about 6 MB
WORDS = ("message", "detail", "error_description", "title")  # where errors have their words
PAGE = 4000  # bytes of an error page that are read
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
            return _text_of_page(self.body[:PAGE].decode(errors="replace"))


def _text_of_page(text: str) -> str:
    """The words of an error page in HTML: its title, or the text without tags; any other text as it is."""
    if not re.match(r"\s{0,100}<(?:!doctype|html|head|body|h1|center)\b", text, re.IGNORECASE):
        return text[: 4 * SHOWN]
    title = re.search(r"<title>([^<]{1,400})</title>", text, re.IGNORECASE)
    return " ".join(html.unescape(title[1] if title else re.sub(r"<[^<>]*>", " ", text)).split())


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


def parse_json(data: bytes | str, *, constants: bool = False) -> Any:
    """The value that `data` holds; no half characters, not nested beyond reason.

    Args:
        constants: read NaN and Infinity too, which Python's servers write where nobody looks (log-probabilities).

    Raises:
        ValueError: it is not such JSON; the message says where.
    """
    from pydantic_core import from_json

    try:
        return from_json(
            data.removeprefix(BYTE_ORDER_MARK) if isinstance(data, bytes) else data, allow_inf_nan=constants
        )
    except ValueError as error:
        raise ValueError(_("not JSON ({error})", error=error)) from None


def error_message(body: Any) -> str:
    """The message in a parsed error of OpenAI's form or any other."""
    if isinstance(body, list) and len(body) == 1:  # Gemini's
        body = body[0]
    error = (body.get("error") or body) if isinstance(body, dict) else body
    message = next((error[name] for name in WORDS if error.get(name)), error) if isinstance(error, dict) else error
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


def retry_after_of(response: httpx2.Response) -> float | None:
    exact = retry_after(response.headers.get("retry-after-ms"))  # OpenAI's and Azure's
    return exact / 1000 if exact is not None else retry_after(response.headers.get("retry-after"))


def check_encoding(response: httpx2.Response) -> None:
    coding = response.headers.get("content-encoding", "identity").strip().lower()
    if coding not in ("gzip", "identity", ""):  # codings inside each other multiply without giving a byte
        raise HttpError(_("a reply in the coding {coding}, which was not asked for", coding=shown(coding)))


def check_size(size: int) -> int:
    if size > MOST_BYTES:
        raise HttpError(_("a reply of more than {most_bytes} MiB", most_bytes=MOST_BYTES >> 20))
    return size
