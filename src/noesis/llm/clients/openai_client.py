"""A model behind an OpenAI-compatible endpoint: OpenAI, Anthropic, Gemini, vLLM, llama.cpp, Ollama, …

https://platform.openai.com/docs/api-reference/chat , over httpx2, which the Hub's client depends on anyway. Retries
with back-off and jitter on 408, 409, 425, 429, 5xx and broken connections; a Retry-After holds for all requests; an
endpoint that is plainly down is not called over and over. The API key comes from the environment and goes to its own
host only.
"""

from __future__ import annotations

import asyncio
import email.utils
import os
import random
import re
import time
from typing import Any
from urllib.parse import urlsplit

from noesis.core.config import Price, TribunalSection
from noesis.core.errors import ModelError
from noesis.llm.clients.protocol import EndpointDownError, ModelReply, ModelRequest, NoReplyError, top_logprobs_of
from noesis.llm.clients.spec import ModelSpec
from noesis.llm.clients.spending import Spending

RETRIED = {408, 409, 425, 429, 500, 502, 503, 504, 529}
REFUSED = {
    401: "the key is not accepted",
    403: "the key may not use this model",
    404: "there is no such model or address",
}
FIRST_WAIT, LONGEST_WAIT = 0.5, 60.0  # seconds of back-off; doubled each time
DEAD_AFTER = 4  # requests in a row that failed altogether
LOOPBACK = ("localhost", "127.0.0.1", "::1")
# a host's name in ASCII: labels of letters, digits and inner hyphens
_HOST = re.compile(r"[a-z0-9](?:[a-z0-9-]*[a-z0-9])?(?:\.[a-z0-9](?:[a-z0-9-]*[a-z0-9])?)*")
KEYS = {
    "api.openai.com": "OPENAI_API_KEY",
    "api.anthropic.com": "ANTHROPIC_API_KEY",
    "generativelanguage.googleapis.com": "GEMINI_API_KEY",
}


def key_for(url: str) -> str | None:
    """The API key for `url`: `NOESIS_KEY_<HOST>` or the provider's variable; by TLS or to localhost only."""
    parts = urlsplit(url)
    host = parts.hostname or ""
    if parts.scheme != "https" and host not in LOOPBACK:
        return None
    if not _HOST.fullmatch(host) and host not in LOOPBACK:
        return None  # another spelling of a name could share its variable
    return os.environ.get(own_variable(host)) or os.environ.get(KEYS.get(host, ""))


class OpenAIClient:
    """One model at one endpoint. Use it inside one event loop, and close it."""

    def __init__(self, spec: ModelSpec, section: TribunalSection, spending: Spending) -> None:
        """Prepare a client; nothing is sent yet.

        Raises:
            ModelError: there is a cap, but no price of the model.
        """
        import httpx2

        self.name, self.identity = spec.model, f"openai:{spec.url}:{spec.model}"
        self.concurrency = section.concurrency
        self._url, self._model = spec.url + "/chat/completions", spec.model
        self._price: Price | None = section.prices.get(spec.model)
        self._section, self._spending = section, spending
        key = key_for(spec.url)
        self._http = httpx2.AsyncClient(
            headers={"Authorization": f"Bearer {key}"} if key else {},
            timeout=httpx2.Timeout(section.timeout_seconds, connect=min(10.0, section.timeout_seconds)),
            limits=httpx2.Limits(max_connections=section.concurrency),
        )
        self._slots = asyncio.Semaphore(section.concurrency)
        self._not_before = 0.0  # time.monotonic() before which no request starts
        self._without: set[str] = set()  # optional parts of a request that this endpoint refuses
        self._failed_in_a_row = 0
        self._random = random.Random(0)  # noqa: S311  (jitter)
        if spending.max_usd is not None and self._price is None:
            raise ModelError(
                f"--max-usd needs the price of {spec.model!r}: write it in training_config.yaml, "
                f"tribunal: prices: {{{spec.model}: {{prompt: USD, completion: USD}}}} "
                "(for a million tokens; 0 on a machine of your own)"
            )

    async def close(self) -> None:
        await self._http.aclose()

    async def ask(self, request: ModelRequest) -> ModelReply:
        """The model's reply.

        Raises:
            NoReplyError: there is none after all attempts. EndpointDownError: too many requests in a row have failed.
            CapError: it could exceed the cap. ModelError: the key or the model is refused.
        """
        async with self._slots:
            if self._failed_in_a_row >= DEAD_AFTER:
                raise EndpointDownError(f"{self.name} is down: {self._failed_in_a_row} requests in a row failed")
            characters = sum(len(text) for _, text in request.messages)
            most = self._usd(characters, request.max_tokens)  # a token is a character or more
            while not self._spending.reserve(most):
                await asyncio.sleep(0.05)  # requests under way may cost less than was reserved for them
            try:
                reply = await self._send_with_retries(request)
            except BaseException as error:
                self._spending.release(most)
                self._failed_in_a_row += isinstance(error, NoReplyError)
                raise
            if reply.text or reply.prompt_tokens:
                self._spending.settle(most, reply)
            else:
                self._spending.release(most)
            self._failed_in_a_row = 0
            return reply

    async def _send_with_retries(self, request: ModelRequest) -> ModelReply:
        import httpx2

        problem, wait = "", FIRST_WAIT
        for attempt in range(self._section.attempts):
            if attempt:
                self._spending.retries += 1
                await asyncio.sleep(wait * (0.5 + self._random.random()))
                wait = min(2 * wait, LONGEST_WAIT)
            await self._wait_for_slot()
            try:
                response = await self._http.post(self._url, json=self._body(request))
            except httpx2.TimeoutException:
                problem = f"no reply within {self._section.timeout_seconds:g} s"
                continue
            except httpx2.TransportError as error:
                problem = f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
                continue
            while response.status_code == 400 and (name := self._refused_option(response.text)):
                self._without.add(name)  # the schema is in the prompt, too, and every reply is checked
                response = await self._http.post(self._url, json=self._body(request))
            if response.status_code in REFUSED:
                raise ModelError(
                    f"{self._url} refuses {self._model!r}: {REFUSED[response.status_code]} "
                    f"(HTTP {response.status_code}); {self._key_hint()}"
                )
            if response.status_code != 200:
                problem = f"HTTP {response.status_code}"
                if response.status_code not in RETRIED:
                    raise NoReplyError(f"{problem}: {response.text[:200]}")
                if (after := retry_after(response.headers.get("retry-after"))) is not None:
                    self._not_before = max(self._not_before, time.monotonic() + min(after, LONGEST_WAIT))
                    wait = FIRST_WAIT
                continue
            try:
                return self._reply(response.json())
            except (ValueError, KeyError, IndexError, TypeError):
                problem = "a reply that does not follow the OpenAI protocol"
        raise NoReplyError(f"{problem}, {self._section.attempts} attempts")

    async def _wait_for_slot(self) -> None:
        """Wait until a request may start: Retry-After of any other request, and the rate of requests a minute."""
        while (wait := self._not_before - time.monotonic()) > 0:
            await asyncio.sleep(wait)
        if self._section.requests_per_minute:
            self._not_before = time.monotonic() + 60 / self._section.requests_per_minute

    def _body(self, request: ModelRequest) -> dict[str, Any]:
        room = "max_completion_tokens" if "max_tokens" in self._without else "max_tokens"
        body: dict[str, Any] = {"model": self._model, "messages": request.as_messages(), room: request.max_tokens}
        optional: dict[str, Any] = {"temperature": request.temperature, "seed": request.seed}
        if request.schema:
            optional["response_format"] = {
                "type": "json_schema",
                "json_schema": {"name": "verdict", "strict": True, "schema": request.schema},
            }
        if request.logprobs and "logprobs" not in self._without:
            optional |= {"logprobs": True, "top_logprobs": request.logprobs}
        return body | {name: value for name, value in optional.items() if name not in self._without}

    def _refused_option(self, message: str) -> str | None:
        """The optional part of a request that an error 400 names, if it was not dropped before."""
        names = {
            "response_format": r"response_format|json_schema",
            "max_tokens": "max_tokens",
            "temperature": "temperature",
            "seed": r"\bseed\b",
            "logprobs": "logprobs",
        }
        return next(
            (name for name, pattern in names.items() if name not in self._without and re.search(pattern, message)), None
        )

    def _reply(self, body: dict[str, Any]) -> ModelReply:
        choice, usage = body["choices"][0], body.get("usage") or {}
        prompt, completion = int(usage.get("prompt_tokens", 0)), int(usage.get("completion_tokens", 0))
        usd = usage.get("cost")
        if not isinstance(usd, (int, float)):
            usd = self._usd(prompt, completion) if self._price else None
        text, finish = str(choice["message"]["content"] or ""), str(choice.get("finish_reason") or "stop")
        return ModelReply(text, finish, prompt, completion, usd, top_logprobs=top_logprobs_of(choice))

    def _usd(self, prompt: int, completion: int) -> float:
        return (prompt * self._price.prompt + completion * self._price.completion) / 1e6 if self._price else 0.0

    def _key_hint(self) -> str:
        host = urlsplit(self._url).hostname or ""
        return (
            f"put the key into the environment variable {KEYS.get(host) or own_variable(host)}, or name another model"
        )


def own_variable(host: str) -> str:
    """The environment variable of a host that has none in KEYS: `NOESIS_KEY_OPENROUTER_AI`.

    A hyphen is two underscores, so that my-host.com and my.host.com have a variable each.
    """
    return "NOESIS_KEY_" + re.sub(r"[^A-Za-z0-9]", "_", host.replace("-", "__")).upper()


def retry_after(value: str | None) -> float | None:
    """Seconds of a Retry-After header, a number or an HTTP date; None where there is none or it can't be read."""
    if not value:
        return None
    if re.fullmatch(r"\d+(?:\.\d+)?", value.strip()):
        return float(value)
    try:
        when = email.utils.parsedate_to_datetime(value)
    except ValueError:
        return None
    return max(0.0, when.timestamp() - time.time())
