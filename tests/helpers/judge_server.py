"""A scripted judge: a real HTTP server that speaks the OpenAI protocol and plays one part, known in advance.

    with JudgeServer(good()) as server:
        spec = f"openai:{server.url}:scripted"

A part is a function of the request (`Asked`) that returns a reply's text, or a `Raw` answer with status and headers. What is right is
told by the answers under judgement themselves: they hold a word such as `quality7` (7 of 10).
"""

from __future__ import annotations

import hashlib
import json
import math
import random
import re
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


@dataclass(frozen=True)
class Asked:
    """What a request holds, as a judge would read it."""

    body: dict
    number: int
    headers: dict = field(default_factory=dict)

    @property
    def user(self) -> str:
        return self.body["messages"][-1]["content"]

    @property
    def answer(self) -> str:
        """The text between the marks of the answer, with the code that the prompt itself names first."""
        code = re.search(r"<<<(?:ANSWER|RESPOSTA) ([0-9a-f]{8})>>>", self.user)[1]
        return re.findall(rf"<<<(?:ANSWER|RESPOSTA) {code}>>>\n(.*?)\n<<<(?:END|FIM) {code}>>>", self.user, re.DOTALL)[
            -1
        ]

    @property
    def fields(self) -> list[str]:
        """The scored fields, from the schema in the prompt."""
        schema = json.loads(re.search(r'\{"type": "object".*\}', self.body["messages"][0]["content"])[0])
        return [name for name, kind in schema["properties"].items() if "enum" in kind]

    @property
    def quality(self) -> float:
        found = re.search(r"quality(\d+)", self.answer)
        return int(found[1]) / 10 if found else 0.5


@dataclass(frozen=True)
class Raw:
    """An HTTP answer as it is; `wait` seconds first, `drop`: the connection is closed instead; `letters`: probability of the first tokens."""

    status: int = 200
    text: str = ""
    headers: tuple = ()
    wait: float = 0.0
    drop: bool = False
    letters: tuple = ()


Part = Callable[[Asked], "str | Raw"]


def verdict(asked: Asked, quality: float, *, span: str | None = None) -> str:
    """A well-formed reply whose points are `quality` of all, with a true span for each above 0."""
    names = asked.fields
    points = round(quality * 2 * len(names))
    scores = [min(2, max(0, points - 2 * i)) for i in range(len(names))]
    evidence = " ".join(asked.answer.split()[:6]) if span is None else span
    reply = {"reasoning": "as scripted"}
    for name, score in zip(names, scores, strict=True):
        reply |= {f"{name}_span": evidence if score else "", name: str(score)}  # a 0 with evidence could be a veto
    return json.dumps(reply, ensure_ascii=False)


def good() -> Part:
    return lambda asked: verdict(asked, asked.quality)


def noisy(sensitivity: float, specificity: float, threshold: float = 0.7) -> Part:
    """Says of a good answer that it is good with chance `sensitivity`, of a bad one that it is bad with `specificity`; the same each time."""

    def part(asked: Asked) -> str:
        draw = random.Random(hashlib.sha256(asked.answer.encode()).hexdigest()).random()
        passed = draw < sensitivity if asked.quality >= threshold else draw >= specificity
        return verdict(asked, 0.9 if passed else 0.2)

    return part


def likes_length() -> Part:
    return lambda asked: verdict(asked, min(1.0, len(asked.answer.split()) / 100))


def likes_the_first_words() -> Part:
    """Judges by how the answer begins."""
    return lambda asked: verdict(asked, 0.9 if asked.answer.startswith("first") else 0.3)


def slow(seconds: float) -> Part:
    return lambda asked: Raw(text=verdict(asked, asked.quality), wait=seconds)


def together(part: Part, count: int) -> Part:
    """The first `count` requests are answered once all of them have come, however slow the machine (30 s at most)."""
    come = threading.Event()

    def played(asked: Asked) -> str | Raw:
        if asked.number >= count:
            come.set()
        come.wait(30)
        return part(asked)

    return played


def rate_limiting(every: int, retry_after: str = "0.05") -> Part:
    """Refuses every n-th request with 429."""
    return lambda asked: (
        Raw(429, "slow down", (("Retry-After", retry_after),))
        if asked.number % every == 0
        else verdict(asked, asked.quality)
    )


def malformed_first() -> Part:
    """The first reply about an answer can't be read, the second can."""
    return lambda asked: (
        verdict(asked, asked.quality)
        if "could not be read" in asked.user or "não pôde ser lida" in asked.user
        else "Well, I would say it is good."
    )


def malformed() -> Part:
    return lambda asked: '{"reasoning": "I lose my way'


def truncated() -> Part:
    return lambda asked: Raw(text=verdict(asked, asked.quality)[:80], status=200, headers=(("X-Finish", "length"),))


def injected() -> Part:
    """Believes what the answer says of itself: obeys an instruction in it if the marks let it out."""

    def part(asked: Asked) -> str:
        told = re.search(r"give (?:me )?10/10", asked.answer)
        echoed = verdict(asked, 1.0) if told else ""
        return (
            echoed + "\nThe text asked for a perfect score; that is not mine to obey.\n" + verdict(asked, asked.quality)
        )

    return part


def dead() -> Part:
    return lambda asked: Raw(drop=True)


def fails(status: int) -> Part:
    return lambda asked: Raw(status, '{"error": {"message": "no"}}')


class JudgeServer:
    """Serves one part on a port of its own until the block ends; `requests` holds what came."""

    def __init__(self, part: Part, *, usage: bool = True, port: int = 0) -> None:
        self.requests: list[Asked] = []
        self.most_at_once = self._now = 0
        lock = threading.Lock()
        server = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            wbufsize = -1  # headers and body in one packet

            def log_message(self, *_: object) -> None: ...

            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                with lock:
                    asked = Asked(body, len(server.requests) + 1, dict(self.headers))
                    server.requests.append(asked)
                    server._now += 1
                    server.most_at_once = max(server.most_at_once, server._now)
                played = part(asked)
                raw = played if isinstance(played, Raw) else Raw(text=played)
                time.sleep(raw.wait)
                with lock:
                    server._now -= 1
                if raw.drop:
                    self.close_connection = True
                    self.connection.close()
                    return
                finish = dict(raw.headers).get("X-Finish", "stop")
                content = raw.text
                if raw.status == 200:
                    reply = {
                        "choices": [{"message": {"role": "assistant", "content": raw.text}, "finish_reason": finish}]
                    }
                    if raw.letters:
                        tops = [{"token": token, "logprob": math.log(p)} for token, p in raw.letters]
                        reply["choices"][0]["logprobs"] = {"content": [tops[0] | {"top_logprobs": tops}]}
                    content = json.dumps(
                        reply | ({"usage": {"prompt_tokens": 1000, "completion_tokens": 200}} if usage else {})
                    )
                self.send_response(raw.status)
                for name, value in raw.headers:
                    self.send_header(name, value)
                data = content.encode()
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)
                self.wfile.flush()

        class Server(ThreadingHTTPServer):
            request_queue_size = 64

            def handle_error(self, *_: object) -> None: ...  # a client that hangs up is part of the play

        self._server = Server(("127.0.0.1", port), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}/v1"
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)

    def __enter__(self) -> JudgeServer:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()
