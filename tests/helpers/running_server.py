"""A real `noesis serve` in a thread of the test, over models that recite."""

from __future__ import annotations

import asyncio
import json
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx2

from helpers.tiny_gguf import write_reciter
from noesis.constitution.document import SystemPrompt
from noesis.serving.app import AnswerJudge, ExampleStore
from noesis.serving.page.load import load_page
from noesis.serving.protocol import Limits
from noesis.serving.server import ModelFiles, Server, Settings

KEY = "noesis-test-key-of-the-tests"
SYSTEM = SystemPrompt(pt="Você é Noesis.", en="You are Noesis.")
ANSWER = ["[ANÁL", "ISE INT", "ERNA] I think", " more [FIM", " DA ANÁ", "LISE]", "\nCour", "age is", " knowledge."]
BASE = ["The base", " speaks", " plainly."]


def reciters(folder: Path) -> ModelFiles:
    return ModelFiles(write_reciter(folder / "tuned.gguf", ANSWER), write_reciter(folder / "base.gguf", BASE))


def endless(folder: Path) -> ModelFiles:
    """A model that goes on until it is stopped."""
    return ModelFiles(
        write_reciter(folder / "endless.gguf", [f" word{i}" for i in range(40)], forever=True, context=100_000), None
    )


@contextmanager
def running(
    files: ModelFiles, limits: Limits, *, judge: AnswerJudge | None = None, examples: ExampleStore | None = None
) -> Iterator[Client]:
    """Serve in a thread until the block ends; stopping must succeed."""
    settings = Settings(KEY, SYSTEM, "en", port=0, limits=limits)
    server = Server(files, settings, judge=judge, examples=examples, page=load_page())
    loop, up, stop = asyncio.new_event_loop(), threading.Event(), asyncio.Event()
    thread = threading.Thread(target=lambda: loop.run_until_complete(server.run(up.set, stop)))
    thread.start()
    assert up.wait(60)
    client = Client(server.url, server.port, lambda: loop.call_soon_threadsafe(stop.set))
    try:
        yield client
    finally:
        client.http.close()
        client.stop()
        thread.join(60)
        assert not thread.is_alive(), "the server did not stop"
        server.free()
        loop.close()


class Client:
    """Requests to it."""

    def __init__(self, url: str, port: int, stop: Callable[[], object]) -> None:
        self.url, self.port, self.stop = url, port, stop
        # A connection a request: the server may close one that stays idle at the moment that a request is sent on it.
        self.http = httpx2.Client(
            base_url=url,
            headers={"Authorization": f"Bearer {KEY}"},
            timeout=120,
            limits=httpx2.Limits(max_keepalive_connections=0),
        )

    def chat(self, **body):
        return self.http.post(
            "/v1/chat/completions", json={"model": "noesis", "messages": [{"role": "user", "content": "Hello"}]} | body
        )

    def events(self, **body) -> list[dict]:
        lines = self.chat(stream=True, **body).text.splitlines()
        assert lines[-2] == "data: [DONE]"
        return [json.loads(line[6:]) for line in lines if line.startswith("data: {")]

    def metric(self, name: str) -> float:
        return next(
            (
                float(line.rsplit(" ", 1)[1])
                for line in self.http.get("/metrics").text.splitlines()
                if line.startswith(name + " ")
            ),
            0.0,
        )

    def raw(self, data: bytes = b"") -> socket.socket:
        """A bare connection, with `data` sent."""
        sock = socket.create_connection(("127.0.0.1", self.port), timeout=60)
        sock.sendall(data)
        return sock

    def begin_stream(self, max_tokens: int, **more: object) -> socket.socket:
        """A streamed request of which the first piece has arrived."""
        body = json.dumps(
            {
                "model": "noesis",
                "stream": True,
                "max_tokens": max_tokens,
                "messages": [{"role": "user", "content": "Hi"}],
            }
            | more
        ).encode()
        head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\nAuthorization: Bearer {KEY}\r\nContent-Length: {len(body)}\r\n\r\n"
        sock = self.raw(head.encode() + body)
        received = b""
        while b" word" not in received:
            piece = sock.recv(4096)
            assert piece, f"the stream ended early: {received!r}"
            received += piece
        return sock
