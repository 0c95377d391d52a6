"""A model behind an OpenAI-compatible endpoint: OpenAI, Anthropic, Gemini, vLLM, llama.cpp, Ollama, …

What they answer differs more than the protocol says; tests/wild/serving/test_providers.py has their replies as they
are.

https://platform.openai.com/docs/api-reference/chat . Retries with back-off and jitter on 408, 409, 425, 429, 5xx,
broken connections and replies that can't be read; a Retry-After holds for all requests; an endpoint that is plainly
down is not called over and over. The API key comes from the environment and goes to its own host only.
"""

from __future__ import annotations

import asyncio
import json
import os
import random
import re
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any
from urllib.parse import urlsplit

from noesis.core.config import Price, TribunalSection
from noesis.core.console import say
from noesis.core.errors import ModelError
from noesis.core.i18n import N_, _
from noesis.llm.addresses import is_loopback
from noesis.llm.clients.chat_reply import ChatReply, Usage, read_chat_reply, read_cost, read_refusal, read_usage
from noesis.llm.clients.chat_request import chat_body, refused_option
from noesis.llm.clients.protocol import EndpointDownError, ModelReply, ModelRequest, NoReplyError, ScoreRequest
from noesis.llm.clients.spec import ModelSpec
from noesis.llm.clients.spending import Reservation, Spending
from noesis.llm.http import AsyncHttp
from noesis.llm.http_reply import HttpError, HttpReply, parse_json, shown

RETRIED = {408, 409, 425, 429, 500, 502, 503, 504, 529}
MAY_HAVE_ANSWERED = {502, 504, 520, 522, 524}  # a gateway's: the model behind it may have worked, and be charged for
REFUSED = {
    401: N_("the key is not accepted"),
    402: N_("the account can't pay"),
    403: N_("the key may not use this model"),
    404: N_("there is no such model or address"),
}
USED_UP = re.compile(r"insufficient_quota|billing_hard_limit|credit balance is too low", re.IGNORECASE)
MORE_ROOM = 4  # times the tokens of a reply, for models that think before they answer
FIRST_WAIT, LONGEST_WAIT = 0.5, 60.0  # seconds of back-off; doubled each time
MOST_LOGPROBS = 20  # alternatives that OpenAI and vLLM give for a token
DEAD_AFTER = 4  # requests in a row that failed altogether
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
    if parts.scheme != "https" and not is_loopback(url):
        return None
    if not _HOST.fullmatch(host) and not is_loopback(url):
        return None  # another spelling of a name could share its variable
    return os.environ.get(own_variable(host)) or os.environ.get(KEYS.get(host, ""))


class OpenAIClient:
    """One model at one endpoint. Use it inside one event loop, and close it."""

    def __init__(self, spec: ModelSpec, section: TribunalSection, spending: Spending) -> None:
        """Prepare a client; nothing is sent yet.

        Raises:
            ModelError: there is a cap, but no price of the model.
        """
        self.name, self.identity = spec.model, f"openai:{spec.url}:{spec.model}"
        self.concurrency = section.concurrency
        self._url, self._model = spec.url + "/chat/completions", spec.model
        self._price: Price | None = section.prices.get(spec.model)
        self._section, self._spending = section, spending
        if spending.max_usd is not None and self._price is None:
            raise ModelError(
                _(
                    "--max-usd needs the price of {model!r}: write it in training_config.yaml, "
                    "tribunal: prices: {{{model}: {{prompt: USD, completion: USD}}}} "
                    "(for a million tokens; 0 on a machine of your own)",
                    model=spec.model,
                )
            )
        self._key = key_for(spec.url)
        headers = {"Authorization": f"Bearer {self._key}"} if self._key else {}
        self._http = AsyncHttp(self._url, headers, connections=section.concurrency)
        self._slots = asyncio.Semaphore(section.concurrency)
        self._not_before = 0.0  # time.monotonic() before which no request starts
        self._without: frozenset[str] = frozenset()  # optional parts of a request that this endpoint refuses
        self._answered = False  # it has given a reply: what it refuses later is not for the form of requests
        self._room = 1  # MORE_ROOM for a model that thinks
        self._failed_in_a_row = 0
        self._random = random.Random(0)  # noqa: S311  (jitter)

    async def close(self) -> None:
        await self._http.close()

    async def ask(self, request: ModelRequest) -> ModelReply:
        """The model's reply.

        Raises:
            NoReplyError: there is none after all attempts. EndpointDownError: too many requests in a row have failed.
            CapError: it could exceed the cap. ModelError: the key or the model is refused.
        """
        async with self._slots:
            if self._failed_in_a_row >= DEAD_AFTER:
                raise EndpointDownError(
                    _(
                        "{name} is down: {failed_in_a_row} requests in a row failed",
                        name=self.name,
                        failed_in_a_row=self._failed_in_a_row,
                    )
                )
            try:
                reply = await self._reply(request)
            except NoReplyError:
                self._failed_in_a_row += 1
                raise
            self._failed_in_a_row = 0
            return reply

    async def scores(self, request: ScoreRequest, keep: Callable[[int, ModelReply], None]) -> None:
        """One reply of one token for each ending; servers reuse what their prompts have in common.

        Raises:
            As `ask`; ModelError also where the endpoint gives no log-probabilities.
        """

        async def one(number: int, ending: str) -> None:
            asked = ModelRequest(request.conversation(ending), {}, max_tokens=1, logprobs=MOST_LOGPROBS)
            reply = await self.ask(asked)
            if not reply.top_logprobs:
                raise ModelError(
                    _(
                        "{url} gives no log-probabilities for {model!r}, which --ask score and both read: "
                        "use --ask quote, or a model and server that give them (vLLM, llama.cpp, "
                        "OpenAI's without thoughts)",
                        url=self._url,
                        model=self._model,
                    )
                )
            keep(number, reply)

        work = [one(number, ending) for number, ending in enumerate(request.endings)]
        # what is under way is paid for and kept, whatever happened to another
        for failed in await asyncio.gather(*work, return_exceptions=True):
            if failed is not None:
                raise failed

    async def _reply(self, request: ModelRequest) -> ModelReply:
        """The reply; where it was cut off since the model thinks, the one to a second request with more room."""
        one_token = request.max_tokens == 1  # all that is wanted of it is what could stand there
        room = 1 if one_token else self._room
        chat, reply = await self._send_with_retries(_with_room(request, room))
        if not chat.starved or room > 1 or one_token:
            return reply
        if self._room == 1:
            self._room = MORE_ROOM
            most = self._usd(0, MORE_ROOM * request.max_tokens)
            price = _(", at most {most:.4f} USD each", most=most) if self._price else ""
            say(
                _(
                    "  {name} thinks: {max_tokens:,} tokens were used up before its answer; "
                    "its replies get {more_room:,} from now on{price}",
                    name=self.name,
                    max_tokens=request.max_tokens,
                    more_room=MORE_ROOM * request.max_tokens,
                    price=price,
                )
            )
        _ignored, again = await self._send_with_retries(_with_room(request, MORE_ROOM))
        usd = None if reply.usd is None or again.usd is None else reply.usd + again.usd
        prompt, completion = (
            reply.prompt_tokens + again.prompt_tokens,
            reply.completion_tokens + again.completion_tokens,
        )
        return replace(again, usd=usd, prompt_tokens=prompt, completion_tokens=completion)

    async def _send_with_retries(self, request: ModelRequest) -> tuple[ChatReply, ModelReply]:
        problem, words, wait = "", "", FIRST_WAIT
        for attempt in range(self._section.attempts):
            if attempt:
                self._spending.retries += 1
                await asyncio.sleep(wait * (0.5 + self._random.random()))
                wait = min(2 * wait, LONGEST_WAIT)
            await self._wait_for_slot()
            try:
                found = await self._send(request)
            except (HttpError, ValueError) as error:
                problem, words = str(error), ""
                continue
            if isinstance(found, tuple):
                return found
            self._raise_if_refused(found)
            problem, words = f"HTTP {found.status}", f": {shown(found.message, self._key)}" if found.body else ""
            if found.status not in RETRIED:
                raise NoReplyError(problem + words)
            if found.retry_after is not None:
                self._not_before = max(self._not_before, time.monotonic() + min(found.retry_after, LONGEST_WAIT))
                wait = FIRST_WAIT
        raise NoReplyError(
            _("{problem}, {attempts} attempts{words}", problem=problem, attempts=self._section.attempts, words=words)
        )

    async def _send(self, request: ModelRequest) -> tuple[ChatReply, ModelReply] | HttpReply:
        """The model's reply, or the endpoint's refusal; each request that is sent is paid for.

        Raises:
            HttpError: there is no reply. ValueError: there is one that can't be read.
        """
        more = frozenset[str]()  # left out of this request; for good once that has helped
        while True:
            body = chat_body(self._model, request, self._without | more)
            size = len(json.dumps(body, ensure_ascii=False).encode())  # a token is a byte or more
            with await self._spending.reserve(self._usd(size, request.max_tokens)) as reservation:
                try:
                    reply = await self._http.post(self._url, body, deadline_s=self._section.timeout_seconds)
                except HttpError as error:
                    if not error.sent:
                        reservation.free()
                    raise
                if reply.status == 200:
                    parsed = parse_json(reply.body, constants=True)
                    refusal = read_refusal(parsed)
                    if refusal is None:
                        found = self._read(parsed, request, reservation)
                        self._answered, self._without = True, self._without | more
                        return found
                    reply = replace(reply, status=refusal)
                if reply.status >= 300 and reply.status not in MAY_HAVE_ANSWERED:
                    self._settle_refusal(reservation, reply)
            name = refused_option(reply, body, guess=not self._answered)
            if name is None:
                return reply
            more |= {name}

    def _read(self, body: Any, request: ModelRequest, reservation: Reservation) -> tuple[ChatReply, ModelReply]:
        """The model's reply, paid for with the larger of what its tokens cost and what the endpoint reports.

        Raises:
            ValueError: it can't be read.
        """
        try:
            chat = read_chat_reply(body, logprobs=bool(request.logprobs), max_tokens=request.max_tokens)
        except ValueError:
            self._settle(reservation, body, "")  # it has its price, too
            raise
        usage, usd = self._settle(reservation, body, chat.text)
        prompt, completion = (usage.prompt_tokens, usage.completion_tokens) if usage else (0, 0)
        return chat, ModelReply(chat.answer, chat.ending, prompt, completion, usd, top_logprobs=chat.top_logprobs)

    def _settle(self, reservation: Reservation, body: Any, text: str) -> tuple[Usage | None, float | None]:
        """Book what a reply took and what it cost; without a usage, what was reserved for it."""
        usage, reported = read_usage(body, text), read_cost(body)
        prompt, completion = (usage.prompt_tokens, usage.completion_tokens) if usage else (0, 0)
        known = self._usd(prompt, completion) if usage else reservation.usd
        usd = max(known, reported or 0.0) if self._price or reported is not None else None
        reservation.settle(usd, prompt, completion, counted=usage is not None)
        return usage, usd

    def _settle_refusal(self, reservation: Reservation, reply: HttpReply) -> None:
        """A refusal costs nothing, unless it says itself what it took."""
        try:
            body = parse_json(reply.body, constants=True)
        except ValueError:
            body = None
        if read_usage(body, "") is None and read_cost(body) is None:
            reservation.free()
        else:
            self._settle(reservation, body, "")

    def _raise_if_refused(self, reply: HttpReply) -> None:
        """Raises ModelError where every other request would be refused, too."""
        used_up = reply.status == 429 and USED_UP.search(reply.body.decode(errors="replace"))
        status = 402 if used_up else reply.status
        if status == 403 and self._answered:  # this one text is refused, as moderation does
            return
        if status in REFUSED:
            what = (
                _("pay or raise the limit there, and the same command goes on") if status == 402 else self._key_hint()
            )
            raise ModelError(
                _(
                    "{url} refuses {model!r}: {refused} (HTTP {status}): {message}; {what}",
                    url=self._url,
                    model=self._model,
                    refused=REFUSED[status],
                    status=reply.status,
                    message=shown(reply.message, self._key),
                    what=what,
                )
            )

    async def _wait_for_slot(self) -> None:
        """Wait until a request may start: Retry-After of any other request, and the rate of requests a minute."""
        while (wait := self._not_before - time.monotonic()) > 0:
            await asyncio.sleep(wait)
        if self._section.requests_per_minute:
            self._not_before = time.monotonic() + 60 / self._section.requests_per_minute

    def _usd(self, prompt: int, completion: int) -> float:
        return (prompt * self._price.prompt + completion * self._price.completion) / 1e6 if self._price else 0.0

    def _key_hint(self) -> str:
        host = urlsplit(self._url).hostname or ""
        if urlsplit(self._url).scheme == "http" and not is_loopback(self._url):
            return _("no key was sent, since the address is not https")
        return _(
            "put the key into the environment variable {variable}, or name another model",
            variable=KEYS.get(host) or own_variable(host),
        )


def own_variable(host: str) -> str:
    """The environment variable of a host that has none in KEYS: `NOESIS_KEY_OPENROUTER_AI`.

    A hyphen is two underscores, so that my-host.com and my.host.com have a variable each.
    """
    return "NOESIS_KEY_" + re.sub(r"[^A-Za-z0-9]", "_", host.replace("-", "__")).upper()


def _with_room(request: ModelRequest, room: int) -> ModelRequest:
    return replace(request, max_tokens=room * request.max_tokens)
