"""A reply in OpenAI's chat protocol, read as what it is: input from a stranger.

https://platform.openai.com/docs/api-reference/chat/object . Only what is used is read, and has to have its exact type;
whatever else an endpoint adds is ignored.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from noesis.llm.clients.protocol import TopLogprobs

MOST_TOKENS = 1 << 31  # in a usage that is believed
MOST_USD = 1e6  # of one reply, likewise
CHARACTERS_PER_TOKEN = 128  # of the longest tokens in today's vocabularies


Logprob = Annotated[float, Field(le=1e-3, allow_inf_nan=False)]  # rounding makes some a little more than 0


class _Part(BaseModel):
    model_config = ConfigDict(strict=True, frozen=True)


class Alternative(_Part):
    """A token and its natural-log probability; None where llama.cpp gives it none, since it is impossible."""

    token: str
    logprob: Logprob | None
    bytes: Annotated[list[Annotated[int, Field(ge=0, le=255)]], Field(fail_fast=True)] | None = None


class TokenEntry(Alternative):
    """A token of the reply, and the likeliest ones in its place."""

    top_logprobs: Annotated[list[Alternative], Field(fail_fast=True)] | None = None


class Logprobs(_Part):
    content: Annotated[list[TokenEntry], Field(fail_fast=True)] | None = None


class _Message(_Part):
    content: str | None = None


class _Choice(_Part):
    message: _Message
    finish_reason: str | None = None
    logprobs: Any = None


class _Body(_Part):
    choices: Annotated[list[_Choice], Field(min_length=1, fail_fast=True)]


class _Piece(_Part):
    """A choice in an event of a stream."""

    delta: _Message = _Message()
    finish_reason: str | None = None
    logprobs: Logprobs | None = None


class _Event(_Part):
    choices: Annotated[list[_Piece], Field(min_length=1, fail_fast=True)]


class Usage(_Part):
    """The tokens that a reply took, as far as an endpoint is believed. A prompt without a token is not."""

    prompt_tokens: Annotated[int, Field(ge=1, le=MOST_TOKENS)]
    completion_tokens: Annotated[int, Field(ge=0, le=MOST_TOKENS)]


@dataclass(frozen=True)
class ChatReply:
    """A reply's first choice. finish: `stop`, or `length` where it was cut off; tokens: those of `logprobs`"""

    text: str
    finish: str
    tokens: tuple[TokenEntry, ...] = ()

    @property
    def top_logprobs(self) -> TopLogprobs:
        return tuple(
            tuple((one.token, one.logprob) for one in token.top_logprobs or () if one.logprob is not None)
            for token in self.tokens
        )


def read_chat_reply(body: Any, *, logprobs: bool, max_tokens: int) -> ChatReply:
    """The reply in a body that was parsed.

    Args:
        logprobs: whether they were asked for; if not, they are not read.
        max_tokens: of the request; a text that can't be of so few tokens is not a reply to it.

    Raises:
        ValueError: it does not follow the protocol; the message says where.
    """
    try:
        choice = _Body.model_validate(body).choices[0]
        entries = Logprobs.model_validate(choice.logprobs).content if logprobs and choice.logprobs is not None else None
    except ValidationError as error:
        raise _broken(error) from None
    text = choice.message.content or ""
    if len(text) > CHARACTERS_PER_TOKEN * max_tokens:
        raise ValueError(f"a reply of {len(text):,} characters, too many for {max_tokens} tokens")
    return ChatReply(text, choice.finish_reason or "stop", tuple(entries or ()))


def read_piece(event: Any) -> ChatReply:
    """The piece of the first choice in an event of a stream; its finish is empty before the last one.

    Raises:
        ValueError: it does not follow the protocol; the message says where.
    """
    try:
        piece = _Event.model_validate(event).choices[0]
    except ValidationError as error:
        raise _broken(error) from None
    tokens = piece.logprobs.content if piece.logprobs else None
    return ChatReply(piece.delta.content or "", piece.finish_reason or "", tuple(tokens or ()))


def read_usage(body: Any, text: str) -> Usage | None:
    """The tokens that a body says it took; None where it says nothing that can be so for this text."""
    try:
        usage = Usage.model_validate(body["usage"])
    except (ValidationError, LookupError, TypeError):
        return None
    return usage if usage.completion_tokens or not text else None


def read_cost(body: Any) -> float | None:
    """The USD that some endpoints report in their usage; None where it is no such amount."""
    usage = body.get("usage") if isinstance(body, dict) else None
    cost = usage.get("cost") if isinstance(usage, dict) else None
    if isinstance(cost, bool) or not isinstance(cost, int | float):
        return None
    return float(cost) if 0 <= cost <= MOST_USD else None


def _broken(error: ValidationError) -> ValueError:
    found = error.errors(include_url=False, include_context=False, include_input=False)[0]
    where = ".".join(str(part) for part in found["loc"]) or "the whole"
    return ValueError(f"a reply that does not follow the OpenAI protocol ({where}: {found['msg']})")
