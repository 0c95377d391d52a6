"""An endpoint that answers each request with the bytes that a test gives it, however odd.

    with RawServer(lambda number: ok({"choices": []})) as server:
        url = server.url

A part is a function of the request's number, from 1, that returns bytes, or yields some and waits in between. The
connection is closed after them.
"""

from __future__ import annotations

import json
import socketserver
import threading
from collections.abc import Callable, Iterator
from typing import Any

Part = Callable[[int], "bytes | Iterator[bytes]"]
USAGE = {"prompt_tokens": 1000, "completion_tokens": 200}


def ok(body: Any, *headers: str) -> bytes:
    """HTTP 200 with `body`, bytes as they are and anything else as JSON."""
    return answer(200, body, *headers)


def answer(status: int, body: Any, *headers: str) -> bytes:
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    lines = [f"HTTP/1.1 {status} x", f"Content-Length: {len(data)}", "Connection: close", *headers]
    return "\r\n".join(lines).encode("latin-1") + b"\r\n\r\n" + data


def chat(content: Any = "7", *, usage: Any = USAGE, **choice: Any) -> dict[str, Any]:
    """The body of a good reply; `usage=None` leaves it out."""
    body: dict[str, Any] = {"choices": [{"message": {"content": content}, "finish_reason": "stop", **choice}]}
    return body if usage is None else body | {"usage": usage}


class RawServer:
    """Plays a part on a port of its own until the block ends; `requests` are those that came, head and body."""

    def __init__(self, part: Part) -> None:
        self.requests: list[bytes] = []
        lock, server = threading.Lock(), self

        class Handler(socketserver.StreamRequestHandler):
            def handle(self) -> None:
                head = b""
                while line := self.rfile.readline():
                    head += line
                    if line == b"\r\n":
                        break
                sizes = [
                    line.split(b":")[1] for line in head.split(b"\r\n") if line.lower().startswith(b"content-length")
                ]
                body = self.rfile.read(int(sizes[0])) if sizes else b""
                if not head:
                    return
                with lock:
                    server.requests.append(head + body)
                    number = len(server.requests)
                played = part(number)
                for piece in [played] if isinstance(played, bytes) else played:
                    self.wfile.write(piece)
                    self.wfile.flush()

        class Server(socketserver.ThreadingTCPServer):
            allow_reuse_address = daemon_threads = True
            block_on_close = False
            request_queue_size = 64

            def handle_error(self, *_: object) -> None: ...  # a client that hangs up is part of the play

        self._server = Server(("127.0.0.1", 0), Handler)
        self.port = self._server.server_address[1]
        self.url = f"http://127.0.0.1:{self.port}/v1"

    def __enter__(self) -> RawServer:
        threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()
