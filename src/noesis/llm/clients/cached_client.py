"""A model client with a reply cache, and the one rule by which a request's seed follows from a run's seed.

A reply that was paid for is never requested again: a stopped command takes it from the cache and continues.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TypeVar

from noesis.core.errors import ModelError
from noesis.core.files import sha256_json
from noesis.core.i18n import _
from noesis.llm.clients.protocol import ModelClient, ModelReply, ModelRequest, ScoreRequest
from noesis.llm.clients.reply_cache import ReplyCache

T = TypeVar("T")


class UnusableReplyError(Exception):
    """A reply that was given but can't be used; the message says why."""


@dataclass(frozen=True)
class CachedClient:
    """`client`, behind `cache`.

    on_reply: called with each reply that came from the model, not from the cache
    """

    client: ModelClient
    cache: ReplyCache
    on_reply: Callable[[ModelReply], None] = lambda reply: None

    async def ask(self, request: ModelRequest) -> ModelReply:
        """The reply to `request`: the stored one, else the model's, which is then stored.

        Raises:
            NoReplyError: there is none after all attempts. EndpointDownError: the endpoint as a whole is down.
            CapError: it could go over the cap. ModelError: the key or the model is refused.
        """
        key = request.key(self.client.identity)
        reply = self.cache.reply(key)
        if reply is None:
            reply = await self.client.ask(request)
            self.cache.store(key, reply)
            self.on_reply(reply)
        return reply

    async def scores(self, request: ScoreRequest) -> list[ModelReply]:
        """The reply to each ending of `request`: the stored ones, and the model's to those that are missing.

        Each is stored as it comes, so that a stop loses none.

        Raises:
            As `ask`; ModelError also where the model can't be asked in this way.
        """
        keys = [request.key(self.client.identity, ending) for ending in request.endings]
        found = {key: reply for key in keys if (reply := self.cache.reply(key)) is not None}
        missing = [i for i, key in enumerate(keys) if key not in found]

        def keep(number: int, reply: ModelReply) -> None:
            key = keys[missing[number]]
            found[key] = reply
            self.cache.store(key, reply)
            self.on_reply(reply)

        if missing:
            ask = getattr(self.client, "scores", None)
            if ask is None:
                raise ModelError(_("{name} can't be read for its scores: use --ask quote", name=self.client.name))
            await ask(replace(request, endings=tuple(request.endings[i] for i in missing)), keep)
        return [found[key] for key in keys]

    async def ask_until_usable(
        self, request: Callable[[int, str], ModelRequest], read: Callable[[ModelReply, int], T], *, attempts: int
    ) -> T:
        """What `read` makes of the first reply that it can use.

        Args:
            request: (attempt from 0, what was wrong with the reply before, "" at first) → the request.
            read: (reply, attempt) → the result; raises UnusableReplyError where there is none.

        Raises:
            UnusableReplyError: of the last attempt. And whatever `ask` raises.
        """
        problem = ""
        for attempt in range(attempts):
            reply = await self.ask(request(attempt, problem))
            try:
                return read(reply, attempt)
            except UnusableReplyError as error:
                problem = str(error)
        raise UnusableReplyError(problem)


def request_seed(seed: int, *place: str | int) -> int:
    """The seed of one request, 31 bits, from the command's seed and the request's place in the work.

    The same in every run of the same plan, whatever the order in which requests are made: seeds are part of the cache's
    keys.
    """
    return int(sha256_json([seed, *place])[:8], 16) >> 1


def sample_seed(seed: int, sample: int) -> int:
    """The seed of the k-th answer to a prompt in a trial: every prompt is sampled at `seed`, `seed` + 1, …"""
    return seed + sample
