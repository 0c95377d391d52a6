"""What a judge's voice is: something that takes a request and gives a reply. `endpoint.py` speaks HTTP, `local.py` a GGUF model.

`--judge openai:BASE_URL:MODEL`, `--judge gguf:PATH`, or `--judge self` (the run's own base, which the report then says).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Protocol

from noesis.core.errors import ModelError
from noesis.core.files import sha256_json

Message = dict[str, str]


class NoReplyError(ModelError):
    """A request that got no usable reply after all attempts; the judge's answer is then Unscored, and the reason is kept."""


class EndpointDownError(NoReplyError):
    """The endpoint as a whole does not answer any more: asking on would only fail."""


@dataclass(frozen=True)
class ModelRequest:
    """One question to a judge, or to a model that writes.

    schema: JSON schema of the reply, for structured output; {}: free text
    attempt: 0, or 1 where the first reply could not be read; part of the cache's key
    logprobs: how many alternatives of each token to give with their log-probabilities; 0: none
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

    def key(self, judge: str) -> str:
        """Content hash: the same question to the same judge has the same key."""
        more = [self.temperature, self.logprobs] if self.temperature or self.logprobs else []
        return sha256_json([judge, self.messages, self.schema, self.max_tokens, self.seed, self.attempt, *more])


@dataclass(frozen=True)
class ModelReply:
    """What came back. usd: None where no price is known; cached: it cost nothing this time.

    alternatives: of each token in turn, (text, natural-log probability) of the likeliest, where asked for and given
    """

    text: str
    finish: str = "stop"
    prompt_tokens: int = 0
    completion_tokens: int = 0
    usd: float | None = None
    cached: bool = False
    top_logprobs: tuple[tuple[tuple[str, float], ...], ...] = ()


def top_logprobs_of(choice: dict[str, Any]) -> tuple[tuple[tuple[str, float], ...], ...]:
    """The log-probabilities in a choice of the OpenAI protocol; () where it has none."""
    tokens = (choice.get("logprobs") or {}).get("content") or []
    return tuple(
        tuple((str(t["token"]), float(t["logprob"])) for t in token.get("top_logprobs") or []) for token in tokens
    )


class ModelClient(Protocol):
    """A judge's voice."""

    name: str  # as in the report
    identity: str  # what calibrations and the cache know it by
    concurrency: int

    async def ask(self, request: ModelRequest) -> ModelReply:
        """Raises Unanswered."""

    async def close(self) -> None: ...
