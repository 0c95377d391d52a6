"""One line of a JSONL file → the example in it, and what is wrong with it. `whole_set.py` has the checks of the set."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from pydantic import ValidationError

from noesis.core.i18n import _, retold
from noesis.core.jsonl import LineError, id_problem, parse_object
from noesis.core.language import missing_accents, other_language
from noesis.core.text import NAMED_TOKEN, control_token, normalised
from noesis.dataset.checks.damage import damage
from noesis.dataset.checks.invisible import invisible, stray, unusual_break
from noesis.dataset.checks.judges import find_judges
from noesis.dataset.checks.placeholders import doubtful, has_blank, placeholder, set_elements
from noesis.dataset.checks.privacy import find_personal
from noesis.dataset.schema import ALIASES, GENERATED_MARKS, Example

TEXT_FIELDS = ("prompt", "response_initial", "critique", "response_revised", "reasoning")
LABEL_FIELDS = ("id", "category", "key")


@dataclass(frozen=True)
class Rules:
    """What an example may name, and how thoroughly it is checked.

    values: of the constitution, in rank order
    categories: the configured ones; () accepts any
    special: matches the special tokens of the model that is to be trained; None: the model is not known
    doubts: also look for what a person should check; that loads a language detector, which takes 0.2 s
    """

    values: tuple[str, ...]
    principles: frozenset[str]
    categories: tuple[str, ...]
    special: re.Pattern[str] | None = None
    doubts: bool = True


@dataclass(frozen=True)
class Finding:
    """What is wrong with one line; an error must not be trained on."""

    code: str
    message: str
    warning: bool = False


def check_line(line: bytes, rules: Rules, *, hand_written: bool = False) -> tuple[Example | None, list[Finding]]:
    """The example in `line` (None if there is none that could be trained on) and the findings.

    Args:
        hand_written: the file is one of those that only people write; a generated example in it is an error.
    """
    row = _parse(line)
    if isinstance(row, Finding):
        return None, [row]
    if hand_written and any(name in row for name in GENERATED_MARKS):
        advice = _("keep it in a folder of its own, such as data/generated")
        return None, [
            Finding("generated", _("a generated example among the hand-written ones: {advice}", advice=advice))
        ]
    try:
        example = Example.from_json(row)
    except ValidationError as error:
        texts = [(name[:80], value) for name, value in row.items() if isinstance(value, str)]
        return None, [*_field_errors(error, row), *_traps(texts, rules)]
    findings = list(_content(example, rules))
    if any(not finding.warning for finding in findings):
        return None, findings
    return example, [*findings, *(_doubts(example) if rules.doubts else ())]


def _parse(line: bytes) -> dict[str, Any] | Finding:
    try:
        row = parse_object(line)
    except LineError as error:
        return Finding(error.code, str(error))
    if "messages" in row and "prompt" not in row:
        advice = _("write it as a record with prompt, response_initial, critique, response_revised")
        return Finding(
            "messages-row", _("a chat row (`messages`): it has no weak answer and no critique; {advice}", advice=advice)
        )
    return row


def _field_errors(error: ValidationError, row: dict[str, Any]) -> Iterator[Finding]:
    """Missing, unknown and mistyped fields, at most five."""
    items = error.errors(include_input=False, include_url=False)
    missing = {item["loc"][0] for item in items if item["type"] == "missing"}
    for item in items[:5]:
        name = ".".join(str(part) for part in item["loc"])[:80] or "record"
        if item["type"] == "missing":
            other = next((k for k in row if ALIASES.get(k) == name), None)
            advice = _("; {other!r} is there: rename it", other=other) if other else ""
            yield Finding("missing-field", _("the field {name!r} is missing{advice}", name=name, advice=advice))
        elif item["type"] == "string_too_short":
            yield Finding(
                "bad-field",
                _(
                    "{name} is too short: at least {item} characters are needed",
                    name=name,
                    item=item["ctx"]["min_length"],
                ),
            )
        elif item["type"] != "extra_forbidden":
            message = item["msg"].removeprefix("Value error, ").replace("Tuple", "List").replace("tuple", "list")
            yield Finding("bad-field", _("{name}: {message}", name=name, message=retold(message)))
        elif ALIASES.get(name) not in missing:  # else it was named with the missing field
            yield Finding("unknown-field", _("unknown field {name!r}", name=name))


def _content(example: Example, rules: Rules) -> Iterator[Finding]:
    """Errors in what the fields say, and a category that is not configured."""
    if any(_trapped(text, rules.special) for text in _halves(example)):
        yield from _traps(_texts(example), rules)
    initial, revised = example.response_initial, example.response_revised
    if abs(len(initial) - len(revised)) < 0.2 * len(revised) and normalised(initial) == normalised(revised):
        yield Finding("no-revision", _("response_revised says the same as response_initial"))
    for name in ("prompt", "response_revised"):
        if not getattr(example, name).strip():
            yield Finding("bad-field", _("{name}: is empty: it has only spaces", name=name))
    if problem := id_problem(example.id):
        yield Finding("bad-id", _("id {problem}", problem=problem))
    if example.category == "tribunal":
        yield from _judges(example.critique)
    for value in example.values_applied:
        if value not in rules.values:
            known = ", ".join(sorted(rules.values))
            yield Finding(
                "unknown-value",
                _("values_applied names {value!r}; the constitution has {known}", value=value[:80], known=known),
            )
    for principle in example.principles:
        if principle not in rules.principles:
            message = _(
                "principles names {principle!r}, which the constitution does not have", principle=principle[:80]
            )
            yield Finding("unknown-principle", message)
    if rules.categories and example.category not in rules.categories:
        message = _(
            "category {category!r} is not in training_config.yaml (data.categories)", category=example.category[:80]
        )
        yield Finding("unknown-category", message, warning=True)


def _judges(critique: str) -> Iterator[Finding]:
    """Judges who are absent from a tribunal example's critique, or named in an unusual form."""
    found = find_judges(critique)
    if found.absent:
        message = _("a tribunal example's critique needs a paragraph by each judge, headed like [VERITAS]")
        yield Finding(
            "judges",
            _(
                "{message}; missing: {absent}",
                message=message,
                absent=", ".join(f"[{judge}]" for judge in found.absent),
            ),
        )
    if found.unusual:
        names = ", ".join(f"[{judge}]" for judge in found.unusual)
        yield Finding(
            "judges",
            _("critique names its judges in an unusual form; most examples have {names}", names=names),
            warning=True,
        )


def _halves(example: Example) -> tuple[str, str]:
    """All texts of an example in two parts: those that many rows of a generated set share, and the others."""
    shared = ("response_initial", "critique", "response_revised")
    return (
        "\n".join(getattr(example, name) for name in shared),
        "\n".join(text for name, text in _texts(example) if name not in shared),
    )


# Generated sets repeat a few answers thousands of times: each is searched once.
@lru_cache(maxsize=2048)
def _trapped(text: str, special: re.Pattern[str] | None) -> bool:
    return bool(control_token(text, special) or placeholder(text) or invisible(text))


@lru_cache(maxsize=2048)
def _odd(text: str) -> bool:
    return bool(unusual_break(text) or damage(text) or stray(text) or doubtful(text) or NAMED_TOKEN.search(text))


@lru_cache(maxsize=2048)
def _personal(text: str) -> bool:
    return bool(find_personal(text))


@lru_cache(maxsize=2048)
def _language_problems(text: str, label: str) -> tuple[str | None, list[str]]:
    """(the text's language if it is not the label's, words that lack their accents)"""
    return other_language(text, label), missing_accents(text) if label == "pt" else []


def _traps(texts: Iterable[tuple[str, str]], rules: Rules) -> Iterator[Finding]:
    texts = list(texts)
    elements = _elements(texts)
    exercise = any(has_blank(text) for name, text in texts if name == "prompt" or name.startswith("turns"))
    for name, text in texts:
        if token := control_token(text, rules.special):
            message = _(
                "{name} contains {token!r}, a control token of chat templates: it would forge a turn",
                name=name,
                token=token,
            )
            yield Finding(
                "forged-turn",
                _(
                    "{message}; if the text is about it, write {token!r}",
                    message=message,
                    token=token[0] + " " + token[1:],
                ),
            )
        if unfilled := placeholder(text, elements=elements, exercise=exercise):
            message = _("{name} contains the unfilled placeholder {unfilled!r}", name=name, unfilled=unfilled[:80])
            yield Finding(
                "placeholder",
                _("{message}: fill it in, or put it between `backticks` if the text is about it", message=message),
            )
        if character := invisible(text):
            yield Finding(
                "invisible",
                _("{name} contains an invisible character ({character}): delete it", name=name, character=character),
            )


def _elements(texts: Iterable[tuple[str, str]]) -> frozenset[str]:
    """The elements of all sets that the texts of a row define."""
    return frozenset[str]().union(*(set_elements(text) for _, text in texts))


def _texts(example: Example) -> Iterator[tuple[str, str]]:
    """(field, text) of every text of an example."""
    for name in TEXT_FIELDS:
        yield name, getattr(example, name)
    for name in LABEL_FIELDS:
        if value := getattr(example, name):
            yield name, value
    for i, turn in enumerate(example.turns):
        yield f"turns[{i}]", turn.content
    for i, source in enumerate(example.sources):
        yield f"sources[{i}]", f"{source.author} {source.work} {source.place}"


def _oddities(example: Example) -> Iterator[Finding]:
    """Warnings about what is there by accident, unless it is meant: placeholders, leftovers of programs, damage."""
    texts = list(_texts(example))
    elements = _elements(texts)
    for name, text in texts:
        if piece := doubtful(text, elements=elements):
            message = _("{name} contains {piece!r}: is it to be filled in?", name=name, piece=piece[:80])
            yield Finding("placeholder", message, warning=True)
        if token := NAMED_TOKEN.search(text):
            message = _(
                "{name} contains {group!r}, a control token of other models than the configured one",
                name=name,
                group=token.group(),
            )
            yield Finding("other-token", message, warning=True)
        if character := stray(text):
            message = _(
                "{name} contains a character that can't be seen ({character}); delete it, unless it is meant",
                name=name,
                character=character,
            )
            yield Finding("invisible", message, warning=True)
        if character := unusual_break(text):
            message = _(
                "{name} contains a line break that most tools don't know ({character}); is it meant?",
                name=name,
                character=character,
            )
            yield Finding("line-break", message, warning=True)
        if piece := damage(text):
            message = _(
                "{name} was read in a wrong encoding at some time: {piece!r}; write it again, unless it is meant",
                name=name,
                piece=piece,
            )
            yield Finding("encoding", message, warning=True)


def _doubts(example: Example) -> Iterator[Finding]:
    """Warnings: what a person should check."""
    if any(_odd(text) for text in _halves(example)):
        yield from _oddities(example)
    label = example.language
    language, accents = _language_problems(example.response_revised, label)
    if language is not None:
        yield Finding(
            "language",
            _("response_revised is in {language!r}, but its label says {label!r}", language=language, label=label),
            warning=True,
        )
    elif label == "pt" and (words := accents or missing_accents(example.prompt)):
        yield Finding("accents", _("Portuguese without its accents: {words}", words=", ".join(words[:4])), warning=True)
    if not any(_personal(text) for text in _halves(example)):
        return
    reported = set()
    for name, text in _texts(example):
        for kind, masked in find_personal(text):
            if kind not in reported:
                reported.add(kind)
                yield Finding(
                    "personal",
                    _("{name} seems to contain a {kind}: {masked}", name=name, kind=kind, masked=masked),
                    warning=True,
                )
