"""The public client of a language model: any endpoint that speaks OpenAI's chat protocol.

    client = LLMClient("http://127.0.0.1:8017/v1", key, "noesis")
    answer = client.complete([{"role": "user", "content": "What is courage?"}], max_tokens=200)
    answer.text, answer.total_tokens

It posts to `{base_url}chat/completions` and reads `choices[0].message.content` and `usage`; `noesis connect RUN` prints
the three values.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

from noesis.core.errors import ModelError, UsageError
from noesis.core.messages import Message

SHORTEST_KEY = 11  # characters
ATTEMPTS, LONGEST_WAIT_S = 4, 10.0
RETRIED = (408, 429, 502, 503, 504)


@dataclass(frozen=True)
class Completion:
    """An answer.

    finish: the endpoint's finish_reason, `stop` or `length`
    prompt_tokens, completion_tokens, total_tokens: 0 where the endpoint does not count them
    logprobs: entries of `choices[0].logprobs.content`
    """

    text: str
    finish: str
    prompt_tokens: int = 0
    completion_tokens: int = 0
    total_tokens: int = 0
    logprobs: list[dict[str, Any]] = field(default_factory=list)


class LLMClient:
    """One model at one endpoint."""

    def __init__(
        self, base_url: str, api_key: str, model: str, *, timeout_s: float = 120.0, socket: str | None = None
    ) -> None:
        """Prepare a client; nothing is sent yet.

        Args:
            base_url: http or https, with or without a slash at its end.
            timeout_s: seconds between two chunks of an answer.
            socket: path of a Unix socket to connect to, whatever host `base_url` names.

        Raises:
            UsageError: `base_url` is not a URL, or the key is too short to be one.
        """
        import httpx2

        parts = urlsplit(base_url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise UsageError(
                f"base URL {base_url!r}: give one such as http://127.0.0.1:8017/v1 or https://api.openai.com/v1"
            )
        if len(api_key) < SHORTEST_KEY:
            raise UsageError(
                f"the API key has {len(api_key)} characters; keys have at least {SHORTEST_KEY}: "
                "set NOESIS_API_KEY, or give --key"
            )
        self.base_url, self.model = base_url.rstrip("/") + "/", model
        headers = {"Authorization": f"Bearer {api_key}"}
        # a connection a request: llama.cpp's server closes one that streamed, and the next request on it would be lost
        limits = httpx2.Limits(max_keepalive_connections=0)
        self._http = httpx2.Client(
            base_url=self.base_url,
            headers=headers,
            timeout=httpx2.Timeout(timeout_s, connect=10.0),
            limits=limits,
            transport=httpx2.HTTPTransport(uds=socket, limits=limits) if socket else None,
            trust_env=socket is None,
        )

    def close(self) -> None:
        self._http.close()

    def models(self) -> list[dict[str, Any]]:
        """The endpoint's models; empty where it does not list them."""
        reply = self._send("GET", "models", None)
        try:
            return [m for m in reply.json()["data"] if isinstance(m, dict)]
        except (ValueError, KeyError, TypeError):
            return []

    def complete(
        self,
        messages: list[Message],
        *,
        temperature: float = 0.7,
        max_tokens: int = 512,
        on_token: Callable[[str], None] | None = None,
        **more: Any,
    ) -> Completion:
        """The model's answer; with `on_token` it is streamed, and `on_token` is called with each piece of text.

        Args:
            more: further fields of the request (seed, logprobs, …).

        Raises:
            ModelError: the endpoint can't be reached, or refuses.
        """
        body = {"model": self.model, "messages": messages, "temperature": temperature, "max_tokens": max_tokens, **more}
        if on_token is None:
            reply = self._send("POST", "chat/completions", body)
            try:
                return _completion(reply.json())
            except (ValueError, KeyError, IndexError, TypeError):
                raise ModelError(
                    f"{self.base_url} does not answer in OpenAI's protocol: {reply.text[:200]!r}"
                ) from None
        return self._stream(body | {"stream": True}, on_token)

    def _send(self, method: str, path: str, body: dict[str, Any] | None) -> Any:
        import httpx2

        for attempt in range(ATTEMPTS):
            try:
                reply = self._http.request(method, path, json=body)
            except httpx2.HTTPError as error:
                raise self._unreachable(error) from None
            if reply.status_code == 200:
                return reply
            if reply.status_code not in RETRIED or attempt == ATTEMPTS - 1:
                raise self._refused(reply)
            time.sleep(_wait(reply.headers.get("retry-after"), attempt))
        raise AssertionError("the last attempt returns or raises")

    def _stream(self, body: dict[str, Any], on_token: Callable[[str], None]) -> Completion:
        import httpx2

        pieces: list[str] = []
        entries: list[dict[str, Any]] = []
        finish = ""
        usage: dict[str, Any] = {}
        for attempt in range(ATTEMPTS):
            try:
                with self._http.stream("POST", "chat/completions", json=body) as reply:
                    if reply.status_code in RETRIED and attempt < ATTEMPTS - 1:
                        time.sleep(_wait(reply.headers.get("retry-after"), attempt))
                        continue
                    if reply.status_code != 200:
                        reply.read()
                        raise self._refused(reply)
                    for event in _events(reply.iter_lines()):
                        if "error" in event:
                            raise ModelError(f"{self.base_url} broke off: {_message(event)}")
                        usage = event.get("usage") or usage
                        for choice in event.get("choices") or []:
                            finish = choice.get("finish_reason") or finish
                            entries += (choice.get("logprobs") or {}).get("content") or []
                            if text := (choice.get("delta") or {}).get("content"):
                                pieces.append(text)
                                on_token(text)
                    return _completed("".join(pieces), finish, usage, entries)
            except httpx2.HTTPError as error:
                raise self._unreachable(error) from None
        raise AssertionError("the last attempt returns or raises")

    def _unreachable(self, error: Exception) -> ModelError:
        return ModelError(
            f"{self.base_url} can't be reached ({type(error).__name__}: {error}): is the server running?  "
            "noesis serve RUN  starts it"
        )

    def _refused(self, reply: Any) -> ModelError:
        what = {401: "the key is not accepted", 404: f"there is no model {self.model!r}, or the base URL is wrong"}.get(
            reply.status_code, "refused"
        )
        try:
            message = _message(reply.json())
        except ValueError:
            message = reply.text[:200]
        return ModelError(f"{self.base_url}: {what} (HTTP {reply.status_code}): {message}")


def _events(lines: Iterator[str]) -> Iterator[dict[str, Any]]:
    for line in lines:
        if line.startswith("data:") and (data := line[5:].strip()) not in ("", "[DONE]"):
            try:
                event = json.loads(data)
            except ValueError:
                raise ModelError(f"an event of the stream is not JSON: {data[:100]!r}") from None
            if isinstance(event, dict):
                yield event


def _completion(answer: dict[str, Any]) -> Completion:
    choice = answer["choices"][0]
    entries = (choice.get("logprobs") or {}).get("content") or []
    return _completed(
        str(choice["message"]["content"] or ""),
        str(choice.get("finish_reason") or ""),
        answer.get("usage") or {},
        entries,
    )


def _completed(text: str, finish: str, usage: dict[str, Any], entries: list[dict[str, Any]]) -> Completion:
    prompt, completion, total = (int(usage.get(f"{kind}_tokens") or 0) for kind in ("prompt", "completion", "total"))
    return Completion(text, finish, prompt, completion, total, entries)


def _message(body: Any) -> str:
    error = body.get("error", body) if isinstance(body, dict) else body
    return str(error.get("message", error) if isinstance(error, dict) else error)[:300]


def _wait(retry_after: str | None, attempt: int) -> float:
    """Seconds before the next attempt: the endpoint's Retry-After, else half a second, doubled each time."""
    seconds = float(retry_after) if retry_after and retry_after.strip().isdigit() else 0.5 * 2**attempt
    return min(seconds, LONGEST_WAIT_S)
