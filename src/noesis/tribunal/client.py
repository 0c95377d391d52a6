"""What a judge's voice is: something that takes a request and gives a reply. `endpoint.py` speaks HTTP, `local.py` a GGUF model.

`--judge openai:BASE_URL:MODEL`, `--judge gguf:PATH`, or `--judge self` (the run's own base, which the report then says).
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from noesis.errors import ModelError, UsageError
from noesis.files import sha256_json

Message = dict[str, str]


class Unanswered(ModelError):
    """A request that got no usable reply after all attempts; the judge's answer is then Unscored, and the reason is kept."""


class Gone(Unanswered):
    """The endpoint as a whole does not answer any more: asking on would only fail."""


@dataclass(frozen=True)
class Request:
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
class Reply:
    """What came back. usd: None where no price is known; cached: it cost nothing this time.

    alternatives: of each token in turn, (text, natural-log probability) of the likeliest, where asked for and given
    """

    text: str
    finish: str = "stop"
    prompt_tokens: int = 0
    completion_tokens: int = 0
    usd: float | None = None
    cached: bool = False
    alternatives: tuple[tuple[tuple[str, float], ...], ...] = ()


def alternatives_of(choice: dict[str, Any]) -> tuple[tuple[tuple[str, float], ...], ...]:
    """The log-probabilities in a choice of the OpenAI protocol; () where it has none."""
    tokens = (choice.get("logprobs") or {}).get("content") or []
    return tuple(
        tuple((str(t["token"]), float(t["logprob"])) for t in token.get("top_logprobs") or []) for token in tokens
    )


class Client(Protocol):
    """A judge's voice."""

    name: str  # as in the report
    identity: str  # what calibrations and the cache know it by
    concurrency: int

    async def ask(self, request: Request) -> Reply:
        """Raises Unanswered."""

    async def close(self) -> None: ...


@dataclass(frozen=True)
class Spec:
    """A `--judge` as given."""

    kind: str  # openai, gguf, self
    model: str
    url: str = ""

    @property
    def name(self) -> str:
        return Path(self.model).name if self.kind == "gguf" else self.model


_OPENAI = re.compile(r"openai:(https?://(?:\[[0-9a-fA-F:]+\]|[^/:\s]+)(?::\d+)?(?:/[^:\s]*)?):(\S+)")


def parse_spec(text: str, option: str = "--judge") -> Spec:
    """A judge as named on the command line, with `option`.

    Raises:
        UsageError: it is none of the forms.
    """
    if text == "self":
        return Spec("self", "self")
    if match := _OPENAI.fullmatch(text):
        return Spec("openai", match[2], match[1].rstrip("/"))
    if text.startswith("gguf:") and len(text) > 5:
        path = Path(text[5:]).expanduser()
        if not path.is_file():
            raise UsageError(f"{option} {text}: {path} does not exist")
        return Spec("gguf", str(path))
    raise UsageError(
        f"{option} {text!r} is not understood: use openai:BASE_URL:MODEL (openai:https://api.openai.com/v1:gpt-5-mini), gguf:PATH, or self"
    )


def same_model(judge: str, judged: str) -> bool:
    """Whether two names mean one model, as far as names tell: no folder, no file ending, no quantisation."""
    return _bare(judge) == _bare(judged)


def _bare(name: str) -> str:
    last = name.replace("\\", "/").rstrip("/").rsplit("/", 1)[-1].lower().removesuffix(".gguf")
    return re.sub(r"[-.](?:f16|f32|bf16|i?q\d\w*|fp8|awq|gptq)$", "", last)
