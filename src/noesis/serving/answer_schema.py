"""The JSON schema of an answer as llama.cpp gets it: rebuilt from known keywords, within a budget.

llama.cpp compares every reading of the grammar that is still open with every token of the vocabulary, in the one loop
that serves all requests: a schema with thousands of readings stalls everyone, and nothing ends it early. What is passed
on is therefore a tree without references, whose readings are at most the alternatives counted here. Recursion is
unrolled a few times and ends where the schema lets it. What a grammar can't bound or express (most patterns,
uniqueItems, bounds of fractions) is left out of it: the finished answer is checked against the schema as the client
wrote it (`answer_check.py`). Keywords that are not checked either are refused by name.
"""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Collection
from itertools import pairwise
from typing import Any

from noesis.core.i18n import _
from noesis.serving.schema_patterns import for_grammar
from noesis.serving.schema_rules import BOUNDS, TYPES, SchemaError, handle, resolve

MAX_DEPTH = 16  # schemas inside one another; a reference is none
MAX_REFERENCES = 50  # inside one another
MAX_SCHEMAS = 400
MAX_ALTERNATIVES = 40  # branches and types beyond the first, of the whole schema
MAX_OPTIONAL = 100  # properties that may be left out
MAX_VALUES = 500  # of enums
MAX_REPEATS = 2000  # the sum of all bounds of items and characters
MAX_CHARACTERS = 6000  # of property names and values; what two share at their beginning counts SHARED times
SHARED = 5  # as long as they agree, all of them are compared with every token
MAX_BOUND = 10**15  # of integers, in a grammar
LARGEST = sys.float_info.max  # of numbers in a schema
MAX_LISTED = 40  # integers of a range
MAX_UNROLLED = 3  # times that a definition may stand inside itself

FORMATS = ("date", "time", "date-time", "uuid")  # of those that are checked, what llama.cpp knows
COUNTS = ("minItems", "maxItems", "minLength", "maxLength")
CHECKED = ("multipleOf", "uniqueItems", "minProperties", "maxProperties", "propertyNames", "additionalItems")
ANNOTATIONS = (
    *("title", "description", "default", "examples", "example", "deprecated", "readOnly", "writeOnly", "nullable"),
    *("$schema", "$id", "$anchor", "$comment", "$defs", "definitions", "discriminator", "xml", "externalDocs"),
    *("contentEncoding", "contentMediaType", "contentSchema"),
)


def bounded_schema(schema: Any) -> dict[str, Any]:
    """`schema` from known keywords only, with its references filled in.

    Raises:
        SchemaError: it is not a schema, is above the budget, or holds something that is not supported.
    """
    for times in range(MAX_UNROLLED, 0, -1):
        builder = _Builder(schema, times)
        try:
            found = builder.build(schema, ())
        except SchemaError:
            if times == 1 or not builder.recursive:
                raise
        else:
            if found is not None:
                return found
    raise SchemaError(_("the schema refers to itself without an end, or allows no answer"))


class _Builder:
    def __init__(self, root: Any, times: int) -> None:
        self._root, self._times = root, times
        self._schemas = self._alternatives = self._optional = self._listed = self._repeats = self._characters = 0
        self.recursive = False

    def build(self, schema: Any, inside: tuple[str, ...], depth: int = 1) -> dict[str, Any] | None:
        """The schema for the grammar; None where nothing would fit it.

        Args:
            inside: the references that are being filled in.
        """
        if schema is False:
            return None
        flat = self._flat({} if schema is True else schema, inside, depth)
        if flat is None:
            return None
        schema, inside = flat
        out: dict[str, Any] = {}
        for name, value in schema.items():
            if name == "type":
                out["type"] = self._types(value)
            elif name in ("anyOf", "oneOf"):
                branches = [self.build(part, inside, depth + 1) for part in self._branches(name, value)]
                out["anyOf"] = [branch for branch in branches if branch is not None]
                if not out["anyOf"]:
                    return None
            elif name == "enum":
                out["enum"] = self._values(value)
            elif name == "const":
                out["const"] = self._values([value])[0]
            elif name == "properties":
                out["properties"] = self._properties(value, schema, inside, depth)
                if out["properties"] is None:
                    return None
            elif name == "required":
                out["required"] = self._names(value)
            elif name == "additionalProperties":
                out[name] = value if isinstance(value, bool) else self.build(value, inside, depth + 1) or False
            elif name == "prefixItems" or (name == "items" and isinstance(value, list)):
                parts = [self.build(part, inside, depth + 1) for part in self._schemas_of(name, value)]
                if None in parts:
                    return None
                out["prefixItems"] = parts
            elif name == "items":
                out["items"] = self.build(value, inside, depth + 1)
            elif name in COUNTS:
                self._count(name, value, out)
            elif name in BOUNDS:
                self._number(name, value)
            elif name == "pattern":
                self._pattern(value, out)
            elif name == "format":
                if value in FORMATS:
                    out["format"] = value
            elif name in CHECKED:
                self._checked(name, value, inside, depth)
            else:
                raise SchemaError(_("{name!r} in the schema is not supported", name=name[:40]))
        return self._completed(out, schema)

    def _completed(self, out: dict[str, Any], schema: dict[str, Any]) -> dict[str, Any] | None:
        """`out` with what several keywords say together."""
        self._require_names(schema)
        for name in ("enum", "const"):
            if name in out:
                rules = {n: schema[n] for n in ("type", *BOUNDS, *COUNTS) if n in schema}
                values = out["enum"] if name == "enum" else [out["const"]]
                fitting = [value for value in values if handle(rules, json.dumps(value)) is None]
                if not fitting:
                    raise SchemaError(
                        _(
                            "no value of {name} in the schema fits what stands beside it ({rules})",
                            name=name,
                            rules=", ".join(rules),
                        )
                    )
                out[name] = fitting if name == "enum" else fitting[0]
        if "prefixItems" in out:  # llama.cpp has either those or items; what follows the first ones is left out
            if schema.get("minItems", 0) > len(out["prefixItems"]):
                raise SchemaError(
                    _("minItems in the schema is above the number of prefixItems, which is not supported")
                )
            out = {name: value for name, value in out.items() if name not in ("items", "minItems", "maxItems")}
        elif out.get("items", {}) is None:
            if out.get("minItems", 0):
                return None
            out = {name: value for name, value in out.items() if name != "items"} | {"maxItems": 0}
        for least, most in (COUNTS[:2], COUNTS[2:]):
            if out.get(least, 0) > out.get(most, MAX_REPEATS):  # llama.cpp would count down past nothing
                raise SchemaError(_("{least} in the schema is above {most}", least=least, most=most))
        if out.get("type") == "integer" and "enum" not in out:
            out |= self._range(schema)
        return out

    def _flat(self, schema: Any, inside: tuple[str, ...], depth: int) -> tuple[dict[str, Any], tuple[str, ...]] | None:
        """The schema with its reference and all of `allOf` filled in, and the references that it then stands in."""
        if not isinstance(schema, dict):
            raise SchemaError(_("each schema must be an object"))
        if depth > MAX_DEPTH:
            raise SchemaError(_("the schema is nested deeper than {max_depth} levels", max_depth=MAX_DEPTH))
        self._schemas = _spend(self._schemas, 1, MAX_SCHEMAS, "the schema has more than {} parts")
        found = {n: v for n, v in schema.items() if n not in (*ANNOTATIONS, "$ref", "allOf") and n[:2] != "x-"}
        parts = [(part, inside, depth + 1) for part in self._schemas_of("allOf", schema.get("allOf", []))]
        if "$ref" in schema:
            ref = str(schema["$ref"])
            if ref in inside:
                self.recursive = True
            if inside.count(ref) >= self._times:
                return None
            if len(inside) >= MAX_REFERENCES:
                raise SchemaError(
                    _(
                        "the schema has more than {max_references} references inside one another",
                        max_references=MAX_REFERENCES,
                    )
                )
            parts.append((resolve(self._root, schema["$ref"]), (*inside, ref), depth))
        for part in parts:
            flat = self._flat(*part)
            if flat is None:
                return None
            found, inside = _both(found, flat[0]), max(inside, flat[1], key=len)
        return found, inside

    def _types(self, value: Any) -> Any:
        types = value if isinstance(value, list) else [value]
        if not types or not all(isinstance(t, str) and t in TYPES for t in types):
            raise SchemaError(_("type in the schema must be of {types}", types=", ".join(TYPES)))
        if not isinstance(value, list):
            return value
        self._choose(len(types) - ("null" in types))
        return list(dict.fromkeys(types))

    def _branches(self, name: str, value: Any) -> list[Any]:
        if not self._schemas_of(name, value):
            raise SchemaError(_("{name} in the schema must be a list of schemas", name=name))
        self._choose(len(value) - ({"type": "null"} in value))  # "or null" is no other reading
        return list(value)

    def _schemas_of(self, name: str, value: Any) -> list[Any]:
        if not isinstance(value, list):
            raise SchemaError(_("{name} in the schema must be a list of schemas", name=name))
        return value

    def _values(self, value: Any) -> list[Any]:
        """Values as an answer may have them, each once."""
        if not isinstance(value, list) or not value:
            raise SchemaError(_("enum in the schema must be a list of values"))
        try:
            different = {json.dumps(v, allow_nan=False): v for v in value}
            for text in different:
                json.loads(text, parse_int=_exact)
        except (ValueError, RecursionError):
            raise SchemaError(
                _("the schema contains a number that is too large or not finite, or deep nesting")
            ) from None
        problem = "the schema has more than {} values of enums"
        self._listed = _spend(self._listed, len(different), MAX_VALUES, problem)
        self._spell(different)
        return list(different.values())

    def _properties(
        self, value: Any, schema: dict[str, Any], inside: tuple[str, ...], depth: int
    ) -> dict[str, Any] | None:
        if not isinstance(value, dict):
            raise SchemaError(_("properties in the schema must be an object"))
        required = set(self._names(schema.get("required", [])))
        problem = "the schema has more than {} optional properties"
        self._optional = _spend(self._optional, len(value.keys() - required), MAX_OPTIONAL, problem)
        self._spell(value)
        built = {name: self.build(part, inside, depth + 1) for name, part in value.items()}
        if any(part is None and name in required for name, part in built.items()):
            return None
        return {name: part for name, part in built.items() if part is not None}

    def _names(self, value: Any) -> list[str]:
        if not isinstance(value, list) or not all(isinstance(name, str) for name in value):
            raise SchemaError(_("required in the schema must be a list of names"))
        return value

    def _require_names(self, schema: dict[str, Any]) -> None:
        """Refuse an object that must have properties which it can't: no other names than its own are written."""
        names, more = schema.get("properties"), schema.get("additionalProperties", False)
        if (
            (names is None and "additionalProperties" not in schema)
            or more is not False
            or {"anyOf", "oneOf"} & set(schema)
        ):
            return
        missing = [name for name in self._names(schema.get("required", [])) if name not in (names or {})]
        if missing:
            raise SchemaError(
                _("required in the schema names {missing!r}, which is not in properties", missing=missing[0][:40])
            )

    def _count(self, name: str, value: Any, out: dict[str, Any]) -> None:
        if isinstance(value, bool) or not isinstance(value, int) or value < 0:
            raise SchemaError(_("{name} in the schema must be a whole number from 0", name=name))
        if name.startswith("max") and self._repeats + value > MAX_REPEATS:
            return  # longer than most answers: the finished one is checked
        problem = f"the bounds in the schema ({name}, …) add up to more than {{:,}}"
        self._repeats = _spend(self._repeats, value, MAX_REPEATS, problem)
        out[name] = value

    def _number(self, name: str, value: Any) -> None:
        if isinstance(value, bool) or not isinstance(value, (int, float)) or abs(value) == math.inf:
            raise SchemaError(_("{name} in the schema must be a number", name=name))

    def _pattern(self, value: Any, out: dict[str, Any]) -> None:
        if not isinstance(value, str):
            raise SchemaError(_("pattern in the schema must be a text"))
        if found := for_grammar(value):
            pattern, readings, repeats = found
            if self._alternatives + readings <= MAX_ALTERNATIVES and self._repeats + repeats <= MAX_REPEATS:
                self._alternatives, self._repeats = self._alternatives + readings, self._repeats + repeats
                out["pattern"] = pattern

    def _checked(self, name: str, value: Any, inside: tuple[str, ...], depth: int) -> None:
        """What only the finished answer is checked for: whether it is a schema's at all."""
        if name == "uniqueItems":
            if not isinstance(value, bool):
                raise SchemaError(_("uniqueItems in the schema must be true or false"))
        elif name in ("propertyNames", "additionalItems"):
            self.build(value, inside, depth + 1)
        else:
            self._number(name, value)
            if value < 0 or (name == "multipleOf" and value == 0):
                raise SchemaError(_("{name} in the schema must be above 0", name=name))

    def _range(self, schema: dict[str, Any]) -> dict[str, Any]:
        """The whole numbers between the bounds, listed where they are few."""
        bounds = {name: schema[name] for name in BOUNDS if name in schema}
        if not all(isinstance(value, int) and abs(value) < MAX_BOUND for value in bounds.values()):
            return {}
        lows = [bounds[n] + (n == "exclusiveMinimum") for n in ("minimum", "exclusiveMinimum") if n in bounds]
        highs = [bounds[n] - (n == "exclusiveMaximum") for n in ("maximum", "exclusiveMaximum") if n in bounds]
        if lows and highs and max(lows) > min(highs):
            raise SchemaError(_("the bounds of an integer in the schema leave no number"))
        if lows and highs and min(highs) - max(lows) < MAX_LISTED:
            return {"enum": self._values(list(range(max(lows), min(highs) + 1)))}
        return ({"minimum": max(lows)} if lows else {}) | ({"maximum": min(highs)} if highs else {})

    def _choose(self, count: int) -> None:
        problem = "the schema has more than {} alternatives (branches, types)"
        self._alternatives = _spend(self._alternatives, max(0, count - 1), MAX_ALTERNATIVES, problem)

    def _spell(self, texts: Collection[str]) -> None:
        problem = "names and values in the schema have more than {:,} characters, or begin alike for too long"
        shared = sum(_shared(a, b) for a, b in pairwise(sorted(texts)))
        count = sum(map(len, texts)) + (SHARED - 1) * shared
        self._characters = _spend(self._characters, count, MAX_CHARACTERS, problem)


def _both(one: dict[str, Any], other: dict[str, Any]) -> dict[str, Any]:
    """What follows from two schemas at once."""
    found = dict(one)
    for name, value in other.items():
        if name not in found or found[name] == value:
            found[name] = value
        elif name == "properties" and isinstance(value, dict) and isinstance(found[name], dict):
            shared = {n: {"allOf": [found[name][n], value[n]]} for n in found[name].keys() & value.keys()}
            found[name] = found[name] | value | shared
        elif name == "required" and isinstance(value, list) and isinstance(found[name], list):
            found[name] = [*found[name], *value]
        elif name == "additionalProperties" and False in (value, found[name]):
            found[name] = False
        else:
            raise SchemaError(
                _("two different {name!r} for one part of the schema (allOf, $ref) are not supported", name=name[:40])
            )
    return found


def _exact(digits: str) -> int:
    """A whole number that llama.cpp keeps as it is: of 64 bits, or one that is a float. Raises ValueError otherwise."""
    value = int(digits)
    if abs(value) >= 2**63 and (abs(value) > LARGEST or int(float(value)) != value):
        raise ValueError
    return value


def _shared(a: str, b: str) -> int:
    """How many characters two texts have in common at their beginning."""
    return next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))


def _spend(spent: int, more: int, limit: int, problem: str) -> int:
    if spent + more > limit:
        raise SchemaError(problem.format(limit))
    return spent + more
