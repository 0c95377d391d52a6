"""Attacks on the time of the data gate and its like: lines on which a search or a loop takes quadratic time."""

from __future__ import annotations

import ast
import importlib
import json
import pkgutil
import random
import re
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest

import noesis
from helpers.project import ROOT
from hostile.models.regex_attacks import growth, quadratic
from noesis.core.jsonl.loose_object import scanned
from noesis.core.text import (
    break_control_tokens,
    closing,
    control_token,
    neutralise,
    normalised,
)
from noesis.dataset.checks.invisible import invisible, stray
from noesis.dataset.checks.line import Rules, check_line
from noesis.dataset.checks.placeholders import doubtful, placeholder
from noesis.dataset.checks.privacy import find_personal
from noesis.tribunal.planted.plant import plant

SRC = ROOT / "src" / "noesis"
HEAVY = {"torch", "transformers", "modal", "triton", "unsloth", "trl", "datasets", "inspect_ai", "aiohttp"}
# Calls that build a pattern: from words or tokens, all escaped, from constants of the module (measured as they end up in
# it), or from a client's schema, which is searched for in a child with limits.
BUILT = {
    "llm/clients/thoughts.py", "serving/schema_patterns.py",
    "llm/chat_template.py", "dataset/checks/length.py", "tribunal/code_checks.py",
    "llm/clients/openai_client.py", "dataset/checks/privacy.py", "core/text.py",
    "dataset/checks/judges.py", "dataset/checks/placeholders.py",
    "core/jsonl/loose_object.py", "tribunal/planted/claims.py",
}  # fmt: skip


def imports_heavy(file: Path) -> bool:
    """Whether importing the module loads what unit tests must not load."""
    for node in ast.parse(file.read_text(encoding="utf-8")).body:
        names = [a.name for a in node.names] if isinstance(node, ast.Import) else []
        names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
        if any(name.split(".")[0] in HEAVY or name.startswith(("noesis.cloud", "noesis.training")) for name in names):
            return True
    return False


def patterns_in(value: Any) -> Iterator[re.Pattern[str]]:
    if isinstance(value, re.Pattern) and isinstance(value.pattern, str):
        yield value
    elif isinstance(value, tuple | list | set | frozenset):
        for item in value:
            yield from patterns_in(item)
    elif isinstance(value, dict):
        yield from patterns_in(tuple(value.values()))


def calls_of_re(file: Path) -> Iterator[ast.Call]:
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Call) and ast.unparse(node.func).startswith("re.") and node.args:
            yield node


def literal(call: ast.Call) -> re.Pattern[str] | None:
    """The pattern of `re.search("…", …)`; None where it is not written there."""
    if not isinstance(call.args[0], ast.Constant) or ast.unparse(call.func) == "re.escape":
        return None
    words = [ast.unparse(n) for n in (*call.args[1:], *(k.value for k in call.keywords))]
    flags = [getattr(re, name) for word in words for name in re.findall(r"\bre\.([A-Z]+)\b", word)]
    return re.compile(call.args[0].value, sum(flags, re.RegexFlag(0)))


@cache
def all_patterns() -> dict[str, re.Pattern[str]]:
    """Every pattern of the package by place: what its modules hold, and what is written in calls."""
    found: dict[str, re.Pattern[str]] = {}
    known = set()

    def add(place: str, pattern: re.Pattern[str]) -> None:
        if (pattern.pattern, pattern.flags) not in known:
            known.add((pattern.pattern, pattern.flags))
            found[f"{place} {pattern.pattern[:30]!r}"] = pattern

    for module in pkgutil.walk_packages(noesis.__path__, "noesis."):
        file = Path(module.module_finder.path) / (module.name.split(".")[-1] + ".py")  # type: ignore[union-attr]
        if (
            file.is_file()
            and not module.name.startswith(("noesis.cloud", "noesis.training"))
            and not imports_heavy(file)
        ):
            for name, value in vars(importlib.import_module(module.name)).items():
                for pattern in patterns_in(value):
                    add(f"{module.name}.{name}", pattern)
    for file in SRC.rglob("*.py"):
        for call in calls_of_re(file):
            if pattern := literal(call):
                add(file.relative_to(SRC).as_posix(), pattern)
    return found


def test_every_pattern_is_a_constant_that_is_measured_here():
    elsewhere = {
        file.relative_to(SRC).as_posix()
        for file in SRC.rglob("*.py")
        for call in calls_of_re(file)
        if literal(call) is None and ast.unparse(call.func) != "re.escape"
        and not isinstance(call.args[0], ast.Name | ast.Attribute)
    }  # fmt: skip
    assert elsewhere <= BUILT
    assert len(all_patterns()) > 40


@pytest.mark.timing
def test_a_pattern_that_begins_again_at_every_character_is_found():
    assert quadratic(re.compile(r"\[INSERT[^\]]*\]"))
    assert quadratic(re.compile(r"<{2,}[^<>\n]{0,60}>{2,}"))
    assert not quadratic(re.compile(r"\[INSERT[^\]]{0,200}\]"))


@pytest.mark.timing
@pytest.mark.parametrize("part", range(6))
def test_no_pattern_takes_quadratic_time(part: int):
    slow = {place: found for place, p in [*all_patterns().items()][part::6] if (found := quadratic(p))}
    assert slow == {}


# --- functions that go through a text -------------------------------------------------------------------------------

RULES = Rules(("truth",), frozenset({"p"}), ())


def gate(field: str) -> Callable[[str], object]:
    return lambda text: check_line(json.dumps({field: text}).encode(), RULES)


PIECES = {
    "an opener without its closer": "[INSERT",
    "another opener": "[PREENCHER ",
    "curly brackets": "{",
    "double brackets": "{{ a",
    "angle brackets": "<",
    "half a control token": "<|im_start",
    "full-width bars": "<｜a",
    "digits": "1",
    "digits with points": "1.",
    "an address without a host": "a@",
    "hosts without an address": "a.",
    "spaces": " ",
    "newlines": "\n",
    "combining marks": "\u0301",
    "ends of sentences": '."',
    "a token's beginning": "sk-",
    "a key's beginning": "-----BEGIN ",
    "a letter that grows in NFKC": "\ufdfa",
    "soft hyphens": "\u00ad",
    "isolates without an end": "\u2067א",
    "Braille's blanks": "\u2800",
    "tags without an end": "<abc>",
    "an instruction without an end": "[INST]a",
}
FUNCTIONS: dict[str, Callable[[str], object]] = {
    "gate": gate("prompt"),
    "placeholder": placeholder,
    "doubtful": doubtful,
    "stray": stray,
    "control_token": control_token,
    "invisible": invisible,
    "normalised": normalised,
    "closing": closing,
    "neutralise": neutralise,
    "scanned": lambda text: scanned(text, ("reasoning", "a", "b_span")),
    "arithmetic_slip": lambda text: plant(text, "en", "arithmetic_slip", random.Random(0)),
    "certainty_inflated": lambda text: plant(text, "pt", "certainty_inflated", random.Random(0)),
    "break": break_control_tokens,
    "personal": find_personal,
}


@pytest.mark.timing
@pytest.mark.parametrize("piece", [pytest.param(piece, id=name) for name, piece in PIECES.items()])
def test_a_line_of_one_piece_takes_linear_time_in_the_gate(piece: str):
    slow = {
        name: ratio
        for name, function in FUNCTIONS.items()
        if (ratio := growth(function, lambda size: piece * (size // len(piece) + 1), (4096, 16384, 65536))) > 1
    }
    assert slow == {}


def test_a_line_with_half_a_million_keys_one_of_them_twice_is_refused_in_linear_time():
    def check(text: str) -> object:
        _, findings = check_line(text.encode(), RULES)
        return findings[0].code

    def line(size: int) -> str:
        keys = "".join(f'"{i}":1,' for i in range(size // 8))
        return "{" + keys + '"0":1}'

    assert check(line(2_000_000)) == "duplicate-field"
    assert growth(check, line, (32_768, 131_072, 524_288)) == 1


@pytest.mark.parametrize(
    ("piece", "code"),
    [
        pytest.param("[", "not-json", id="a line of opening brackets"),
        pytest.param('{"a":', "not-json", id="a line of objects within objects"),
        pytest.param("{", "not-json", id="a line of opening braces"),
        pytest.param("1", "not-json", id="a line that is one number of a million digits"),
        pytest.param('"a', "not-json", id="a line of opening quotes"),
        pytest.param("a" * 1000, "too-long", id="a line of ten megabytes"),
    ],
)
def test_a_line_that_is_no_record_ends_in_one_finding(piece: str, code: str):
    count = 10_000 if code == "too-long" else 1_000_000 // len(piece)
    example, findings = check_line((piece * count).encode(), RULES)
    assert example is None
    assert [finding.code for finding in findings] == [code]


@pytest.mark.parametrize(
    "piece",
    [
        pytest.param("{", id="a judge's reply of braces"),
        pytest.param('{"a":', id="a judge's reply of objects within objects"),
        pytest.param('{"a":[', id="a judge's reply of arrays within objects"),
        pytest.param("{\n", id="a judge's reply of braces and newlines"),
        pytest.param('{"a" ', id="a judge's reply of keys without values"),
    ],
)
@pytest.mark.timing
def test_a_reply_of_opening_braces_is_read_in_linear_time(piece: str):
    from noesis.tribunal.judge import _objects

    def read(text: str) -> object:
        return list(_objects(text))

    assert growth(read, lambda size: piece * (size // len(piece)), (65_536, 262_144, 1_048_576)) == 1


@pytest.mark.timing
def test_a_reply_that_says_ten_thousand_different_sentences_is_no_loop_and_takes_linear_time():
    from noesis.synthesis.reply_checks import _loops

    def text(size: int) -> str:
        return "".join(f"this is sentence number {i}. " for i in range(size // 28))

    assert not _loops(text(100_000))
    assert growth(_loops, text, (16_384, 65_536, 262_144)) == 1
