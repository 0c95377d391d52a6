"""The public client of a language model: any endpoint that speaks OpenAI's chat protocol.

    client = LLMClient("http://127.0.0.1:8017/v1", key, "noesis")
    answer = client.complete([{"role": "user", "content": "What is courage?"}], max_tokens=200)
    answer.text, answer.total_tokens

It posts to `{base_url}chat/completions` and reads `choices[0].message.content` and `usage`; `noesis connect RUN` prints
the three values.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from noesis.core.console import command
from noesis.core.errors import ModelError, UsageError
from noesis.core.i18n import _
from noesis.core.messages import Message
from noesis.llm.addresses import check_url
from noesis.llm.clients.chat_reply import TokenEntry, read_chat_reply, read_piece, read_usage
from noesis.llm.http import Http
from noesis.llm.http_reply import HttpError, HttpReply, error_message, lines, parse_json, shown

SHORTEST_KEY = 11  # characters
ATTEMPTS, LONGEST_WAIT_S = 4, 10.0
STREAM_FACTOR = 10  # a streamed answer may take this many times as long as the endpoint may be silent
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
            timeout_s: seconds of a whole answer; of a streamed one, seconds between two pieces, and ten times as many
                for the whole.
            socket: path of a Unix socket to connect to, whatever host `base_url` names.

        Raises:
            UsageError: `base_url` is not a URL, or the key is too short to be one.
        """
        self.base_url, self.model = check_url(base_url, "base URL") + "/", model
        if len(api_key) < SHORTEST_KEY:
            raise UsageError(
                _(
                    "the API key has {api_key} characters; keys have at least {shortest_key}: "
                    "set NOESIS_API_KEY, or give --key",
                    api_key=len(api_key),
                    shortest_key=SHORTEST_KEY,
                )
            )
        self._key, self._timeout_s = api_key, timeout_s
        headers = {"Authorization": f"Bearer {api_key}"}
        self._http = Http(self.base_url, headers, timeout_s=timeout_s, unix_socket=socket)

    def close(self) -> None:
        self._http.close()

    def models(self) -> list[dict[str, Any]]:
        """The endpoint's models; empty where it does not list them."""
        reply = self._send("GET", "models", None)
        try:
            return [m for m in parse_json(reply.body)["data"] if isinstance(m, dict)]
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
        if on_token is not None:
            return self._stream(body | {"stream": True}, on_token)
        reply = self._send("POST", "chat/completions", body)
        try:
            parsed = parse_json(reply.body)
            chat = read_chat_reply(parsed, logprobs=bool(more.get("logprobs")), max_tokens=max_tokens)
        except ValueError as error:
            raise ModelError(
                _(
                    "{base_url} gives {error}: {message}",
                    base_url=self.base_url,
                    error=error,
                    message=shown(reply.message, self._key),
                )
            ) from None
        return _completion(chat.text, chat.finish, parsed, chat.tokens)

    def _send(self, method: str, path: str, body: dict[str, Any] | None) -> HttpReply:
        for attempt in range(ATTEMPTS):
            with self._explained():
                reply = self._http.request(method, self.base_url + path, body, deadline_s=self._timeout_s)
            if not self._is_to_be_retried(reply, attempt):
                return reply
        raise AssertionError("the last attempt returns or raises")

    def _stream(self, body: dict[str, Any], on_token: Callable[[str], None]) -> Completion:
        url, deadline_s = self.base_url + "chat/completions", STREAM_FACTOR * self._timeout_s
        for attempt in range(ATTEMPTS):
            with (
                self._explained(),
                self._http.stream("POST", url, body, deadline_s=deadline_s) as (status, retry_after, parts),
            ):
                if status == 200:
                    return self._read_stream(parts, on_token)
                reply = HttpReply(status, b"".join(parts), retry_after)
            self._is_to_be_retried(reply, attempt)
        raise AssertionError("the last attempt returns or raises")

    def _read_stream(self, parts: Iterator[bytes], on_token: Callable[[str], None]) -> Completion:
        pieces: list[str] = []
        entries: list[TokenEntry] = []
        finish, last, seen = "", dict[str, Any](), False
        for event in self._events(parts):
            if "error" in event:
                raise ModelError(
                    _(
                        "{base_url} broke off: {error_message}",
                        base_url=self.base_url,
                        error_message=shown(error_message(event), self._key),
                    )
                )
            last = event if event.get("usage") else last
            if not event.get("choices"):
                continue
            try:
                piece = read_piece(event)
            except ValueError as error:
                raise ModelError(_("{base_url} gives {error}", base_url=self.base_url, error=error)) from None
            finish, seen = piece.finish or finish, True
            entries += piece.tokens
            if piece.text:
                pieces.append(piece.text)
                on_token(piece.text)
        if not seen:
            raise ModelError(
                _("{base_url} does not answer in OpenAI's protocol: its stream has no choices", base_url=self.base_url)
            )
        return _completion("".join(pieces), finish, last, entries)

    def _events(self, parts: Iterator[bytes]) -> Iterator[dict[str, Any]]:
        for line in lines(parts):
            if line.startswith(b"data:") and (data := line[5:].strip()) not in (b"", b"[DONE]"):
                try:
                    event = parse_json(data)
                except ValueError as error:
                    raise ModelError(_("an event of the stream is {error}", error=error)) from None
                if isinstance(event, dict):
                    yield event

    def _is_to_be_retried(self, reply: HttpReply, attempt: int) -> bool:
        """False if the reply is good; waits before another attempt. Raises ModelError where there is to be none."""
        if reply.status == 200:
            return False
        if reply.status not in RETRIED or attempt == ATTEMPTS - 1:
            raise self._refused(reply)
        wait = 0.5 * 2**attempt if reply.retry_after is None else reply.retry_after
        time.sleep(min(wait, LONGEST_WAIT_S))
        return True

    @contextmanager
    def _explained(self) -> Iterator[None]:
        try:
            yield
        except HttpError as error:
            if error.sent:
                raise ModelError(
                    _("{base_url} gives no whole answer ({error})", base_url=self.base_url, error=error)
                ) from None
            raise ModelError(
                _(
                    "{base_url} can't be reached ({error}): is the server running?  {command}  starts it",
                    base_url=self.base_url,
                    error=error,
                    command=command("serve", "RUN"),
                )
            ) from None

    def _refused(self, reply: HttpReply) -> ModelError:
        what = {
            401: _("the key is not accepted"),
            404: _("there is no model {model!r}, or the base URL is wrong", model=self.model),
        }.get(reply.status, "refused")
        return ModelError(
            _(
                "{base_url}: {what} (HTTP {status}): {message}",
                base_url=self.base_url,
                what=what,
                status=reply.status,
                message=shown(reply.message, self._key),
            )
        )


def _completion(text: str, finish: str, body: dict[str, Any], entries: Sequence[TokenEntry]) -> Completion:
    usage = read_usage(body, text)
    prompt, completion = (usage.prompt_tokens, usage.completion_tokens) if usage else (0, 0)
    return Completion(text, finish, prompt, completion, prompt + completion, [entry.model_dump() for entry in entries])
