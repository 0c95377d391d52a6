"""Attacks through the check of finished answers against their schemas: it ends in time, and nobody waits for it."""

from __future__ import annotations

import asyncio
import json
import time
from typing import Any

import pytest

from noesis.core.errors import UsageError
from noesis.serving.answer_check import SECONDS, AnswerChecker
from noesis.serving.protocol import ApiError
from noesis.serving.schema_patterns import LONGEST, compiled
from noesis.serving.schema_rules import SchemaError, handle, resolve


@pytest.mark.parametrize(
    "pattern",
    [
        pytest.param("((((", id="that is none"),
        pytest.param("^(a{1,2000}){1,2000}$", id="of repeated repeats"),
        pytest.param(r"(a)\1", id="that refers back"),
        pytest.param(r"^(?=a)(a)\1", id="that looks ahead and refers back"),
        pytest.param(r"(?=(?<x>a))\k<x>", id="that refers back by name"),
        pytest.param("(?<=a*)b", id="that looks behind without an end"),
        pytest.param("(?=" * 330, id="of looks inside looks"),
        pytest.param("(?=a{99999999999})", id="that looks for 99,999,999,999 letters"),
        pytest.param("a" * (LONGEST + 1), id="of more than 1,000 characters"),
        pytest.param(r"[\p{Nonsense}]", id="of an unknown property"),
        pytest.param("[z-a]", id="of a range turned round"),
    ],
)
def test_a_pattern_that_can_not_be_searched_for_is_refused(pattern: str):
    schema = {"properties": {"a": {"items": {"pattern": pattern}}}}
    with pytest.raises(UsageError, match="pattern"):
        handle(schema, None)


@pytest.mark.parametrize(
    ("pattern", "text", "found"),
    [
        (r"^\d+$", "١", False), (r"^\D$", "١", True), (r"^[\d.]+$", "1.5", True), (r"^[^\d]$", "5", False),
        (r"^\w$", "é", False), (r"^[\w-]$", "-", True), (r"^\s$", "\u00a0", True), (r"^\S$", "\ufeff", False),
        ("^.$", "\u2028", False), ("^[.]$", ".", True), ("^[a[b]$", "[", True), ("^[&&]$", "&", True),
        ("^(?!b)a$", "a\n", False), (r"^(?!x)\s\S$", "\ufeffa", True), (r"(?=)^[^\S\n]$", "\u2003", True),
        (r"(?=)^\d\D\w\W$", "1١aé", True), ("(?!x)^.$", "\u2028", False), (r"(?=)\bé", "é", False),
        ("(?!x)^[a[b|&~]{5}$", "a[&|~", True), (r"^(?<y>a)(?!b)\u{e9}$", "aé", True), ("^[(?=]$", "(", True),
        (r"^(?!^[-+.]*$)[+-]?0*\d*\.?\d*$", "-.", False), ("(?<!a)b", "ab", False), ("(?<=a)b", "ab", True),
        (r"^[\]\[]$", "]", True), (r"\bé", "é", False), (r"^\/\u0041$", "/A", True), ("^[a~~b]$", "~", True),
    ],
)  # fmt: skip
def test_a_pattern_means_what_it_means_in_ecmascript(pattern: str, text: str, found: bool):
    assert compiled(pattern)(text) is found


HEAVY = {"type": "string", "pattern": "((a?){0,150}){0,150}x"}
BACK = {"type": "string", "pattern": "^(?=(a+)+$)(a|aa)+$"}
LOOP: dict[str, Any] = {"anyOf": [{"$ref": "#"}, {"$ref": "#"}, {"$ref": "#"}, {"type": "string"}]}


@pytest.mark.timing
@pytest.mark.parametrize(
    ("schema", "answer"),
    [
        pytest.param(HEAVY, json.dumps("a" * 20_000), id="a pattern of many states"),
        pytest.param(BACK, json.dumps("a" * 60 + "b"), id="a pattern that looks ahead and goes back"),
        pytest.param(LOOP, json.dumps({}), id="a reference to itself, three times"),
    ],
)
def test_a_check_that_takes_too_long_is_given_up_and_the_next_one_works(schema: dict[str, Any], answer: str):
    async def main() -> None:
        checker, ticks = AnswerChecker(), 0
        await checker.require_valid({"type": "string"}, '"warm"')

        async def tick() -> None:
            nonlocal ticks
            while True:
                await asyncio.sleep(0.05)
                ticks += 1

        other, started = asyncio.create_task(tick()), time.monotonic()
        with pytest.raises(ApiError) as refused:
            await checker.require_valid(schema, answer)
        other.cancel()
        took = time.monotonic() - started
        assert refused.value.status in (400, 422) and took < SECONDS + 10
        assert ticks >= 5 or took < 1  # the loop went on meanwhile
        await checker.require_valid({"type": "string"}, '"again"')
        checker.close()

    asyncio.run(main())


@pytest.mark.parametrize(
    "answer",
    [
        pytest.param("", id="nothing"),
        pytest.param('{"a": 1', id="half an object"),
        pytest.param("NaN", id="no number"),
        pytest.param("1e999", id="an infinite number"),
        pytest.param("9" * 5000, id="5,000 digits"),
        pytest.param("[" * 100_000, id="100,000 brackets"),
        pytest.param("1 2", id="two values"),
    ],
)
def test_an_answer_that_is_no_json_breaks_every_schema(answer: str):
    assert handle({}, answer)


@pytest.mark.parametrize("ref", ["#/$defs/none", "https://example.org/x", "file:///etc/passwd", "#a", "", None, ["#"]])
def test_a_reference_that_leads_out_is_refused(ref: Any):
    with pytest.raises(SchemaError, match="ref"):
        resolve({"$defs": {}}, ref)
    assert resolve({"$defs": {"a/b~c %": [1, 2]}}, "#/$defs/a~1b~0c%20%25/1") == 2


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [(1, 1.0, True), (1, True, False), ([1], [1.0], True), ({"a": 0}, {"a": False}, False), ("1", 1, False)],
)
def test_values_are_equal_as_json_has_it(one: Any, other: Any, same: bool):
    assert (handle({"const": one}, json.dumps(other)) is None) is same
