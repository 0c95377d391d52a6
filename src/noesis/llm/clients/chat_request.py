"""A request in OpenAI's chat protocol, and the parts of it that an endpoint may refuse.

Providers differ in what they take: reasoning models no `max_tokens` and no `temperature`, Mistral no `seed`, Gemini no
`additionalProperties` in a schema, DeepSeek no schema, many no `logprobs`. What is optional is left out where it is
refused: the schema is in the prompt, too, and every reply is checked.
"""

from __future__ import annotations

import json
import re
from collections.abc import Collection
from typing import Any

from noesis.llm.clients.protocol import ModelRequest
from noesis.llm.http_reply import HttpReply, parse_json

REFUSES_PARTS = (400, 422)
# the optional parts, likeliest to be refused first, and how errors name them
OPTIONS = {
    name: re.compile(words, re.IGNORECASE)
    for name, words in {
        "response_format": r"response.?(?:format|schema)|json.?(?:schema|mode|object)|grammar|structured.output"
        r"|additionalProperties",
        "seed": r"\bseed\b",
        "logprobs": r"logprobs",
        "temperature": r"temperature",
        "max_tokens": r"(?<!completion_)(?<!output_)max_tokens",
    }.items()
}
_ABOUT_FIELDS = re.compile(
    r"unsupported|not support|unknown|unexpected|unrecogni[sz]ed|extra (?:field|input|param)|not (?:permitted|allowed)"
    r"|invalid (?:request|param|field|argument|input|json)|bad request|parameter|argument|^$",
    re.IGNORECASE,
)


def chat_body(model: str, request: ModelRequest, without: Collection[str]) -> dict[str, Any]:
    """The request's JSON. Without `max_tokens` it has `max_completion_tokens`, which reasoning models want.

    Args:
        without: names of OPTIONS to leave out.
    """
    room = "max_completion_tokens" if "max_tokens" in without else "max_tokens"
    body: dict[str, Any] = {"model": model, "messages": request.as_messages(), room: request.max_tokens}
    optional: dict[str, Any] = {"temperature": request.temperature, "seed": request.seed}
    if request.schema:
        schema = {"name": "verdict", "strict": True, "schema": request.schema}
        optional["response_format"] = {"type": "json_schema", "json_schema": schema}
    if request.logprobs and "logprobs" not in without:
        optional |= {"logprobs": True, "top_logprobs": request.logprobs}
    return body | {name: value for name, value in optional.items() if name not in without}


def refused_option(reply: HttpReply, sent: Collection[str], *, guess: bool) -> str | None:
    """The option to leave out after a refusal: the one that it names first; None where there is none.

    Args:
        sent: the fields of the request.
        guess: take the likeliest to be refused where none is named, but the error seems to be of that kind.
    """
    if reply.status not in REFUSES_PARTS:
        return None
    left = [name for name in OPTIONS if name in sent]
    for words in (_named_fields(reply.body), reply.message):
        found = [(match.start(), name) for name in left if (match := OPTIONS[name].search(words))]
        if found:
            return min(found)[1]
    guessed = [name for name in left if name != "max_tokens"]
    return guessed[0] if guess and guessed and _ABOUT_FIELDS.search(reply.message) else None


def _named_fields(body: bytes) -> str:
    """What an error names as the field at fault: OpenAI's `param`, or `loc` of FastAPI's `detail`.

    The rest of such an error may repeat the whole request.
    """
    try:
        value = parse_json(body)
    except ValueError:
        return ""
    named: list[Any] = []
    places = [value]
    while places:
        place = places.pop(0)
        if isinstance(place, list):
            places += place[:100]
        elif isinstance(place, dict):
            named += [place[name] for name in ("param", "loc") if isinstance(place.get(name), str | list)]
            places += [place[name] for name in ("error", "message", "detail") if name in place]
    return json.dumps(named)
