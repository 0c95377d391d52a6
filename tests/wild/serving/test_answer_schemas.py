"""JSON schemas as clients send them to `noesis serve`: followed, checked, or refused before an answer is written."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any, Literal, Optional

import pytest
from pydantic import BaseModel, Field

from helpers.running_server import Client, reciters, running
from helpers.tiny_gguf import write_reciter
from noesis.serving import schema_rules
from noesis.serving.answer_schema import bounded_schema
from noesis.serving.protocol import Limits
from noesis.serving.server import ModelFiles

pytestmark = pytest.mark.timing
LIMITS = Limits(parallel=2, context=512, max_tokens=64)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Client]:
    with running(reciters(tmp_path_factory.mktemp("gguf")), LIMITS) as client:
        yield client


class Node(BaseModel):
    name: str
    children: list[Node] = []


class Address(BaseModel):
    street: str
    postcode: Optional[str] = None  # noqa: UP045  (as people write it)


class Person(BaseModel):
    name: str = Field(min_length=1, max_length=5000)
    age: int = Field(ge=18)
    score: float = Field(ge=0, le=1)
    tags: set[Literal["a", "b"]]
    code: str = Field(pattern=r"^[A-Z]{2}\d{3}$")
    address: Address


OPTIONAL = {f"field{i}": {"anyOf": [{"type": "integer"}, {"type": "null"}], "default": None} for i in range(60)}
ZOD = {
    "$schema": "https://json-schema.org/draft/2020-12/schema",
    "type": "object",
    "properties": {
        "id": {"type": "integer", "minimum": -9007199254740991, "maximum": 9007199254740991},
        "pair": {"type": "array", "prefixItems": [{"type": "string"}, {"type": "number"}]},
        "more": {"type": "object", "propertyNames": {"type": "string"}, "additionalProperties": {"type": "boolean"}},
        "kind": {"oneOf": [{"type": "string", "const": "a"}, {"type": "string", "const": "b"}]},
        "mail": {"type": "string", "format": "email", "pattern": r"^(?:\S+)@\S+$"},
    },
    "required": ["id", "pair", "more", "kind", "mail"],
    "additionalProperties": False,
}
TREE = {"type": "object", "properties": {"left": {"$ref": "#"}, "value": {"type": "integer"}}, "required": ["value"]}
ORDINARY: dict[str, tuple[dict[str, Any], Any, Any]] = {  # schema, a value that follows it, one that breaks it
    "Pydantic's model": (
        Person.model_json_schema(),
        {"name": "A", "age": 18, "score": 0.5, "tags": ["a"], "code": "AB123", "address": {"street": "x"}},
        {"name": "A", "age": 17, "score": 0.5, "tags": ["a"], "code": "AB123", "address": {"street": "x"}},
    ),
    "a model of itself": (Node.model_json_schema(), {"name": "a", "children": [{"name": "b"}]}, {"children": []}),
    "a tree by #": (TREE, {"value": 1, "left": {"value": 2}}, {"value": 1, "left": {"value": "2"}}),
    "a tree by a way through the schema": (  # ggml-org/llama.cpp#16790
        {"properties": {"tree": {"type": "object", "properties": {"left": {"$ref": "#/properties/tree"}}}}},
        {"tree": {"left": {"left": {}}}}, {"tree": {"left": 1}},
    ),
    "a definition of itself beside others": (  # mudler/LocalAI#11020
        {"$defs": {"A": {"$ref": "#/$defs/A"}}, "oneOf": [{"type": "object", "properties": {"x": {"$ref": "#/$defs/A"}}}]},
        {}, {"x": 1},
    ),
    "a pattern with a needless escape": (  # ggml-org/llama.cpp#19051
        {"type": "string", "pattern": r"^hello there indeed\!$"}, "hello there indeed!", "hello",
    ),
    "60 optional fields or null": ({"type": "object", "properties": OPTIONAL}, {"field3": None}, {"field3": "x"}),
    "Zod's object": (
        ZOD,
        {"id": 1, "pair": ["a", 0.5], "more": {"x": True}, "kind": "b", "mail": "a@b"},
        {"id": 1, "pair": [1, 0.5], "more": {"x": True}, "kind": "b", "mail": "a@b"},
    ),
    "an enum of 100": ({"enum": [f"category {i}" for i in range(100)]}, "category 99", "category 100"),
    "a number without an upper bound": ({"type": "integer", "minimum": 5}, 5, 4),
    "fractions": ({"type": "number", "exclusiveMinimum": 0.1, "maximum": 0.2}, 0.15, 0.1),
    "different items": ({"type": "array", "uniqueItems": True}, [1, True, "1"], [1, 1.0]),
    "multiples": ({"type": "number", "multipleOf": 0.1}, 0.3, 0.35),
    "letters of any language": ({"type": "string", "pattern": r"^\p{L}+$"}, "São", "S4"),
    "digits of ASCII": ({"type": "string", "pattern": r"^[\d-]{3}$"}, "1-2", "١-٢"),
    "a discriminator": (
        {"oneOf": [{"type": "object", "properties": {"k": {"const": k}}, "required": ["k"]} for k in "ab"],
         "discriminator": {"propertyName": "k"}}, {"k": "a"}, {"k": "c"},
    ),
    "all of two": (
        {"allOf": [{"type": "object", "properties": {"a": {"type": "null"}}, "required": ["a"]},
                   {"properties": {"b": {"type": "null"}}, "required": ["b"]}]}, {"a": None, "b": None}, {"a": None},
    ),
    "a reference with a default": (
        {"properties": {"a": {"$ref": "#/$defs/A", "default": 1, "description": "d"}}, "$defs": {"A": {"type": "null"}}},
        {"a": None}, {"a": 1},
    ),
    "Zod's pattern of an address": (
        {"type": "string", "format": "email", "pattern":
         r"^(?!\.)(?!.*\.\.)([A-Za-z0-9_'+\-\.]*)[A-Za-z0-9_+-]@([A-Za-z0-9][A-Za-z0-9\-]*\.)+[A-Za-z]{2,}$"}, "a.b@c.org", "a..b@c.org",
    ),
    "Zod's pattern of a duration": (
        {"type": "string", "pattern":
         r"^P(?:(\d+W)|(?!.*W)(?=\d|T\d)(\d+Y)?(\d+M)?(\d+D)?(T(?=\d)(\d+H)?(\d+M)?(\d+([.,]\d+)?S)?)?)$"}, "P1DT2H", "P1W2D",
    ),
    "Pydantic's decimal": (
        {"anyOf": [{"type": "number"}, {"type": "string", "pattern": r"^(?!^[-+.]*$)[+-]?0*\d*\.?\d*$"}]}, "-1.50", "-.",
    ),
    "a password": ({"type": "string", "pattern": r"^(?=.*[a-z])(?=.*\d)[A-Za-z\d]{8,}$"}, "abcd1234", "abcdefgh"),
    "an enum, some of whose values are of its type": ({"type": "string", "enum": ["a", None]}, "a", None),
    "a name that must be there, whatever it holds": ({"type": "object", "required": ["a"]}, {"a": 1}, {"b": 1}),
    "a day": ({"type": "string", "format": "date"}, "2024-02-29", "2023-02-29"),
    "a moment": ({"type": "string", "format": "date-time"}, "2024-02-29T10:00:00Z", "2024-02-29"),
    "an address in the web": ({"type": "string", "format": "uri"}, "https://a.b/c", "a b"),
    "a UUID": ({"type": "string", "format": "uuid"}, "123e4567-e89b-12d3-a456-426614174000", "123e4567"),
    "nullable by a list": ({"type": ["string", "null"]}, None, 1),
}  # fmt: skip


@pytest.mark.parametrize(("schema", "good", "bad"), ORDINARY.values(), ids=ORDINARY)
def test_ordinary_schemas_are_served_and_checked(schema: dict[str, Any], good: Any, bad: Any):
    """issue 15, 19. The grammar leaves out what it can't enforce; the finished answer is checked for all of it."""
    assert "$ref" not in json.dumps(bounded_schema(schema))
    assert schema_rules.handle(schema, json.dumps(good)) is None
    assert schema_rules.handle(schema, json.dumps(bad))


def form(schema: dict[str, Any], **more: Any) -> dict[str, Any]:
    return {"response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": schema, **more}}}


FOLLOWED, BROKEN = {"type": "integer", "minimum": 5, "maximum": 9}, {"enum": [1, 2], "multipleOf": 5}


def test_an_answer_follows_its_schema_or_the_request_fails(server: Client):
    text = server.chat(**form(FOLLOWED, strict=True)).json()["choices"][0]["message"]["content"]
    assert 5 <= json.loads(text) <= 9
    for broken in (server.chat(**form(BROKEN, strict=True)), server.chat(**form(BROKEN))):
        assert (broken.status_code, broken.json()["error"]["code"]) == (422, "json_validate_failed")
        assert "no multiple of 5" in broken.json()["error"]["message"]
    assert server.chat(**form(BROKEN, strict=False)).status_code == 200  # the client wants no check
    refused = server.chat(**form({"type": "string", "pattern": r"(a)\1"}))
    assert (refused.status_code, refused.json()["error"]["param"]) == (400, "response_format")
    assert "backreferences" in refused.json()["error"]["message"]


def test_a_stream_that_breaks_its_schema_ends_with_an_error_and_without_done(server: Client):
    assert (
        json.loads("".join(e["choices"][0]["delta"].get("content", "") for e in server.events(**form(FOLLOWED)))) < 10
    )
    lines = server.chat(stream=True, **form(BROKEN)).text.splitlines()
    assert json.loads(lines[-2].removeprefix("data: "))["error"]["code"] == "json_validate_failed"
    assert "data: [DONE]" not in lines and '"finish_reason":"stop"' not in "".join(lines)


def test_a_pattern_that_looks_ahead_is_written_as_far_as_a_grammar_can_and_checked():
    decimal = {"type": "string", "pattern": r"^(?!^[-+.]*$)[+-]?0*\d*\.?\d*$"}
    assert bounded_schema(decimal)["pattern"] == r"^[+-]?0*[0-9]*\.?[0-9]*$"
    assert "pattern" not in bounded_schema({"type": "string", "pattern": "^(?=a)b|c$"})
    assert "pattern" not in bounded_schema({"type": "string", "pattern": "^" + "(?=a)" * 200_000 + "b$"})


@pytest.mark.parametrize(
    "response_format",
    [
        pytest.param({"type": "json_object", "schema": FOLLOWED}, id="llama.cpp's form"),
        pytest.param({"type": "json_schema", "schema": FOLLOWED}, id="Together's form"),
    ],
)
def test_a_schema_beside_the_type_is_followed(server: Client, response_format: dict[str, Any]):
    text = server.chat(response_format=response_format).json()["choices"][0]["message"]["content"]
    assert 5 <= json.loads(text) <= 9
    broken = server.chat(response_format=response_format | {"schema": BROKEN})
    assert (broken.status_code, broken.json()["error"]["code"]) == (422, "json_validate_failed")


LONG = int("9" * 400)


@pytest.mark.parametrize(
    ("schema", "words"),
    [
        pytest.param({"properties": {"a": {}}, "required": ["a", "b"]}, "'b', which is not in properties", id="a name that is nowhere"),
        pytest.param({"additionalProperties": False, "required": ["b"]}, "'b', which is not in properties", id="no names at all"),
        pytest.param({"allOf": [{"properties": {"a": {}}}, {"required": ["b"]}]}, "'b', which is not in", id="a name that is in no part"),
        pytest.param({"type": "integer", "enum": ["1", "2"]}, "no value of enum", id="values of another type"),
        pytest.param({"type": ["integer", "null"], "const": "1"}, "no value of const", id="a constant of another type"),
        pytest.param({"type": "integer", "enum": [1, 2], "minimum": 3}, "no value of enum", id="values below the minimum"),
        pytest.param({"enum": ["a", {"b": [LONG]}]}, "too large", id="a value with 400 digits"),
        pytest.param({"const": LONG}, "too large", id="a constant of 400 digits"),
        pytest.param({"const": 2**64 + 1}, "too large", id="a constant that no float is"),
        pytest.param({"type": "array", "minItems": LONG}, "minItems", id="a count of 400 digits"),
    ],
)  # fmt: skip
def test_a_schema_that_no_answer_can_follow_is_refused_before_one_is_written(schema: dict[str, Any], words: str):
    with pytest.raises(schema_rules.SchemaError, match=words) as refused:
        bounded_schema(schema)
    assert len(str(refused.value)) < 200


@pytest.mark.parametrize(
    "schema",
    [
        pytest.param({"properties": {"a": {}}, "required": ["b"], "additionalProperties": True}, id="other names allowed"),
        pytest.param({"required": ["k"], "properties": {"a": {}}, "anyOf": [{"properties": {"k": {"const": 1}}}]}, id="names in branches"),
        pytest.param({"const": 10**20}, id="a large number that is a float"),
        pytest.param({"const": -(2**63)}, id="64 bits"),
        pytest.param({"type": "array", "maxItems": LONG}, id="a bound above all answers"),
        pytest.param({"type": "integer", "maximum": LONG}, id="a bound of 400 digits"),
    ],
)  # fmt: skip
def test_a_schema_that_an_answer_can_follow_is_not(schema: dict[str, Any]):
    assert bounded_schema(schema)
    assert len(schema_rules.handle({"minimum": LONG, "multipleOf": LONG}, "1") or "") < 200


@pytest.fixture(scope="module")
def fenced(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Client]:
    file = tmp_path_factory.mktemp("fenced") / "fenced.gguf"
    pieces = ["```j", "son\n", '{"a":', ' "b"', "}\n", "```\n"]
    with running(
        ModelFiles(write_reciter(file, pieces), None), Limits(parallel=2, context=512, max_tokens=64)
    ) as client:
        yield client


OBJECT = form({"type": "object", "properties": {"a": {"type": "string"}}, "required": ["a"]})


@pytest.mark.parametrize("more", [OBJECT, {"response_format": {"type": "json_object"}}], ids=["schema", "json_object"])
def test_no_fence_is_shown_around_json_wherever_it_is_cut(fenced: Client, more: dict[str, Any]):
    for tokens in range(1, 6):
        choice = fenced.chat(max_tokens=tokens, **more).json()["choices"][0]
        assert '{"a": "b"}'.startswith(choice["message"]["content"]) and choice["finish_reason"] == "length"
    assert (
        fenced.chat(max_tokens=2).json()["choices"][0]["message"]["content"].startswith("```json")
    )  # as text it is one


@pytest.mark.parametrize("stop", [["```"], "\n", ["\n\n", "```json"], " ", "json"])
def test_a_text_that_would_stop_json_in_its_fence_does_not(fenced: Client, stop: Any):
    assert fenced.chat(stop=stop, **OBJECT).json()["choices"][0]["message"]["content"] == '{"a": "b"}'
    assert fenced.chat(stop="}", **OBJECT).status_code == 422
