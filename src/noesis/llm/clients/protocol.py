"""The interface to any language model: a request, a reply, and a client that turns one into the other.

`openai_client.py` calls endpoints over HTTP, `gguf_client.py` a GGUF file and `torch_client.py` a transformers model in
this process; `open.py` makes them from a SPEC.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Protocol

from noesis.core.errors import ModelError
from noesis.core.files import sha256_json
from noesis.core.messages import Message

TopLogprobs = tuple[tuple[tuple[str, float], ...], ...]  # of each token in turn: (text, natural-log probability)


class NoReplyError(ModelError):
    """A request got no usable reply after all attempts; a judge is then Unscored, with this as the reason."""


class EndpointDownError(NoReplyError):
    """The endpoint as a whole no longer answers: every further request would fail, too."""


@dataclass(frozen=True)
class ModelRequest:
    """One request to a model that judges or writes.

    schema: JSON schema of the reply, for structured output; {}: free text
    attempt: 0, or the number of replies before that could not be used; part of the cache's key
    logprobs: how many of the likeliest tokens to give with their log-probabilities at each place; 0: none
    """

    messages: tuple[tuple[str, str], ...]
    schema: dict[str, Any] = field(hash=False)
    max_tokens: int
    seed: int = 0
    attempt: int = 0
    temperature: float = 0.0
    logprobs: int = 0

    def as_messages(self) -> list[Message]:
        return [{"role": role, "content": content} for role, content in self.messages]

    def key(self, identity: str) -> str:
        """The cache's key, a content hash: the same request to the model of the same identity has the same key."""
        more = [self.temperature, self.logprobs] if self.temperature or self.logprobs else []
        return sha256_json([identity, self.messages, self.schema, self.max_tokens, self.seed, self.attempt, *more])


@dataclass(frozen=True)
class ModelReply:
    """A model's reply.

    finish: `stop`, or `length` where it was cut off at max_tokens
    usd: None where no price is known
    cached: it came from the cache and cost nothing this time
    top_logprobs: where requested and returned
    """

    text: str
    finish: str = "stop"
    prompt_tokens: int = 0
    completion_tokens: int = 0
    usd: float | None = None
    cached: bool = False
    top_logprobs: TopLogprobs = ()


class ModelClient(Protocol):
    """A model that answers requests."""

    name: str  # as reports show it
    identity: str  # as calibrations and the cache know it
    concurrency: int  # requests at once

    async def ask(self, request: ModelRequest) -> ModelReply:
        """The reply. Raises NoReplyError where there is none after all attempts."""

    async def close(self) -> None: ...
