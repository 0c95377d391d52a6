"""Whether a text is JSON that follows a schema: those keywords of JSON Schema that `answer_schema.py` lets through.

A schema and its patterns come from a client, so this runs in a child process with limits (`answer_check.py`).
"""

from __future__ import annotations

import ipaddress
import json
import math
import re
import uuid
from collections.abc import Callable, Iterator
from datetime import date, datetime, time
from fractions import Fraction
from typing import Any
from urllib.parse import unquote, urlsplit

from noesis.core.errors import UsageError
from noesis.core.i18n import _
from noesis.serving.schema_patterns import compiled

SHOWN = 80  # characters of a value, in messages


class SchemaError(UsageError):
    """A schema that is not served: what is wrong with it."""


def handle(schema: dict[str, Any], text: str | None) -> str | None:
    """What is wrong with `text`, or None; without a text, whether the patterns of `schema` can be searched for.

    Raises:
        SchemaError: a pattern can't.
    """
    if text is None:
        for pattern in _patterns(schema):
            compiled(pattern)
        return None
    try:
        value = json.loads(text, parse_constant=_no_number, parse_float=_finite)
        return next(_Rules(schema).problems(schema, value, "the answer"), None)
    except RecursionError:
        return "the answer is nested too deeply, or the schema refers to itself without an end"
    except ValueError as error:
        if isinstance(error, SchemaError):
            raise
        return f"the answer is not JSON: {str(error)[:SHOWN]}"


def resolve(root: Any, ref: Any) -> Any:
    """What a reference names: `#`, or `#/` and the way to a part of the same schema.

    Raises:
        SchemaError: it leads elsewhere, or nowhere.
    """
    found = root
    if isinstance(ref, str) and re.match(r"#(?:/|$)", ref):
        try:
            for step in unquote(ref[1:]).split("/")[1:]:
                name = step.replace("~1", "/").replace("~0", "~")
                found = found[int(name)] if isinstance(found, list) else found[name]
            return found
        except (KeyError, IndexError, ValueError, TypeError):
            pass
    raise SchemaError(
        _("$ref {ref!r} in the schema: only #/$defs/NAME and the like are supported", ref=str(ref)[:SHOWN])
    )


class _Rules:
    def __init__(self, root: Any) -> None:
        self._root = root

    def problems(self, schema: Any, value: Any, at: str) -> Iterator[str]:
        """What is wrong with a value, in words."""
        if schema is False:
            yield f"{at} is more than the schema allows"
        if not isinstance(schema, dict):
            return
        if "$ref" in schema:
            yield from self.problems(resolve(self._root, schema["$ref"]), value, at)
        for part in schema.get("allOf", ()):
            yield from self.problems(part, value, at)
        for name in ("anyOf", "oneOf"):
            if name in schema:
                fitting = sum(not any(self.problems(part, value, at)) for part in schema[name])
                if fitting == 0 or (name == "oneOf" and fitting > 1):
                    yield f"{at} fits {fitting or 'none'} of {name}"
        types = schema.get("type", [])
        types = types if isinstance(types, list) else [types]
        if types and not any(TYPES[t](value) for t in types):
            yield f"{at} is not of type {' or '.join(types)}"
        if "enum" in schema and _key(value) not in map(_key, schema["enum"]):
            yield f"{at} is none of the values of enum"
        if "const" in schema and _key(value) != _key(schema["const"]):
            yield f"{at} is not {json.dumps(schema['const'])[:SHOWN]}"
        if isinstance(value, str):
            yield from self._text(schema, value, at)
        elif isinstance(value, list):
            yield from self._list(schema, value, at)
        elif isinstance(value, dict):
            yield from self._object(schema, value, at)
        elif isinstance(value, (int, float)) and not isinstance(value, bool):
            yield from self._number(schema, value, at)

    def _text(self, schema: dict[str, Any], value: str, at: str) -> Iterator[str]:
        yield from _size(schema, "minLength", "maxLength", len(value), at)
        if "pattern" in schema and not compiled(schema["pattern"])(value):
            yield f"{at} does not match the pattern {schema['pattern'][:SHOWN]!r}"
        fits = FORMATS.get(str(schema.get("format")))
        if fits and not fits(value):
            yield f"{at} is no {schema['format']}"

    def _list(self, schema: dict[str, Any], value: list[Any], at: str) -> Iterator[str]:
        yield from _size(schema, "minItems", "maxItems", len(value), at)
        rest = schema.get("items", True)
        first = schema.get("prefixItems", rest if isinstance(rest, list) else [])
        rest = schema.get("additionalItems", True) if isinstance(rest, list) else rest
        for i, item in enumerate(value):
            yield from self.problems(first[i] if i < len(first) else rest, item, f"{at}[{i}]")
        if schema.get("uniqueItems") is True and len(set(map(_key, value))) < len(value):
            yield f"{at} has an item twice"

    def _object(self, schema: dict[str, Any], value: dict[str, Any], at: str) -> Iterator[str]:
        yield from _size(schema, "minProperties", "maxProperties", len(value), at)
        properties = schema.get("properties", {})
        for name in schema.get("required", ()):
            if name not in value:
                yield f"{at} has no {name[:SHOWN]!r}"
        for name, part in value.items():
            inner = f"{at}.{name[:SHOWN]}"
            yield from self.problems(properties.get(name, schema.get("additionalProperties", True)), part, inner)
            yield from self.problems(schema.get("propertyNames", True), name, f"the name {name[:SHOWN]!r}")

    def _number(self, schema: dict[str, Any], value: float, at: str) -> Iterator[str]:
        for name, (fits, words) in BOUNDS.items():
            if name in schema and not fits(value, schema[name]):
                yield f"{at} is not {words} {str(schema[name])[:SHOWN]}"
        if "multipleOf" in schema and Fraction(str(value)) % Fraction(str(schema["multipleOf"])):
            yield f"{at} is no multiple of {str(schema['multipleOf'])[:SHOWN]}"


def _size(schema: dict[str, Any], least: str, most: str, size: int, at: str) -> Iterator[str]:
    if size < schema.get(least, 0):
        yield f"{at} is shorter than {least}, {schema[least]}"
    if size > schema.get(most, math.inf):
        yield f"{at} is longer than {most}, {schema[most]}"


def _patterns(schema: Any) -> Iterator[str]:
    """The patterns anywhere in a schema, and what a property of that name may hold."""
    waiting = [schema]
    while waiting:
        part = waiting.pop()
        if isinstance(part, dict):
            if isinstance(part.get("pattern"), str):
                yield part["pattern"]
            waiting += part.values()
        elif isinstance(part, list):
            waiting += part


def _key(value: Any) -> str:
    """The same for equal values: 1 is 1.0, but not true."""
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if isinstance(value, list):
        return f"[{','.join(map(_key, value))}]"
    if isinstance(value, dict):
        return f"{{{','.join(f'{json.dumps(name)}:{_key(part)}' for name, part in sorted(value.items()))}}}"
    return json.dumps(value)


def _no_number(name: str) -> float:
    raise ValueError(_("{name} is not a JSON number", name=name))


def _finite(digits: str) -> float:
    if math.isinf(value := float(digits)):
        raise ValueError(_("{digits} is too large a number", digits=digits[:SHOWN]))
    return value


def _is_integer(value: Any) -> bool:
    return not isinstance(value, bool) and (isinstance(value, int) or (isinstance(value, float) and value.is_integer()))


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


TYPES: dict[str, Callable[[Any], bool]] = {
    "object": lambda value: isinstance(value, dict),
    "array": lambda value: isinstance(value, list),
    "string": lambda value: isinstance(value, str),
    "integer": _is_integer,
    "number": _is_number,
    "boolean": lambda value: isinstance(value, bool),
    "null": lambda value: value is None,
}
BOUNDS: dict[str, tuple[Callable[[float, float], bool], str]] = {
    "minimum": (lambda value, bound: value >= bound, "at least"),
    "exclusiveMinimum": (lambda value, bound: value > bound, "above"),
    "maximum": (lambda value, bound: value <= bound, "at most"),
    "exclusiveMaximum": (lambda value, bound: value < bound, "below"),
}


def _parses(parse: Callable[[str], Any], form: str = r"(?s:.*)") -> Callable[[str], bool]:
    """Whether a text has a form and is accepted by `parse`."""

    def fits(text: str) -> bool:
        try:
            return bool(re.fullmatch(form, text)) and parse(text) is not False
        except ValueError:
            return False

    return fits


_DAY, _HOUR = r"\d{4}-\d\d-\d\d", r"\d\d:\d\d:\d\d(?:\.\d{1,9})?(?:[Zz]|[+-]\d\d:\d\d)"
FORMATS: dict[str, Callable[[str], bool]] = {
    "date": _parses(date.fromisoformat, f"(?a:{_DAY})"),
    "time": _parses(lambda text: time.fromisoformat(text.upper()), f"(?a:{_HOUR})"),
    "date-time": _parses(lambda text: datetime.fromisoformat(text.upper()), f"(?a:{_DAY}[Tt]{_HOUR})"),
    "duration": _parses(bool, r"(?a:P(?!$)(?:\d+W|(?:\d+Y)?(?:\d+M)?(?:\d+D)?(?:T(?!$)(?:\d+H)?(?:\d+M)?(?:\d+S)?)?))"),
    "email": _parses(bool, r"[^\s@]{1,64}@[^\s@]{1,255}"),
    "hostname": _parses(lambda text: len(text) < 254, r"(?ai:(?:[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?\.?)+)"),
    "ipv4": _parses(ipaddress.IPv4Address),
    "ipv6": _parses(ipaddress.IPv6Address),
    "uuid": _parses(uuid.UUID, r"(?i:[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12})"),
    "uri": _parses(lambda text: bool(urlsplit(text).scheme), r"\S+"),
}
