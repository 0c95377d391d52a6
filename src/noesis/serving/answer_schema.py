"""The JSON schema of an answer, rebuilt from known keywords within a budget before llama.cpp makes a grammar of it.

llama.cpp compares every reading of the grammar that is still open with every token of the vocabulary, in the one loop
that serves all requests: a schema with thousands of readings stalls everyone, and nothing ends it early. What is passed
on is therefore a tree without references, whose readings are at most the alternatives counted here. A keyword that the
budget can't judge (a pattern, a recursive reference) is refused by name.
"""

from __future__ import annotations

import json
from collections.abc import Collection
from itertools import pairwise
from typing import Any

from noesis.core.errors import UsageError

MAX_DEPTH = 16  # schemas inside one another; a reference is none
MAX_SCHEMAS = 100
MAX_ALTERNATIVES = 40  # values of enums, branches, optional properties: of the whole schema
MAX_REPEATS = 2000  # the sum of all bounds of items and characters
MAX_CHARACTERS = 4000  # of property names and values; what two share at their beginning counts SHARED times
SHARED = 5  # as long as they agree, all of them are compared with every token

TYPES = ("object", "array", "string", "integer", "number", "boolean", "null")
FORMATS = ("date", "time", "date-time", "uuid")
COUNTS = ("minItems", "maxItems", "minLength", "maxLength")
BOUNDS = ("minimum", "exclusiveMinimum", "maximum", "exclusiveMaximum")
ANNOTATIONS = (
    *("title", "description", "default", "examples", "deprecated", "readOnly", "writeOnly"),
    *("$schema", "$id", "$comment", "$defs", "definitions"),
)


class SchemaError(UsageError):
    """A schema that is not served: what is wrong with it."""


def bounded_schema(schema: Any) -> dict[str, Any]:
    """`schema` from known keywords only, with its references filled in.

    Raises:
        SchemaError: it is not a schema, is above the budget, or holds something that is not supported.
    """
    return _Builder(schema).build(schema, ())


class _Builder:
    def __init__(self, root: Any) -> None:
        self._root = root
        self._schemas = self._alternatives = self._repeats = self._characters = 0

    def build(self, schema: Any, inside: tuple[str, ...], depth: int = 1) -> dict[str, Any]:
        """Args:
        inside: the references that are being filled in.
        """
        if schema is True:
            schema = {}
        if not isinstance(schema, dict):
            raise SchemaError("each schema must be an object")
        if depth > MAX_DEPTH:
            raise SchemaError(f"the schema is nested deeper than {MAX_DEPTH} levels")
        self._schemas = _spend(self._schemas, 1, MAX_SCHEMAS, "the schema has more than {} parts")
        schema = {name: value for name, value in schema.items() if name not in ANNOTATIONS}
        if "$ref" in schema:
            return self._fill_in(schema.pop("$ref"), schema, inside, depth)
        if isinstance(only := schema.get("allOf"), list) and len(only) == 1 and len(schema) == 1:
            return self.build(only[0], inside, depth + 1)
        out: dict[str, Any] = {}
        bounded = False
        for name, value in schema.items():
            if name == "type":
                out["type"] = self._types(value)
            elif name in ("anyOf", "oneOf"):
                out["anyOf"] = [self.build(part, inside, depth + 1) for part in self._branches(name, value)]
            elif name == "enum":
                out["enum"] = self._values(value)
            elif name == "const":
                out["const"] = self._values([value])[0]
            elif name == "properties":
                out["properties"] = self._properties(value, schema, inside, depth)
            elif name == "required":
                out["required"] = self._names(value)
            elif name in ("items", "additionalProperties"):
                out[name] = value if isinstance(value, bool) else self.build(value, inside, depth + 1)
            elif name in COUNTS:
                out[name] = self._count(name, value)
            elif name in BOUNDS:
                bounded = True
            elif name == "format":
                if value in FORMATS:  # others say something, but restrict nothing
                    out["format"] = value
            else:
                raise SchemaError(f"{name[:40]!r} in the schema is not supported")
        for least, most in (COUNTS[:2], COUNTS[2:]):
            if out.get(least, 0) > out.get(most, MAX_REPEATS):  # llama.cpp would count down past nothing
                raise SchemaError(f"{least} in the schema is above {most}")
        if bounded:
            out = {"enum": self._range(schema)}
        return out

    def _fill_in(self, ref: Any, rest: dict[str, Any], inside: tuple[str, ...], depth: int) -> dict[str, Any]:
        if rest:
            raise SchemaError("a $ref in the schema must stand alone")
        kind, _, name = str(ref).removeprefix("#/").partition("/")
        definitions = self._root.get(kind) if kind in ("$defs", "definitions") and str(ref).startswith("#/") else None
        if not isinstance(definitions, dict) or name not in definitions:
            raise SchemaError(f"$ref {str(ref)[:80]!r} in the schema: only #/$defs/NAME is supported")
        if name in inside:
            raise SchemaError(f"$ref {str(ref)[:80]!r} in the schema refers to itself, which is not supported")
        return self.build(definitions[name], (*inside, name), depth)

    def _types(self, value: Any) -> Any:
        types = value if isinstance(value, list) else [value]
        if not types or not all(isinstance(t, str) and t in TYPES for t in types):
            raise SchemaError(f"type in the schema must be of {', '.join(TYPES)}")
        if not isinstance(value, list):
            return value
        self._choose(len(types))
        return list(dict.fromkeys(types))

    def _branches(self, name: str, value: Any) -> list[Any]:
        if not isinstance(value, list) or not value:
            raise SchemaError(f"{name} in the schema must be a list of schemas")
        self._choose(len(value) - ({"type": "null"} in value))  # "or null" is no other reading
        return value

    def _values(self, value: Any) -> list[Any]:
        """Values as an answer may have them, each once."""
        if not isinstance(value, list) or not value:
            raise SchemaError("enum in the schema must be a list of values")
        try:
            different = {json.dumps(v, allow_nan=False): v for v in value}
        except (ValueError, RecursionError):
            raise SchemaError("the schema contains a number that is not finite, or deep nesting") from None
        self._choose(len(different))
        self._spell(different)
        return list(different.values())

    def _properties(self, value: Any, schema: dict[str, Any], inside: tuple[str, ...], depth: int) -> dict[str, Any]:
        if not isinstance(value, dict):
            raise SchemaError("properties in the schema must be an object")
        required = self._names(schema.get("required", []))
        self._choose(len(value.keys() - set(required)))
        self._spell(value)
        return {name: self.build(part, inside, depth + 1) for name, part in value.items()}

    def _names(self, value: Any) -> list[str]:
        if not isinstance(value, list) or not all(isinstance(name, str) for name in value):
            raise SchemaError("required in the schema must be a list of names")
        return value

    def _count(self, name: str, value: Any) -> int:
        if isinstance(value, bool) or not isinstance(value, int) or value < 0:
            raise SchemaError(f"{name} in the schema must be a whole number from 0")
        problem = f"the bounds in the schema ({name}, …) add up to more than {{:,}}"
        self._repeats = _spend(self._repeats, value, MAX_REPEATS, problem)
        return value

    def _range(self, schema: dict[str, Any]) -> list[Any]:
        """The whole numbers between the bounds: llama.cpp's own grammar of a range has thousands of readings."""
        bounds = {name: schema[name] for name in BOUNDS if name in schema}
        if schema.get("type") != "integer" or any(type(value) is not int for value in bounds.values()):
            raise SchemaError("bounds of numbers in the schema are supported for integers, as whole numbers")
        low = max((bounds[n] + (n == "exclusiveMinimum") for n in BOUNDS[:2] if n in bounds), default=None)
        high = min((bounds[n] - (n == "exclusiveMaximum") for n in BOUNDS[2:] if n in bounds), default=None)
        if low is None or high is None or not 0 <= high - low < MAX_ALTERNATIVES:
            raise SchemaError(
                f"integers in the schema need both bounds, with at most {MAX_ALTERNATIVES} values between"
            )
        return self._values(list(range(low, high + 1)))

    def _choose(self, count: int) -> None:
        problem = "the schema has more than {} alternatives (values of enums, branches, optional properties)"
        self._alternatives = _spend(self._alternatives, count, MAX_ALTERNATIVES, problem)

    def _spell(self, texts: Collection[str]) -> None:
        problem = "names and values in the schema have more than {:,} characters, or begin alike for too long"
        shared = sum(_shared(a, b) for a, b in pairwise(sorted(texts)))
        count = sum(map(len, texts)) + (SHARED - 1) * shared
        self._characters = _spend(self._characters, count, MAX_CHARACTERS, problem)


def _shared(a: str, b: str) -> int:
    """How many characters two texts have in common at their beginning."""
    return next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))


def _spend(spent: int, more: int, limit: int, problem: str) -> int:
    if spent + more > limit:
        raise SchemaError(problem.format(limit))
    return spent + more
