"""One line of a JSONL file → the record in it, and what is wrong with it. What only the whole set can tell is in `validate.py`."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from pydantic import ValidationError

from noesis.core.language import missing_accents, other_language
from noesis.core.text import control_token, invisible, normalised, placeholder
from noesis.dataset.checks.privacy import find_personal
from noesis.dataset.jsonl import MAX_LINE
from noesis.dataset.schema import ALIASES, Generated, Record

TEXT_FIELDS = ("prompt", "response_initial", "critique", "response_revised", "reasoning")
LABEL_FIELDS = ("id", "category", "key")
JUDGES = ("[VERITAS]", "[SOPHIA]", "[DIKE]")
MARKS_OF_GENERATED = ("generated", "lineage")


@dataclass(frozen=True)
class Rules:
    """What a record may name."""

    values: tuple[str, ...]  # in rank order
    principles: frozenset[str]
    categories: tuple[str, ...]  # () accepts any
    special: re.Pattern[str] | None = None  # special tokens of the model that is to be trained
    doubts: bool = True  # also look for what a person should look at; it takes a language model that is loaded in 0.2 s


@dataclass(frozen=True)
class Finding:
    """What is wrong with one line; an error must not be trained on."""

    code: str
    message: str
    warning: bool = False


def check_line(line: bytes, rules: Rules, *, hand_written: bool = False) -> tuple[dict[str, Any] | None, list[Finding]]:
    """The record in `line` (None if it holds none that could be trained on) and the findings.

    Args:
        hand_written: the file is one of those that only people write; a generated example in it is an error.
    """
    row = _parse(line)
    if isinstance(row, Finding):
        return None, [row]
    if hand_written and any(name in row for name in MARKS_OF_GENERATED):
        return None, [
            Finding(
                "generated",
                "a generated example among the hand-written ones: keep it in a folder of its own, such as data/generated",
            )
        ]
    findings = list(_fields(row))
    findings += (
        _content(row, rules)
        if not findings
        else _traps([(k[:80], v) for k, v in row.items() if isinstance(v, str)], rules)
    )
    if any(not finding.warning for finding in findings):
        return None, findings
    return row, [*findings, *(_doubts(row) if rules.doubts else ())]


class _DuplicateKeyError(ValueError):
    pass


def _parse(line: bytes) -> dict[str, Any] | Finding:
    if len(line) > MAX_LINE:
        return Finding("too-long", f"the line is longer than {MAX_LINE:,} bytes")
    try:
        row = json.loads(line.decode("utf-8-sig"), parse_constant=_refuse_constant, object_pairs_hook=_unique)
    except UnicodeDecodeError as error:
        utf16 = " (it looks like UTF-16)" if b"\x00" in line[:4] or line[:2] in (b"\xff\xfe", b"\xfe\xff") else ""
        return Finding(
            "not-utf8",
            f"not UTF-8{utf16}: byte 0x{line[error.start]:02x} at column {error.start + 1}; save the file as UTF-8",
        )
    except RecursionError:
        return Finding("not-json", "not JSON that can be read: nested too deeply")
    except _DuplicateKeyError as error:
        return Finding("duplicate-field", f"the field {str(error)!r} stands twice in one object; which one is meant?")
    except ValueError as error:
        return Finding("not-json", f"not JSON: {error}")
    if not isinstance(row, dict):
        return Finding("not-an-object", f"expected a JSON object, found {type(row).__name__}")
    if "messages" in row and "prompt" not in row:
        advice = "write it as a record with prompt, response_initial, critique, response_revised"
        return Finding("messages-row", f"a chat row (`messages`): it has no weak answer and no critique; {advice}")
    return row


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is not JSON")


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """An object whose keys are all different: of two equal ones, each reader would take another."""
    made = dict(pairs)
    if len(made) < len(pairs):
        names = [name for name, _ in pairs]
        raise _DuplicateKeyError(next(name for name in names if names.count(name) > 1)[:80])
    return made


def _fields(row: dict[str, Any]) -> Iterator[Finding]:
    """Errors of missing, unknown or mistyped fields, at most five."""
    kind = Generated if any(name in row for name in MARKS_OF_GENERATED) else Record
    try:
        kind.model_validate(row)
    except ValidationError as error:
        for item in error.errors(include_input=False, include_url=False)[:5]:
            name = ".".join(str(part) for part in item["loc"])[:80] or "record"
            if item["type"] == "missing":
                other = next((k for k in row if ALIASES.get(k) == name), None)
                yield Finding(
                    "missing-field",
                    f"the field {name!r} is missing" + (f"; {other!r} is there: rename it" if other else ""),
                )
            elif item["type"] == "string_too_short":
                yield Finding(
                    "bad-field", f"{name} is too short: at least {item['ctx']['min_length']} characters are needed"
                )
            elif item["type"] != "extra_forbidden":
                yield Finding("bad-field", f"{name}: {item['msg'].removeprefix('Value error, ')}")
            elif name not in ALIASES or ALIASES[name] in row:  # else it was named with the missing field
                yield Finding("unknown-field", f"unknown field {name!r}")


def _content(row: dict[str, Any], rules: Rules) -> Iterator[Finding]:
    """Errors in what the fields say, and a category that is not configured."""
    if any(_trapped(text, rules.special) for text in _halves(row)):
        yield from _traps(_texts(row), rules)
    initial, revised = row["response_initial"], row["response_revised"]
    if abs(len(initial) - len(revised)) < 0.2 * len(revised) and normalised(initial) == normalised(revised):
        yield Finding("no-revision", "response_revised says the same as response_initial")
    if row["category"] == "tribunal" and (absent := [judge for judge in JUDGES if judge not in row["critique"]]):
        yield Finding(
            "judges", f"a tribunal example's critique needs a paragraph of each judge; missing: {', '.join(absent)}"
        )
    for value in row["values_applied"]:
        if value not in rules.values:
            yield Finding(
                "unknown-value",
                f"values_applied names {value[:80]!r}; the constitution has {', '.join(sorted(rules.values))}",
            )
    for principle in row.get("principles") or ():
        if principle not in rules.principles:
            yield Finding(
                "unknown-principle", f"principles names {principle[:80]!r}, which the constitution does not have"
            )
    if rules.categories and row["category"] not in rules.categories:
        yield Finding(
            "unknown-category",
            f"category {row['category'][:80]!r} is not in training_config.yaml (data.categories)",
            warning=True,
        )


def _halves(row: dict[str, Any]) -> tuple[str, str]:
    """All texts of a record in two: what is often the same in many rows, and what is not."""
    shared = ("response_initial", "critique", "response_revised")
    return "\n".join(row[name] for name in shared), "\n".join(text for name, text in _texts(row) if name not in shared)


# Generated sets repeat a few answers thousands of times: what was found in one is remembered.
@lru_cache(maxsize=2048)
def _trapped(text: str, special: re.Pattern[str] | None) -> bool:
    return bool(control_token(text, special) or placeholder(text) or invisible(text))


@lru_cache(maxsize=2048)
def _personal(text: str) -> bool:
    return bool(find_personal(text))


@lru_cache(maxsize=2048)
def _speech(text: str, label: str) -> tuple[str | None, list[str]]:
    """(another language than the label's, words without their accents)"""
    return other_language(text, label), missing_accents(text) if label == "pt" else []


def _traps(texts: Iterable[tuple[str, str]], rules: Rules) -> Iterator[Finding]:
    for name, text in texts:
        if token := control_token(text, rules.special):
            yield Finding(
                "forged-turn", f"{name} holds {token!r}, a control token of chat templates: it would forge a turn"
            )
        if unfilled := placeholder(text):
            yield Finding("placeholder", f"{name} holds the unfilled placeholder {unfilled!r}")
        if character := invisible(text):
            yield Finding("invisible", f"{name} holds an invisible character ({character})")


def _texts(row: dict[str, Any]) -> Iterator[tuple[str, str]]:
    for name in TEXT_FIELDS:
        yield name, row[name]
    for name in LABEL_FIELDS:
        if row.get(name):
            yield name, row[name]
    for i, turn in enumerate(row.get("turns") or ()):
        yield f"turns[{i}]", turn["content"]
    for i, source in enumerate(row.get("sources") or ()):
        yield f"sources[{i}]", " ".join(source.values())


def _doubts(row: dict[str, Any]) -> Iterator[Finding]:
    """Warnings: what a person should look at."""
    label = row.get("language", "pt")
    language, accents = _speech(row["response_revised"], label)
    if language is not None:
        yield Finding("language", f"response_revised is in {language!r}, its label says {label!r}", warning=True)
    elif label == "pt" and (words := accents or missing_accents(row["prompt"])):
        yield Finding("accents", f"Portuguese without its accents: {', '.join(words[:4])}", warning=True)
    if not any(_personal(text) for text in _halves(row)):
        return
    seen = set()
    for name, text in _texts(row):
        for kind, masked in find_personal(text):
            if kind not in seen:
                seen.add(kind)
                yield Finding("personal", f"{name} seems to hold a {kind}: {masked}", warning=True)
