"""The interface to any language model: a request, a reply, and a client that turns one into the other.

`openai_client.py` calls endpoints over HTTP, `gguf_client.py` a GGUF file and `torch_client.py` a transformers model in
this process; `open.py` makes them from a SPEC.
"""

from __future__ import annotations

import math
from collections.abc import Callable
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


@dataclass(frozen=True)
class ScoreRequest:
    """One beginning with many endings, and which of a few words would be said next after each: nothing is generated.

    messages: what all have in common; the last one is the user's
    endings: each in turn is put at the end of the last message
    choices: words of one token, such as 0, 1, 2; a token that is one with space around it counts for it
    opening: what the assistant has begun to say, where the client can put it there; an endpoint leaves it out
    """

    messages: tuple[tuple[str, str], ...]
    endings: tuple[str, ...]
    choices: tuple[str, ...]
    opening: str = ""

    def conversation(self, ending: str) -> tuple[tuple[str, str], ...]:
        """The messages with one of the endings."""
        *before, (role, text) = self.messages
        return (*before, (role, text + ending))

    def as_messages(self, ending: str) -> list[Message]:
        """The same, with what the assistant has begun to say."""
        begun = (("assistant", self.opening),) if self.opening else ()
        return [{"role": role, "content": content} for role, content in (*self.conversation(ending), *begun)]

    def key(self, identity: str, ending: str) -> str:
        """The cache's key of one ending, whatever others are asked for with it."""
        return sha256_json([identity, "scores", self.conversation(ending), self.choices, self.opening])


def probabilities(reply: ModelReply, choices: tuple[str, ...]) -> tuple[float, ...]:
    """The probability of each choice as the next word, all of its spellings together; their sum is at most 1."""
    found = dict.fromkeys(choices, 0.0)
    for token, logprob in reply.top_logprobs[0] if reply.top_logprobs else ():
        if token.strip() in found:
            found[token.strip()] += math.exp(min(logprob, 0.0))
    total = max(1.0, sum(found.values()))  # an endpoint may round, or lie
    return tuple(found[choice] / total for choice in choices)


class ModelClient(Protocol):
    """A model that answers requests."""

    name: str  # as reports show it
    identity: str  # as calibrations and the cache know it
    concurrency: int  # requests at once

    async def ask(self, request: ModelRequest) -> ModelReply:
        """The reply. Raises NoReplyError where there is none after all attempts."""

    async def close(self) -> None: ...


class ScoringClient(ModelClient, Protocol):
    """A model that can also be asked what it would say next."""

    async def scores(self, request: ScoreRequest, keep: Callable[[int, ModelReply], None]) -> None:
        """Call `keep` with each ending's number and its reply, as they come: likely next tokens in `top_logprobs`.

        Raises NoReplyError where an ending gets none; ModelError where this model tells no log-probabilities.
        """
