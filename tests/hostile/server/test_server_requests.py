"""Attacks on `noesis serve` with requests of its own protocol: what one client sends must not hold up another."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from helpers.running_server import Client, reciters, running
from helpers.tiny_gguf import write_reciter, write_switch
from noesis.serving.answer_schema import bounded_schema
from noesis.serving.protocol import Limits
from noesis.serving.schema_rules import SchemaError
from noesis.serving.server import ModelFiles

pytestmark = pytest.mark.timing

DEFINITIONS = {f"d{i}": {"type": "array", "items": {"$ref": f"#/$defs/d{i + 1}"}} for i in range(30)}
BOMB: dict[str, Any] = {
    f"d{i}": {"anyOf": [{"$ref": f"#/$defs/d{i + 1}"}, {"$ref": f"#/$defs/d{i + 1}"}]} for i in range(20)
}


def nested(depth: int) -> dict[str, Any]:
    schema: dict[str, Any] = {"type": "string"}
    for _ in range(depth):
        schema = {"type": "array", "items": schema}
    return schema


SCHEMAS = [
    pytest.param({"type": "string", "minLength": 10, "maxLength": 2}, id="a string of at least 10 and at most 2"),
    pytest.param({"type": "array", "items": {}, "minItems": 3, "maxItems": 1}, id="a list of at least 3 and at most 1"),
    pytest.param({"enum": ["b" * 96 + f"{i:02}" for i in range(40)]}, id="40 values that share 96 characters"),
    pytest.param(
        {"anyOf": [{"enum": [c * 60 + f"{i:02}" for i in range(13)]} for c in "abc"]},
        id="groups that share 60 characters",
    ),
    pytest.param({"enum": [f"a{i}" for i in range(7000)]}, id="an enum of 7,000 values"),
    pytest.param({"enum": ["a" * 90 + str(i) for i in range(200)]}, id="an enum of 200 values that begin alike"),
    pytest.param({"enum": ["a" * 50_000]}, id="a value of 50,000 characters"),
    pytest.param({"anyOf": [{"type": "number"}] * 300}, id="300 equal branches"),
    pytest.param({"oneOf": [{"type": "string"}] * 300}, id="300 exclusive branches"),
    pytest.param(
        {"anyOf": [{"enum": [f"{i}{j}" for j in range(30)]} for i in range(30)]}, id="30 branches of 30 values each"
    ),
    pytest.param({"type": "object", "properties": {f"p{i}": {} for i in range(300)}}, id="300 optional properties"),
    pytest.param(
        {
            "type": "object",
            "properties": {f"p{i}": {} for i in range(2000)},
            "required": [f"p{i}" for i in range(2000)],
        },
        id="2,000 required properties",
    ),
    pytest.param({"type": "object", "properties": {"p" * 50_000: {}}}, id="a name of 50,000 characters"),
    pytest.param({"type": "array", "minItems": 10**400}, id="minItems of 400 digits"),
    pytest.param({"type": "array", "maxItems": 1.5e9}, id="maxItems that is no whole number"),
    pytest.param({"type": "array", "maxItems": True}, id="maxItems that is true"),
    pytest.param({"type": "string", "minLength": -1}, id="a negative minLength"),
    pytest.param(
        {"type": "array", "items": {"type": "string", "minLength": 1500}, "minItems": 1500}, id="bounds that multiply"
    ),
    pytest.param(nested(5000), id="5,000 arrays in one another"),
    pytest.param(nested(20), id="20 arrays in one another"),
    pytest.param({"$ref": "#"}, id="a schema that refers to itself"),
    pytest.param({"$ref": "#/$defs/a", "$defs": {"a": {"$ref": "#/$defs/a"}}}, id="a definition of itself"),
    pytest.param(
        {"$ref": "#/$defs/d0", "$defs": BOMB | {"d20": {"type": "string"}}}, id="definitions that double 20 times"
    ),
    pytest.param({"$ref": "#/$defs/d0", "$defs": DEFINITIONS | {"d30": {}}}, id="a chain of 30 definitions"),
    pytest.param({"$ref": "https://example.org/x.json"}, id="a reference to another machine"),
    pytest.param({"$ref": "file:///etc/passwd"}, id="a reference to a file"),
    pytest.param({"$ref": ["#"]}, id="a reference that is a list"),
    pytest.param({"allOf": [{"$ref": "#"}, {"$ref": "#"}]}, id="all of itself twice"),
    pytest.param({"not": {}}, id="a negation"),
    pytest.param({"if": {}, "then": {}}, id="a condition"),
    pytest.param({"patternProperties": {".*": {}}}, id="patterns of names"),
    pytest.param({"prefixItems": [{}] * 5000}, id="5,000 first items"),
    pytest.param({"type": "nonsense"}, id="an unknown type"),
    pytest.param({"type": ["string"] * 5000}, id="5,000 types"),
    pytest.param({"type": {"a": 1}}, id="a type that is an object"),
    pytest.param({"enum": []}, id="an empty enum"),
    pytest.param({"enum": {"a": 1}}, id="an enum that is an object"),
    pytest.param({"required": "abc"}, id="required names that are a text"),
    pytest.param({"properties": [1]}, id="properties that are a list"),
    pytest.param({"items": 5}, id="items that are a number"),
    pytest.param({"items": [{}] * 5000}, id="5,000 items"),
    pytest.param({"type": "number", "maximum": None}, id="a bound that is null"),
    pytest.param({"type": "number", "maximum": float("inf")}, id="a bound without end"),
    pytest.param({"type": "number", "multipleOf": 0}, id="multiples of nothing"),
    pytest.param({"allOf": [{"type": "string"}, {"type": "null"}]}, id="two types at once"),
]


LEFT_OUT = [
    pytest.param({"type": "array", "maxItems": 10**9}, id="maxItems of a billion"),
    pytest.param({"type": "string", "maxLength": 10**9}, id="maxLength of a billion"),
    pytest.param({"type": "string", "pattern": "^(a{1,2000}){1,2000}$"}, id="a pattern of repeated repeats"),
    pytest.param({"type": "string", "pattern": "(a|a)*(a|a)*b"}, id="a pattern of many readings"),
    pytest.param({"type": "integer", "minimum": -999_999, "maximum": 999_999}, id="a range of two million integers"),
    pytest.param({"type": "integer", "minimum": 10**400, "maximum": 10**401}, id="a range of 400 digits"),
    pytest.param({"type": "integer", "minimum": 5}, id="a range without end"),
    pytest.param({"type": "number", "minimum": 0.1, "maximum": 0.2}, id="a range of fractions"),
    pytest.param(
        {"$ref": "#/$defs/a", "$defs": {"a": {"items": {"$ref": "#/$defs/b"}}, "b": {"items": {"$ref": "#/$defs/a"}}}},
        id="two definitions of each other",
    ),
    pytest.param({"type": "array", "items": {}, "uniqueItems": True}, id="items that must differ"),
    pytest.param({"type": "string", "pattern": '^[^a]"*$'}, id="a pattern that ends the text early"),
    pytest.param({"type": "string", "pattern": "^" + "a*" * 200 + "$"}, id="a pattern of 200 repeats"),
    pytest.param({"type": "string", "pattern": "^a{9999}$"}, id="a pattern of 9,999 letters"),
]


@pytest.mark.parametrize("schema", LEFT_OUT)
def test_what_would_be_dear_for_a_grammar_is_left_out_of_it(schema: Any):
    """It holds all the same: the finished answer is checked (test_answer_checks.py)."""
    passed_on = json.dumps(bounded_schema(schema))
    dear = ("pattern", "uniqueItems", "multipleOf", "$ref", "1000000000", "0.1", "0" * 400)
    assert not any(word in passed_on for word in dear) and len(passed_on) < 400


@pytest.mark.parametrize("schema", SCHEMAS)
def test_a_schema_above_the_budget_is_refused_before_llama_cpp_sees_it(schema: Any):
    started = time.process_time()
    with pytest.raises(SchemaError) as refused:
        bounded_schema(schema)
    assert time.process_time() - started < 1 and len(str(refused.value)) < 300


@pytest.mark.parametrize(
    ("schema", "expected"),
    [
        ({"enum": ["a"] * 7000}, {"enum": ["a"]}),
        (
            {"type": "integer", "minimum": 1, "exclusiveMaximum": 5},
            {"type": "integer", "enum": [1, 2, 3, 4]},
        ),
        (
            {
                "title": "T",
                "type": "object",
                "$defs": {"B": {"type": "boolean", "description": "d"}},
                "properties": {"a": {"$ref": "#/$defs/B"}, "b": {"anyOf": [{"type": "string"}, {"type": "null"}]}},
                "required": ["a", "b"],
            },
            {
                "type": "object",
                "properties": {"a": {"type": "boolean"}, "b": {"anyOf": [{"type": "string"}, {"type": "null"}]}},
                "required": ["a", "b"],
            },
        ),
        ({"allOf": [{"type": "null"}]}, {"type": "null"}),
    ],
    ids=["equal values count once", "a small range", "as Pydantic writes it", "all of one"],
)
def test_ordinary_schemas_are_served(schema: Any, expected: dict[str, Any]):
    assert bounded_schema(schema) == expected


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Client]:
    limits = Limits(parallel=4, context=512, max_tokens=64)
    with running(reciters(tmp_path_factory.mktemp("gguf")), limits) as client:
        yield client


def request(**more: Any) -> bytes:
    body = {"model": "noesis", "messages": [{"role": "user", "content": "Hi"}], "max_tokens": 2} | more
    return json.dumps(body).encode()


def words(text: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": text}]


REQUESTS = [
    pytest.param(b"[" * 900_000, id="900,000 brackets"),
    pytest.param(b'{"a":' * 150_000, id="150,000 objects in one another"),
    pytest.param(request()[:-1] + b', "max_tokens": 3}', id="a field given twice"),
    pytest.param(b'{"model": "noesis", "messages": [{"role": "user", "role": "system"}]}', id="a role given twice"),
    pytest.param(request()[:-1] + b', "temperature": NaN}', id="a temperature that is not a number"),
    pytest.param(request()[:-1] + b', "temperature": 1e999}', id="an infinite temperature"),
    pytest.param(request()[:-1] + b', "seed": ' + b"9" * 100_000 + b"}", id="a seed of 100,000 digits"),
    pytest.param(b"\xff\xfe" + request(), id="bytes that are not UTF-8"),
    pytest.param(request()[:-5], id="half a request"),
    pytest.param(request(messages=words("\ud800")), id="half a character in a message"),
    pytest.param(request(stop=["\ud800"]), id="half a character in a stop text"),
    pytest.param(
        request(response_format={"type": "json_schema", "json_schema": {"schema": {"enum": ["\ud800"]}}}),
        id="half a character in a schema",
    ),
    pytest.param(request(model="\ud800" * 1000), id="half a character in the model's name"),
    pytest.param(request(messages=[{"role": "user"}] * 5000), id="5,000 messages"),
    pytest.param(request(messages=words("x" * 900_000)), id="one word of 900,000 letters"),
    pytest.param(request(messages=words("\u00e9\u0301 " * 150_000)), id="150,000 words"),
    pytest.param(request(messages=words("<|im_start|>" * 70_000)), id="70,000 control tokens"),
    pytest.param(request(messages=words("<" * 900_000)), id="900,000 beginnings of control tokens"),
    pytest.param(
        request(messages=[*words("x"), {"role": "assistant", "content": "[ANÁLISE INTERNA][FIM DA ANÁLISE]" * 20_000}]),
        id="an answer begun with 20,000 analyses",
    ),
    pytest.param(request(stop=["x"] * 5000), id="5,000 stop texts"),
    pytest.param(request(stop="x" * 50_000), id="a stop text of 50,000 letters"),
    pytest.param(request(n=10_000), id="10,000 answers"),
    pytest.param(request(tools=[{"type": "function"}] * 1000), id="1,000 tools"),
    pytest.param(request(logit_bias={str(i): 100 for i in range(9000)}), id="9,000 biases"),
    pytest.param(request(top_logprobs=10**9, logprobs=True), id="a billion alternatives to each token"),
    pytest.param(request(max_tokens=-2), id="an answer of minus two tokens"),
    pytest.param(request(max_tokens=1e300), id="an answer of 1e300 tokens"),
    pytest.param(request(response_format={"type": "json_schema", "json_schema": []}), id="a schema that is a list"),
]


@pytest.mark.parametrize("body", REQUESTS)
def test_a_bad_request_is_refused_at_once_and_another_client_is_answered(server: Client, body: bytes):
    started = time.monotonic()
    with ThreadPoolExecutor(1) as other:
        answer = other.submit(server.chat, max_tokens=1)
        reply = server.http.post("/v1/chat/completions", content=body)
        assert answer.result(30).status_code == 200
    assert 400 <= reply.status_code < 500 and reply.json()["error"]["message"], reply.text[:200]
    assert len(reply.content) < 2000 and time.monotonic() - started < 20


@pytest.mark.parametrize(
    "field",
    [
        {"grammar": 'root ::= ("a"{0,2000}){0,2000}'},
        {"json_schema": {"enum": [str(i) for i in range(7000)]}},
        {"n_predict": 10**6},
        {"n_probs": 10**6},
        {"samplers": ["xtc"] * 9000},
        {"dry_sequence_breakers": ["x"] * 9000},
        {"id_slot": 0, "cache_prompt": True},
        {"lora": [{"id": 0, "scale": 9.0}]},
        {"chat_template": "{% for i in range(10**9) %}x{% endfor %}"},
        {"chat_template_kwargs": {"messages": []}},
        {"parse_tool_calls": True, "reasoning_format": "none"},
        {"ignore_eos": True},
    ],
    ids=lambda field: f"llama.cpp's own field {next(iter(field))}",
)
def test_fields_of_llama_cpps_own_are_not_passed_on(server: Client, field: dict[str, Any]):
    reply = server.chat(**field)
    assert reply.json()["choices"][0]["message"]["content"] == "Courage is knowledge."
    assert reply.json()["choices"][0]["finish_reason"] == "stop"


@pytest.mark.timing
def test_schemas_within_the_budget_hold_nobody_up():
    """The dearest schemas that are let through, on a real vocabulary: another client's request ends meanwhile."""
    from noesis.core.errors import ModelError
    from noesis.llm.embedded import embedded_gguf

    try:
        file = embedded_gguf()
    except ModelError as error:
        pytest.skip(str(error))
    schemas = [
        {"type": "array", "items": {"enum": ["a " * 8 + str(i) for i in range(40)]}},
        {"type": "object", "properties": {"p" * 9 + str(i): {"type": "integer"} for i in range(100)}},
        {"type": "array", "items": {"enum": [f"{i * 7919 % 300:03}" for i in range(300)]}},
        {"anyOf": [{"type": "integer", "minimum": -(10**14) + i, "maximum": 10**14 - i} for i in range(40)]},
        {"anyOf": [{"type": "array", "items": {}, "minItems": 50} for _ in range(40)]},
        {"anyOf": [{"type": "number"}] * 40},
        {"type": "array", "minItems": 1999, "items": {"anyOf": [{"type": "string"}, {"type": "array", "items": {}}]}},
    ]
    with running(ModelFiles(file, None), Limits(parallel=3, context=512, max_tokens=8)) as server:
        for schema in schemas:
            form = {"type": "json_schema", "json_schema": {"schema": schema}}
            with ThreadPoolExecutor(2) as clients:
                asked = [clients.submit(server.chat, response_format=form) for _ in range(2)]
                started = time.monotonic()
                assert server.chat(max_tokens=2).status_code == 200
                assert time.monotonic() - started < 60
                assert all((reply := one.result(100)).status_code == 200 for one in asked), reply.text


def test_a_long_answer_of_one_model_does_not_hold_up_the_other(tmp_path: Path):
    """Base and adapter in one llama.cpp took turns by whole answers."""
    plain, tuned = [f" word{i}" for i in range(40)], ["tuned", " speech"]
    base = write_reciter(tmp_path / "base.gguf", plain, other=tuned, forever=True, context=100_000)
    files = ModelFiles(None, base, write_switch(tmp_path / "adapter.gguf", plain, tuned))
    with running(files, Limits(parallel=2, context=60_000, max_tokens=50_000)) as server:
        long = server.begin_stream(50_000, model="noesis-base")
        assert server.chat(max_tokens=3).json()["choices"][0]["message"]["content"] == "tuned speech"
        assert server.metric("noesis_in_flight") == 1  # the long one is not at its end yet
        long.close()
