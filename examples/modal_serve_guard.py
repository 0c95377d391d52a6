"""Asks for the key at every address of vLLM's server, which does so at some: examples/modal_serve.py loads it there.

Without it, whoever knows the endpoint could generate by `/invocations`, pause the server, or, in its development
mode, do more. Page: https://docs.vllm.ai/en/latest/usage/security
"""

from __future__ import annotations

import hmac
import os
from collections.abc import Awaitable, Callable
from typing import Any

OPEN = ("/health",)  # says only that it answers

Receive, Send = Callable[[], Awaitable[Any]], Callable[[dict[str, Any]], Awaitable[None]]


class KeyGuard:
    """ASGI middleware: what has not the key of VLLM_API_KEY is answered with 401."""

    def __init__(self, app: Callable[..., Awaitable[None]]) -> None:
        self.app, self.expected = app, f"Bearer {os.environ['VLLM_API_KEY']}".encode()

    async def __call__(self, scope: dict[str, Any], receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan" or (scope["type"] == "http" and scope["path"] in OPEN) or self._has_key(scope):
            await self.app(scope, receive, send)
        elif scope["type"] == "http":
            head = [(b"content-type", b"application/json"), (b"www-authenticate", b"Bearer")]
            await send({"type": "http.response.start", "status": 401, "headers": head})
            await send({"type": "http.response.body", "body": b'{"error": "Unauthorized"}'})
        else:
            await send({"type": "websocket.close", "code": 1008})

    def _has_key(self, scope: dict[str, Any]) -> bool:
        given = [value for name, value in scope["headers"] if name == b"authorization"]
        return len(given) == 1 and hmac.compare_digest(given[0], self.expected)
