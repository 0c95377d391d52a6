"""A reply in OpenAI's chat protocol, read as what it is: input from a stranger.

https://platform.openai.com/docs/api-reference/chat/object . Only what is used is read, and has to have its exact type;
whatever else an endpoint adds is ignored.
"""

from __future__ import annotations

import json
import math
import re
from dataclasses import dataclass
from typing import Annotated, Any

from pydantic import AliasChoices, BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from noesis.core.i18n import _
from noesis.llm.clients.protocol import TopLogprobs
from noesis.llm.clients.thoughts import without_thought
from noesis.llm.http_reply import SHOWN, error_message, shown

MOST_TOKENS = 1 << 31  # in a usage that is believed
MOST_USD = 1e6  # of one reply, likewise
CHARACTERS_PER_TOKEN = 128  # of the longest tokens in today's vocabularies
TEXT_PARTS = ("text", "output_text")
# why an answer was cut off, as Mistral, Gemini, Anthropic, OpenAI's newer protocol and others spell it
CUT_OFF = {"length", "max_tokens", "max_completion_tokens", "max_output_tokens", "model_length", "token_limit"}


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


class _ContentPart(_Part):
    """A part of a text that comes as a list; only those of text are read, not thoughts or references."""

    type: str = "text"
    text: str | None = None


def _joined(content: Any) -> Any:
    """The text parts of a content that is a list, as Mistral's and others' are; some parts are plain texts."""
    if not isinstance(content, list):
        return content
    parts = [_ContentPart.model_validate({"text": part} if isinstance(part, str) else part) for part in content]
    return "".join(part.text or "" for part in parts if part.type in TEXT_PARTS)


def _word(finish: Any) -> Any:
    """Why an answer ended, as a text: some servers give a number, or an object with a type (SGLang's)."""
    if isinstance(finish, dict):
        finish = finish.get("type")
    return finish if finish is None or isinstance(finish, str) else json.dumps(finish)[:SHOWN]


def _whole(number: Any) -> Any:
    """10.0 as 10, which is the same in JSON."""
    return int(number) if isinstance(number, float) and number.is_integer() else number


Finish = Annotated[str | None, BeforeValidator(_word)]
Count = Annotated[int, Field(le=MOST_TOKENS), BeforeValidator(_whole)]


class _Message(_Part):
    """reasoning_content, reasoning: what a model thought, as vLLM, DeepSeek, OpenRouter, Groq and others name it"""

    content: Annotated[str | None, BeforeValidator(_joined)] = None
    refusal: Any = None
    reasoning_content: Any = None
    reasoning: Any = None


class _Choice(_Part):
    message: _Message
    finish_reason: Finish = None
    logprobs: Any = None
    error: Any = None  # OpenRouter's, of a provider that failed while it answered


class _Body(_Part):
    choices: Annotated[list[_Choice], Field(min_length=1, fail_fast=True)]


class _Piece(_Part):
    """A choice in an event of a stream."""

    delta: _Message = _Message()
    finish_reason: Finish = None
    logprobs: Logprobs | None = None


class _Event(_Part):
    choices: Annotated[list[_Piece], Field(min_length=1, fail_fast=True)]


class Usage(_Part):
    """The tokens that a reply took, as far as an endpoint is believed. A prompt without a token is not."""

    prompt_tokens: Annotated[Count, Field(ge=1)] = Field(validation_alias=AliasChoices("prompt_tokens", "input_tokens"))
    completion_tokens: Annotated[Count, Field(ge=0)] = Field(
        validation_alias=AliasChoices("completion_tokens", "output_tokens")
    )


@dataclass(frozen=True)
class ChatReply:
    """A reply's first choice.

    text: as it came; `answer` is without thoughts
    finish: `length` where it was cut off, else the endpoint's word, mostly `stop`
    tokens: those of `logprobs`
    thought: the endpoint gave thoughts apart from the text
    refusal: the model's words where it refuses in a field of its own
    """

    text: str
    finish: str
    tokens: tuple[TokenEntry, ...] = ()
    thought: bool = False
    refusal: str = ""

    @property
    def answer(self) -> str:
        """The text after the thought that it begins with; empty where that does not end."""
        return without_thought(self.text)

    @property
    def ending(self) -> str:
        """How it ended, for a reason: `finish`, the model's refusal, or that there were thoughts alone."""
        if self.answer.strip() or self.finish == "length":
            return self.finish
        if self.refusal:
            return _("the model refuses: {refusal}", refusal=shown(self.refusal))
        return _("thoughts, but no answer") if self.thought or self.text else self.finish

    @property
    def starved(self) -> bool:
        """Whether it was cut off before its end because the model thinks: with more room it may answer."""
        return self.finish == "length" and (self.thought or not self.answer.strip() or self.answer != self.text)

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
    message, finish = choice.message, choice.finish_reason or "stop"
    if choice.error:
        raise ValueError(
            _(
                "an error in place of the rest of a reply: {error_message}",
                error_message=shown(error_message({"error": choice.error})),
            )
        )
    text = message.content or ""
    if len(text) > CHARACTERS_PER_TOKEN * max_tokens:
        raise ValueError(
            _("a reply of {text:,} characters, too many for {max_tokens} tokens", text=len(text), max_tokens=max_tokens)
        )
    return ChatReply(
        text,
        "length" if finish.lower() in CUT_OFF else finish,
        tuple(entries or ()),
        thought=bool(message.reasoning_content or message.reasoning),
        refusal=message.refusal if isinstance(message.refusal, str) and not text else "",
    )


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
    """The tokens that a body says it took; None where it says nothing that can be so for this text.

    Some count thoughts in the total alone (Gemini, xAI): they are paid for as part of the reply.
    """
    try:
        usage = Usage.model_validate(body["usage"])
    except (ValidationError, LookupError, TypeError):
        return None
    total = _whole(body["usage"].get("total_tokens"))
    if isinstance(total, int | float) and usage.prompt_tokens + usage.completion_tokens < total <= MOST_TOKENS:
        usage = usage.model_copy(update={"completion_tokens": int(total) - usage.prompt_tokens})
    return usage if usage.completion_tokens or not text else None


def read_refusal(body: Any) -> int | None:
    """The HTTP status that an error is meant as which came with HTTP 200 and without a reply, as OpenRouter's do.

    504, after which a request counts as paid, where the error has no such code; None where there is no error.
    """
    if not isinstance(body, dict) or not body.get("error") or body.get("choices"):
        return None
    error = body["error"]
    code = str(error.get("code") or error.get("status") or "") if isinstance(error, dict) else ""
    return int(code) if re.fullmatch(r"[45]\d\d", code, re.ASCII) else 504


def read_cost(body: Any) -> float | None:
    """The USD that some endpoints report in their usage, at most MOST_USD; None where they report no amount.

    With a key of one's own, OpenRouter reports what its provider takes apart: the larger one counts.
    """
    usage = body.get("usage") if isinstance(body, dict) else None
    if not isinstance(usage, dict):
        return None
    details = usage.get("cost_details")
    upstream = details.get("upstream_inference_cost") if isinstance(details, dict) else None
    amounts = [amount for value in (usage.get("cost"), upstream) if (amount := _amount(value)) is not None]
    return max(amounts, default=None)


def _amount(value: Any) -> float | None:
    try:
        usd = math.nan if isinstance(value, bool) else float(value)
    except (TypeError, ValueError, OverflowError):
        return None
    return min(usd, MOST_USD) if usd >= 0 else None


def _broken(error: ValidationError) -> ValueError:
    found = error.errors(include_url=False, include_context=False, include_input=False)[0]
    where = ".".join(str(part) for part in found["loc"]) or _("the whole")
    return ValueError(
        _("a reply that does not follow the OpenAI protocol ({where}: {found})", where=where, found=found["msg"])
    )
