"""Requests to an endpoint by the client that judges use, and what became of each."""

from __future__ import annotations

import asyncio

from helpers.endpoints.raw_server import RawServer
from noesis.core.config import Price, TribunalSection
from noesis.llm.clients.cached_client import CachedClient
from noesis.llm.clients.openai_client import OpenAIClient
from noesis.llm.clients.protocol import ModelReply, ModelRequest
from noesis.llm.clients.reply_cache import ReplyCache
from noesis.llm.clients.spec import parse_spec
from noesis.llm.clients.spending import Spending

MAX_TOKENS = 100
PRICE = Price(prompt=1000.0, completion=1000.0)  # 0.001 USD a token
SECTION = TribunalSection(timeout_seconds=2, attempts=1, concurrency=8, prices={"m": PRICE})


def request(number: int = 0, *, logprobs: int = 0) -> ModelRequest:
    return ModelRequest((("user", f"a number, please: {number}"),), {}, MAX_TOKENS, number, logprobs=logprobs)


def ask(
    server: RawServer,
    count: int = 1,
    *,
    spending: Spending | None = None,
    section: TribunalSection = SECTION,
    logprobs: int = 0,
    cache: ReplyCache | None = None,
) -> list[ModelReply | BaseException]:
    """What became of `count` requests that were made at once."""

    async def run() -> list[ModelReply | BaseException]:
        model = OpenAIClient(parse_spec(f"openai:{server.url}:m"), section, spending or Spending())
        client = model if cache is None else CachedClient(model, cache)
        try:
            asked = (client.ask(request(i, logprobs=logprobs)) for i in range(count))
            return await asyncio.gather(*asked, return_exceptions=True)
        finally:
            await model.close()

    return asyncio.run(run())
