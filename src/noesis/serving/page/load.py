"""Puts the page together from its parts: it may run its own script and call its own server only."""

from __future__ import annotations

import base64
import hashlib
from dataclasses import dataclass
from html import escape
from pathlib import Path

NAME = "Noesis"  # as it stands in page.html
FOLDER = Path(__file__).parent
SCRIPTS = (
    "words",
    "markdown",
    "conversation",
    "server",
    "cards",
    "example",
    "strength",
    "page",
)  # one script, in this order


@dataclass(frozen=True)
class Page:
    """The page and its HTTP headers."""

    html: str
    headers: dict[str, str]


def load_page(name: str = NAME) -> Page:
    """Put the page together, entitled with who answers.

    Its Content-Security-Policy allows its one script and one style sheet by their hashes.
    """
    style = _read("style.css")
    script = '"use strict";\n' + "\n".join(_read(f"{name}.js") for name in SCRIPTS)
    html = _read("page.html")
    for tag in ("title", "h1"):
        html = html.replace(f"<{tag}>{NAME}</{tag}>", f"<{tag}>{escape(name)}</{tag}>", 1)
    html = html.replace("<style></style>", f"<style>{style}</style>", 1)
    html = html.replace("<script></script>", f"<script>{script}</script>", 1)
    policy = (
        f"default-src 'none'; script-src '{_hash(script)}'; style-src '{_hash(style)}'; connect-src 'self'; "
        "img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    )
    headers = {
        "Content-Security-Policy": policy,
        "Referrer-Policy": "no-referrer",
        "Cache-Control": "no-store",
        "X-Frame-Options": "DENY",
    }
    return Page(html, headers)


def _read(name: str) -> str:
    return (FOLDER / name).read_text(encoding="utf-8")


def _hash(content: str) -> str:
    return "sha256-" + base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()
