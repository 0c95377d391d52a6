"""OpenAI's chat protocol as Noesis implements it: what a request may contain, what is sent to llama.cpp for it, and the
shape of errors.

https://platform.openai.com/docs/api-reference/chat . Only known fields are passed on, each checked: llama.cpp accepts
many more (grammars, slots, files), which are not for clients. Unknown fields are ignored, as in other compatible
servers.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from typing import Any

from noesis.constitution.document import SystemPrompt
from noesis.core.i18n import _, in_english
from noesis.core.messages import Message
from noesis.core.text import break_control_tokens
from noesis.llm.llama_cpp import REPEAT_PENALTY
from noesis.serving.answer_schema import bounded_schema
from noesis.serving.schema_rules import SchemaError

ROLES = {"system": "system", "developer": "system", "user": "user", "assistant": "assistant"}
MAX_MESSAGES = 1000
BYTES_PER_TOKEN = 32  # more than any text has
MAX_STOPS, MAX_STOP_LENGTH = 16, 200  # texts, characters
# name: (smallest, largest, whole numbers only)
NUMBERS: dict[str, tuple[float, float, bool]] = {
    "temperature": (0, 2, False),
    "top_p": (0, 1, False),
    "frequency_penalty": (-2, 2, False),
    "presence_penalty": (-2, 2, False),
    "repeat_penalty": (0.5, 2, False),
    "seed": (-(2**63), 2**63 - 1, True),
    "top_logprobs": (0, 20, True),
    "strength": (0, 1.5, False),
}
TEXT_PARTS = ("text", "input_text", "output_text", "refusal")
UNSUPPORTED = ("tools", "functions", "audio", "logit_bias", "prediction")
FENCE = "```json"  # that models may write around an answer in JSON
HARMLESS = {  # what asks for nothing else than this server does
    "n": (1,),
    "tool_choice": ("none", "auto"),
    "function_call": ("none", "auto"),
    "modalities": (["text"],),
}


class ApiError(Exception):
    """An error to send to the client, in OpenAI's format."""

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
        self.status, self.message, self.code = status, in_english(message), code  # as the protocol has it
        self.param, self.retry_after_s = param, retry_after_s

    @classmethod
    def unknown_model(cls, name: object, models: tuple[str, ...]) -> ApiError:
        message = f"the model {str(name)[:80]!r} does not exist; available: {', '.join(models)}"
        return cls(404, message, code="model_not_found", param="model")

    def body(self) -> dict[str, Any]:
        """The JSON of the response."""
        kinds = {401: "authentication_error", 429: "rate_limit_error"}
        kind = kinds.get(self.status, "invalid_request_error" if self.status < 500 else "server_error")
        return {"error": {"message": self.message, "type": kind, "param": self.param, "code": self.code}}


@dataclass(frozen=True)
class Limits:
    """What the server accepts."""

    parallel: int = 8  # requests at once
    context: int = 4096  # tokens of prompt and answer together
    max_tokens: int = 1024  # tokens of an answer, at most
    body_bytes: int = 1_000_000
    request_s: float = 600.0  # for a whole answer
    body_s: float = 30.0  # for a request to arrive
    idle_s: float = 30.0  # for a connection without a request
    connections: int = 256
    grace_s: float = 30.0  # for requests in progress when the server is stopped


@dataclass(frozen=True)
class ChatRequest:
    """A checked request."""

    model: str
    body: dict[str, Any]  # for llama.cpp
    stream: bool
    usage_in_stream: bool  # send a last event with token counts
    include_analysis: bool
    prefill: str  # the beginning of the answer, written by the client; the model continues it
    alternatives: int  # to each token, with its log-probability
    schema: dict[str, Any] | None  # that the answer must follow, as the client wrote it

    @property
    def is_json(self) -> bool:
        """Whether the answer is to be JSON."""
        return str(self.body.get("response_format", {}).get("type", "text")) != "text"


def parse_json(raw: bytes) -> dict[str, Any]:
    """Parse a JSON object from a client.

    Raises:
        ApiError: anything else, NaN, a name given twice, or bottomless nesting.
    """
    try:
        value = json.loads(raw, parse_constant=_no_constant, object_pairs_hook=_each_once)
    except (ValueError, RecursionError) as error:
        raise ApiError(400, f"the body is not JSON: {str(error)[:200]}", code="invalid_json") from None
    if not isinstance(value, dict):
        raise ApiError(400, "the body is not a JSON object", code="invalid_json")
    return value


def read_chat_request(
    request: dict[str, Any],
    *,
    models: tuple[str, ...],
    special: re.Pattern[str],
    system: SystemPrompt,
    language: str,
    limits: Limits,
    scaled: tuple[str, ...] = (),
) -> ChatRequest:
    """Check a chat request and translate it for llama.cpp.

    Args:
        request: the client's JSON.
        special: matches the models' control tokens.
        system: added to a conversation without a system prompt of its own.
        language: of that system prompt, unless the request names one.
        scaled: models whose adapter `strength` may scale: 0 the base, 1 as it is served.

    Raises:
        ApiError: 400 or 404, naming the field.
    """
    model = find_model(request.get("model"), models)
    for name in UNSUPPORTED:
        if request.get(name):
            raise ApiError(400, f"{name} is not supported by this server", code="unsupported_parameter", param=name)
    for name, values in HARMLESS.items():
        if (value := request.get(name)) is not None and (value not in values or value is True):
            allowed = " or ".join(map(json.dumps, values))
            raise ApiError(400, f"{name} may only be {allowed}", code="unsupported_value", param=name)
    language = request.get("language") or language
    require_language(language, system)
    messages = read_messages(request.get("messages"), special)
    size = sum(len(message["content"].encode()) for message in messages)
    if size > limits.context * BYTES_PER_TOKEN:  # not even tokenised
        message = f"the conversation has {size:,} bytes, more than a context of {limits.context} holds: shorten it"
        raise ApiError(400, message, code="context_length_exceeded", param="messages")
    if all(message["role"] != "system" for message in messages):
        messages.insert(0, {"role": "system", "content": system[language]})
    last, schema, alternatives = messages[-1], None, 0
    body: dict[str, Any] = {
        "messages": messages,
        "max_tokens": _max_tokens(request, limits),
        "repeat_penalty": REPEAT_PENALTY,
    }
    for name in NUMBERS:
        if request.get(name) is not None:
            body[name] = _number(request, name)
    strength = body.pop("strength", 1)
    if strength != 1:
        if model not in scaled:
            message = f"{model} has no adapter here whose strength could be changed: serve the run without --quant"
            raise ApiError(400, message, code="unsupported_value", param="strength")
        body["lora"] = [{"id": 0, "scale": strength}]
    if _flag(request, "logprobs"):
        alternatives = int(body.get("top_logprobs", 0))
        body["logprobs"], body["top_logprobs"] = True, max(alternatives, 1)  # llama.cpp gives no log-probability with 0
    else:
        body.pop("top_logprobs", None)
    if request.get("stop") is not None:
        body["stop"] = _stops(request["stop"])
    if request.get("response_format") is not None:
        body["response_format"], schema = _response_format(request["response_format"])
        if body["response_format"]["type"] != "text" and "stop" in body:
            # A fence or white space would end the answer before it has begun; JSON ends by itself.
            body["stop"] = [stop for stop in body["stop"] if stop.strip("` \t\r\n") not in FENCE]
    # A cached prompt changes the last bits, and an answer that must be reproducible with them.
    body["cache_prompt"] = not (body.get("temperature") == 0 or "seed" in body)
    options = request.get("stream_options") or {}
    return ChatRequest(
        model=model,
        body=body,
        stream=_flag(request, "stream"),
        usage_in_stream=isinstance(options, dict) and options.get("include_usage") is True,
        include_analysis=_flag(request, "include_analysis"),
        prefill=last["content"] if last["role"] == "assistant" else "",
        schema=schema,
        alternatives=alternatives,
    )


def find_model(name: Any, models: tuple[str, ...]) -> str:
    """The served model that `name` means: in any case, behind a provider's name (openai/noesis), with Ollama's tag.

    Raises:
        ApiError: 404.
    """
    plain = name.rpartition("/")[2].removesuffix(":latest").strip().lower() if isinstance(name, str) else None
    for model in models:
        if plain == model.lower():
            return model
    raise ApiError.unknown_model(name, models)


def require_language(language: Any, system: SystemPrompt) -> None:
    """Raises: ApiError: the system prompt has no such language."""
    if language not in system.languages:
        message = f"language must be {' or '.join(system.languages)}"
        raise ApiError(400, message, param="language")


def read_messages(messages: Any, special: re.Pattern[str]) -> list[Message]:
    """Check the messages. Control tokens in them are broken up, whatever the role, so that none forges another.

    Raises:
        ApiError: 400, naming the message.
    """
    if not isinstance(messages, list) or not 0 < len(messages) <= MAX_MESSAGES:
        raise ApiError(400, f"messages must be a list of 1 to {MAX_MESSAGES} messages", param="messages")
    found = []
    for i, message in enumerate(messages):
        where = f"messages[{i}]"
        role = message.get("role") if isinstance(message, dict) else None
        if not isinstance(role, str) or role not in ROLES:
            raise ApiError(400, f"{where}.role must be system, developer, user or assistant", param=f"{where}.role")
        for name in ("tool_calls", "function_call"):
            if message.get(name):
                raise ApiError(400, f"{where}.{name} is not supported by this server", param=f"{where}.{name}")
        text = _text(message.get("content"), where)
        found.append({"role": ROLES[role], "content": break_control_tokens(text, special)})
    return found


def _text(content: Any, where: str) -> str:
    """A text, or the joined texts of a list of parts."""
    if content is None:
        return ""
    if isinstance(content, list):
        texts = [_text_of_part(part) for part in content]
        if None in texts:
            raise ApiError(
                400, f"{where}.content may hold text only", code="unsupported_value", param=f"{where}.content"
            )
        content = "".join(map(str, texts))
    if not isinstance(content, str):
        raise ApiError(400, f"{where}.content must be a text", param=f"{where}.content")
    try:
        content.encode()
    except UnicodeEncodeError:
        raise ApiError(400, f"{where}.content is not valid Unicode", param=f"{where}.content") from None
    return content


def _text_of_part(part: Any) -> str | None:
    """The text of a part, as OpenAI's protocols name it: what is said, or a refusal; None of another kind."""
    if not isinstance(part, dict):
        return None
    name = "refusal" if part.get("type") == "refusal" else "text"
    text = part.get(name) if part.get("type") in TEXT_PARTS else None
    return text if isinstance(text, str) else None


def _flag(request: dict[str, Any], name: str, *, default: bool = False) -> bool:
    value = request.get(name)
    if value is not None and not isinstance(value, bool):
        raise ApiError(400, f"{name} must be true or false", param=name)
    return default if value is None else value


def _number(request: dict[str, Any], name: str) -> float:
    low, high, whole = NUMBERS[name]
    value = _whole(request[name]) if whole else request[name]
    if isinstance(value, bool) or not isinstance(value, int if whole else (int, float)) or not low <= value <= high:
        raise ApiError(400, f"{name} must be a {'whole ' if whole else ''}number from {low} to {high}", param=name)
    return value  # type: ignore[no-any-return]


def _whole(value: Any) -> Any:
    """3.0 as 3, which is the same in JSON: some languages write every number so."""
    exact = isinstance(value, float) and value.is_integer() and abs(value) < 2**53
    return int(value) if exact else value


def _max_tokens(request: dict[str, Any], limits: Limits) -> int:
    """Tokens of the answer, as requested but within the server's own limit."""
    for name in ("max_completion_tokens", "max_tokens"):
        if (value := _whole(request.get(name))) is not None:
            if isinstance(value, bool) or not isinstance(value, int) or (value < 1 and value != -1):
                raise ApiError(400, f"{name} must be a whole number above 0", param=name)
            return limits.max_tokens if value == -1 else min(value, limits.max_tokens)  # -1: LM Studio's "no limit"
    return limits.max_tokens


def _stops(value: Any) -> list[str]:
    stops = [value] if isinstance(value, str) else value
    if (
        not isinstance(stops, list)
        or len(stops) > MAX_STOPS
        or not all(isinstance(s, str) and len(s) <= MAX_STOP_LENGTH for s in stops)
    ):
        message = f"stop must be a text or up to {MAX_STOPS} texts of at most {MAX_STOP_LENGTH} characters"
        raise ApiError(400, message, param="stop")
    return [stop for stop in stops if stop]  # a client's empty setting


def _response_format(value: Any) -> tuple[dict[str, Any], dict[str, Any] | None]:
    """The form for llama.cpp, and the schema that the finished answer is checked against.

    The schema stands in `json_schema.schema` (OpenAI), or in `schema` beside either type (llama.cpp, Together).
    """
    kind = value.get("type") if isinstance(value, dict) else None
    inner = value.get("json_schema") if kind == "json_schema" else None
    if kind in ("json_object", "json_schema") and inner is None and value.get("schema") is not None:
        inner = value
    if kind == "text" or (kind == "json_object" and inner is None):
        return {"type": kind}, None
    if not isinstance(inner, dict) or not isinstance(inner.get("schema"), dict):
        raise ApiError(
            400, "response_format must be text, json_object, or a json_schema with a schema", param="response_format"
        )
    try:
        schema = bounded_schema(inner["schema"])
    except SchemaError as error:
        raise ApiError(400, str(error), param="response_format") from None
    checked = inner["schema"] if _flag(inner, "strict", default=True) else None
    return {"type": "json_schema", "json_schema": {"name": "reply", "strict": True, "schema": schema}}, checked


def _each_once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ValueError(_("a name is given twice in an object"))
    return found


def _no_constant(name: str) -> float:
    raise ValueError(_("{name} is not a JSON number", name=name))
