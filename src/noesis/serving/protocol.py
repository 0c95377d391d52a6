"""OpenAI's chat protocol as Noesis speaks it: what a request may hold, what llama.cpp is asked for it, and how a refusal looks.

https://platform.openai.com/docs/api-reference/chat . Only known fields go on, each checked: llama.cpp has many more (grammars, slots,
adapters) which are not for clients. Unknown fields are ignored, as other compatible servers do.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from noesis.constitution.document import SystemPrompt
from noesis.core.text import CONTROL_TOKEN
from noesis.llm.llama_cpp import REPEAT_PENALTY

ROLES = {"system": "system", "developer": "system", "user": "user", "assistant": "assistant"}
MOST_MESSAGES = 1000
DEEPEST_SCHEMA, LONGEST_SCHEMA, MOST_REPEATS = 32, 64_000, 2000
# name: (smallest, largest, whole numbers only)
NUMBERS: dict[str, tuple[float, float, bool]] = {
    "temperature": (0, 2, False),
    "top_p": (0, 1, False),
    "frequency_penalty": (-2, 2, False),
    "presence_penalty": (-2, 2, False),
    "repeat_penalty": (0.5, 2, False),
    "seed": (-(2**63), 2**63 - 1, True),
    "top_logprobs": (0, 20, True),
}
NOT_SERVED = ("tools", "functions", "audio", "logit_bias", "modalities", "prediction")


class ApiError(Exception):
    """A refusal in the shape of OpenAI's errors."""

    def __init__(
        self,
        status: int,
        message: str,
        *,
        code: str | None = None,
        param: str | None = None,
        retry_after_s: int | None = None,
    ) -> None:
        super().__init__(message)
        self.status, self.message, self.code, self.param, self.retry_after_s = (
            status,
            message,
            code,
            param,
            retry_after_s,
        )

    def body(self) -> dict[str, Any]:
        kinds = {401: "authentication_error", 429: "rate_limit_error"}
        kind = kinds.get(self.status, "invalid_request_error" if self.status < 500 else "server_error")
        return {"error": {"message": self.message, "type": kind, "param": self.param, "code": self.code}}


@dataclass(frozen=True)
class Limits:
    """What one client may ask of the server."""

    parallel: int = 8  # requests at once
    context: int = 4096  # tokens of prompt and answer
    max_tokens: int = 1024  # tokens of an answer
    body_bytes: int = 1_000_000
    request_s: float = 600.0  # from the first to the last byte of an answer
    body_s: float = 30.0  # for a request to arrive
    idle_s: float = 30.0  # an open connection without a request
    connections: int = 256
    grace_s: float = 30.0  # for what is under way when the server is stopped


@dataclass(frozen=True)
class ChatRequest:
    """A checked request.

    body: for llama.cpp, without what chooses the adapter
    begun: what the client wrote of the answer, for the model to go on with
    """

    model: str
    body: dict[str, Any]
    stream: bool
    usage_in_stream: bool
    include_analysis: bool
    prefill: str


def parse_json(raw: bytes) -> dict[str, Any]:
    """A JSON object from a client. Raises ApiError: anything else, NaN, or nesting without end."""
    try:
        value = json.loads(raw, parse_constant=_no_constant)
    except (ValueError, RecursionError) as error:
        raise ApiError(400, f"the body is not JSON: {str(error)[:200]}", code="invalid_json") from None
    if not isinstance(value, dict):
        raise ApiError(400, "the body is not a JSON object", code="invalid_json")
    return value


def read_chat_request(
    request: dict[str, Any], *, models: tuple[str, ...], system: SystemPrompt, language: str, limits: Limits
) -> ChatRequest:
    """Check a chat request and say what llama.cpp is to be asked.

    Args:
        system: put before a conversation that brings no system prompt of its own, in `language` unless the request names one.

    Raises:
        ApiError: 400 or 404, naming the field.
    """
    model = request.get("model")
    if model not in models:
        raise ApiError(
            404,
            f"the model {str(model)[:80]!r} does not exist; there is {', '.join(models)}",
            code="model_not_found",
            param="model",
        )
    for name in NOT_SERVED:
        if request.get(name):
            raise ApiError(400, f"{name} is not supported by this server", code="unsupported_parameter", param=name)
    if request.get("n") not in (None, 1):
        raise ApiError(400, "n may only be 1", code="unsupported_value", param="n")
    spoken = request.get("language") or language
    if spoken not in ("pt", "en"):
        raise ApiError(400, "language must be pt or en", param="language")
    messages = read_messages(request.get("messages"))
    if all(message["role"] != "system" for message in messages):
        messages.insert(0, {"role": "system", "content": system.en if spoken == "en" else system.pt})
    last = messages[-1]
    body: dict[str, Any] = {
        "messages": messages,
        "max_tokens": _room(request, limits),
        "repeat_penalty": REPEAT_PENALTY,
    }
    for name in NUMBERS:
        if request.get(name) is not None:
            body[name] = _number(request, name)
    if _flag(request, "logprobs"):
        body["logprobs"], body["top_logprobs"] = True, max(int(body.get("top_logprobs", 0)), 1)
    else:
        body.pop("top_logprobs", None)
    if request.get("stop") is not None:
        body["stop"] = _stops(request["stop"])
    if request.get("response_format") is not None:
        body["response_format"] = _format(request["response_format"])
    # what was asked before may not change an answer that is to be the same each time, be it in the last bits
    body["cache_prompt"] = not (body.get("temperature") == 0 or "seed" in body)
    options = request.get("stream_options") or {}
    return ChatRequest(
        model=model,
        body=body,
        stream=_flag(request, "stream"),
        usage_in_stream=isinstance(options, dict) and options.get("include_usage") is True,
        include_analysis=_flag(request, "include_analysis"),
        prefill=last["content"] if last["role"] == "assistant" else "",
    )


def read_messages(messages: Any) -> list[dict[str, str]]:
    """Roles and texts. What a user wrote can't forge the boundary of a message: control tokens in it are made harmless."""
    if not isinstance(messages, list) or not 0 < len(messages) <= MOST_MESSAGES:
        raise ApiError(400, f"messages must be a list of 1 to {MOST_MESSAGES} messages", param="messages")
    found = []
    for i, message in enumerate(messages):
        where = f"messages[{i}]"
        role = message.get("role") if isinstance(message, dict) else None
        if not isinstance(role, str) or role not in ROLES:
            raise ApiError(400, f"{where}.role must be system, developer, user or assistant", param=f"{where}.role")
        text = _text(message.get("content"), where)
        found.append(
            {
                "role": ROLES[role],
                "content": CONTROL_TOKEN.sub(lambda m: m[0][0] + " " + m[0][1:], text) if role == "user" else text,
            }
        )
    return found


def _text(content: Any, where: str) -> str:
    """A text, or the texts of a list of parts."""
    if content is None:
        return ""
    if isinstance(content, list):
        if not all(
            isinstance(part, dict) and part.get("type") == "text" and isinstance(part.get("text"), str)
            for part in content
        ):
            raise ApiError(
                400, f"{where}.content may hold text only", code="unsupported_value", param=f"{where}.content"
            )
        content = "".join(part["text"] for part in content)
    if not isinstance(content, str):
        raise ApiError(400, f"{where}.content must be a text", param=f"{where}.content")
    try:
        content.encode()
    except UnicodeEncodeError:
        raise ApiError(400, f"{where}.content is not valid Unicode", param=f"{where}.content") from None
    return content


def _flag(request: dict[str, Any], name: str) -> bool:
    value = request.get(name)
    if value is not None and not isinstance(value, bool):
        raise ApiError(400, f"{name} must be true or false", param=name)
    return bool(value)


def _number(request: dict[str, Any], name: str) -> float:
    low, high, whole = NUMBERS[name]
    value = request[name]
    if isinstance(value, bool) or not isinstance(value, int if whole else (int, float)) or not low <= value <= high:
        raise ApiError(400, f"{name} must be a {'whole ' if whole else ''}number from {low} to {high}", param=name)
    return value  # type: ignore[no-any-return]


def _room(request: dict[str, Any], limits: Limits) -> int:
    """Tokens of the answer: as asked for, never above the server's own limit."""
    for name in ("max_completion_tokens", "max_tokens"):
        if (value := request.get(name)) is not None:
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise ApiError(400, f"{name} must be a whole number above 0", param=name)
            return min(value, limits.max_tokens)
    return limits.max_tokens


def _stops(value: Any) -> list[str]:
    stops = [value] if isinstance(value, str) else value
    if (
        not isinstance(stops, list)
        or len(stops) > 4
        or not all(isinstance(s, str) and 0 < len(s) <= 200 for s in stops)
    ):
        raise ApiError(400, "stop must be a text or up to 4 texts of 1 to 200 characters", param="stop")
    return stops


def _format(value: Any) -> dict[str, Any]:
    kind = value.get("type") if isinstance(value, dict) else None
    if kind in ("text", "json_object"):
        return {"type": kind}
    inner = value.get("json_schema") if kind == "json_schema" else None
    schema = inner.get("schema") if isinstance(inner, dict) else None
    if not isinstance(schema, dict):
        raise ApiError(
            400, "response_format must be text, json_object, or a json_schema with a schema", param="response_format"
        )
    _check_schema(schema)
    return {"type": "json_schema", "json_schema": {"name": "reply", "strict": True, "schema": schema}}


def _check_schema(schema: dict[str, Any]) -> None:
    """A grammar is made of it, whose size a few digits in a schema could blow up."""
    level: list[Any] = [schema]
    for _ in range(DEEPEST_SCHEMA):
        inner: list[Any] = []
        for part in level:
            if isinstance(part, dict):
                for name in ("minItems", "maxItems", "minLength", "maxLength"):
                    if isinstance(part.get(name), (int, float)) and part[name] > MOST_REPEATS:
                        raise ApiError(400, f"{name} in the schema is above {MOST_REPEATS}", param="response_format")
                inner.extend(part.values())
            elif isinstance(part, list):
                inner.extend(part)
        level = inner
    if level:
        raise ApiError(400, f"the schema is nested deeper than {DEEPEST_SCHEMA} levels", param="response_format")
    try:
        length = len(json.dumps(schema, allow_nan=False))
    except ValueError:
        raise ApiError(400, "the schema holds a number beyond all bounds", param="response_format") from None
    if length > LONGEST_SCHEMA:
        raise ApiError(400, f"the schema is longer than {LONGEST_SCHEMA:,} characters", param="response_format")


def _no_constant(name: str) -> float:
    raise ValueError(f"{name} is not a JSON number")
