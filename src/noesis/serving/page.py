"""The page of `noesis serve --ui`: one file, no build step. It may run its own script and call its own server only."""

from __future__ import annotations

import base64
import hashlib
import re
from dataclasses import dataclass
from html import escape
from pathlib import Path

NAME = "Noesis"  # as it stands in the file
FILE = Path(__file__).with_name("ui.html")


@dataclass(frozen=True)
class Page:
    """The page and its HTTP headers."""

    html: str
    headers: dict[str, str]


def load_page(name: str = NAME, file: Path = FILE) -> Page:
    """Read the page, entitled with who answers.

    Its Content-Security-Policy allows its one script and its one style sheet by their hashes.
    """
    html = file.read_text(encoding="utf-8")
    for tag in ("title", "h1"):
        html = html.replace(f"<{tag}>{NAME}</{tag}>", f"<{tag}>{escape(name)}</{tag}>")
    script, style = (_hash(html, tag) for tag in ("script", "style"))
    policy = (
        f"default-src 'none'; script-src '{script}'; style-src '{style}'; connect-src 'self'; "
        "img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    )
    headers = {
        "Content-Security-Policy": policy,
        "Referrer-Policy": "no-referrer",
        "Cache-Control": "no-store",
        "X-Frame-Options": "DENY",
    }
    return Page(html, headers)


def _hash(html: str, tag: str) -> str:
    (content,) = re.findall(rf"<{tag}>(.*?)</{tag}>", html, re.DOTALL)
    return "sha256-" + base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()
