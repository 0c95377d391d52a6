"""YAML as people edit it: YAML 1.2, plain values only, and each mistake with the line that it stands on.

What is no plain decimal number, `true`, `false` or `null` is text: `yes`, `010`, `0x10`, `2:30`, `1_000`, and dates,
which YAML 1.1 turned into other values without a word. Text where a number is due is refused (`validate`).
"""

from __future__ import annotations

import copy
import difflib
import json
import re
from collections.abc import Mapping, Sequence
from functools import lru_cache
from io import StringIO
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar, get_args

from ruamel.yaml import YAML
from ruamel.yaml.composer import Composer
from ruamel.yaml.constructor import ConstructorError, SafeConstructor
from ruamel.yaml.error import MarkedYAMLError, YAMLError
from ruamel.yaml.events import AliasEvent
from ruamel.yaml.nodes import MappingNode, Node, ScalarNode, SequenceNode
from ruamel.yaml.resolver import BaseResolver

from noesis.core.i18n import N_, _, retold
from noesis.core.rooted import open_plain

if TYPE_CHECKING:
    from pydantic import BaseModel, ValidationError

    M = TypeVar("M", bound=BaseModel)

MOST_BYTES = 4_000_000  # the largest of ours has 30,000
LARGEST_EXACT = 2**53  # up to which a float holds every whole number
EXPECTED = {  # by pydantic's type of error
    "bool_type": N_("expected true or false"),
    "int_type": N_("expected a whole number in plain digits, such as 8"),
    "float_type": N_("expected a number in plain digits, such as 0.5 or 2e-4"),
}


class _Resolver(BaseResolver):
    """YAML 1.2's core schema without octal and hexadecimal numbers, whatever version a file declares."""

    def __init__(self, version: Any = None, loader: Any = None, loadumper: Any = None) -> None:
        super().__init__(loader or loadumper)

    @property
    def processing_version(self) -> tuple[int, int]:
        return (1, 2)


for _tag, _pattern, _first in (
    ("null", re.compile(r"(?:~?|null|Null|NULL)\Z"), ["", *"~nN"]),
    ("bool", re.compile(r"(?:true|True|TRUE|false|False|FALSE)\Z"), [*"tTfF"]),
    ("int", re.compile(r"[-+]?(?:0|[1-9][0-9]{0,99})\Z"), [*"-+0123456789"]),
    (
        "float",
        re.compile(r"[-+]?(?:\.[0-9]{1,99}|(?:0|[1-9][0-9]{0,99})(?:\.[0-9]{0,99})?)(?:[eE][-+]?[0-9]{1,9})?\Z"),
        [*"-+.0123456789"],
    ),
    ("float", re.compile(r"(?:[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN))\Z"), [*"-+."]),
):
    _Resolver.add_implicit_resolver_base(f"tag:yaml.org,2002:{_tag}", _pattern, _first)


class _Composer(Composer):
    def compose_node(self, parent: Node | None, index: Any) -> Node | None:
        event = self.parser.peek_event()
        if isinstance(event, AliasEvent):  # a few lines of them can stand for a billion values
            raise ConstructorError(None, None, _("aliases (*name) are not read: write the value out"), event.start_mark)
        if getattr(event, "tag", None):
            raise ConstructorError(None, None, _("tags (!name) are not read: write the value alone"), event.start_mark)
        node: Node | None = super().compose_node(parent, index)
        return node


class _Constructor(SafeConstructor):
    def construct_scalar(self, node: Node) -> Any:
        value = super().construct_scalar(node)
        if isinstance(value, str) and any("\ud800" <= c <= "\udfff" for c in value):
            raise ConstructorError(None, None, _("half of a pair of surrogates is no character"), node.start_mark)
        return value

    def check_mapping_key(self, node: Node, key_node: Node, mapping: Any, key: Any, value: Any) -> bool:
        if not isinstance(key_node, ScalarNode):
            raise ConstructorError(None, None, _("a key that is no word"), key_node.start_mark)
        if key == "<<":
            raise ConstructorError(None, None, _("merges (<<) are not read: write the keys out"), key_node.start_mark)
        if key in mapping:
            raise ConstructorError(None, None, _("key {key!r} is written twice", key=str(key)), key_node.start_mark)
        return True


def _yaml() -> YAML:
    yaml = YAML(typ="safe", pure=True)
    yaml.Resolver, yaml.Composer, yaml.Constructor = _Resolver, _Composer, _Constructor
    return yaml


def read_yaml(path: Path) -> Any:
    """The content of `path`.

    Raises:
        FileNotFoundError: it does not exist.
        ValueError: it is too long, not YAML, or not UTF-8; the message names the line.
    """
    return copy.deepcopy(_parse(_text(path)))


def yaml_text(value: Any) -> str:
    """`value` as YAML for people to edit, keys in their order."""
    yaml = YAML()
    yaml.allow_unicode, yaml.width, yaml.default_flow_style = True, 120, False
    yaml.indent(mapping=2, sequence=4, offset=2)
    text = StringIO()
    yaml.dump(value, text)
    return text.getvalue()


@lru_cache(maxsize=64)
def _parse(text: str) -> Any:
    """A command reads the same few files again and again; the largest takes 30 ms."""
    try:
        return _yaml().load(text)
    except RecursionError:
        raise ValueError(_("nested too deeply to be read")) from None
    except MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        where = _("line {line}, column {column}: ", line=mark.line + 1, column=mark.column + 1) if mark else ""
        what = ", ".join(part for part in (error.context, error.problem) if part)
        raise ValueError(where + " ".join(what.split())) from None
    except (YAMLError, ValueError, TypeError, OverflowError) as error:
        raise ValueError(" ".join(str(error).split())) from None


def _text(path: Path) -> str:
    with open_plain(path) as f:
        data = f.read(MOST_BYTES + 1)
    if len(data) > MOST_BYTES:
        raise ValueError(_("longer than {most_bytes:,} bytes", most_bytes=MOST_BYTES))
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise ValueError(
            _("line {line}: not UTF-8 (byte 0x{data:02x}): save the file as UTF-8", line=line, data=data[error.start])
        ) from None


def validate(model: type[M], value: Any) -> M:
    """A model from what `read_yaml` returned; text is no number, and a number is no text, whatever it looks like.

    3.0 is a whole number; 3.5 is none.

    Raises:
        pydantic.ValidationError: it does not fit.
    """
    from pydantic import ValidationError

    try:
        return model.model_validate_json(json.dumps(value), strict=True)
    except ValidationError as error:
        whole = [e["loc"] for e in error.errors() if e["type"] == "int_type" and _is_whole(e["input"])]
        if not whole:
            raise
    return model.model_validate_json(json.dumps(_with_integers(value, whole)), strict=True)


def _is_whole(value: Any) -> bool:
    return isinstance(value, float) and value.is_integer() and abs(value) <= LARGEST_EXACT


def _with_integers(value: Any, places: list[tuple[int | str, ...]]) -> Any:
    """A copy of `value` in which the whole floats at `places`, as pydantic names them, are integers."""
    made = [copy.deepcopy(value)]
    for place in places:
        holder: Any = made
        key: int | str = 0
        for part in place:  # one that names the alternative of a union is no key
            inner = holder[key]
            if (isinstance(inner, dict) and part in inner) or (isinstance(inner, list) and isinstance(part, int)):
                holder, key = inner, part
        holder[key] = int(holder[key])
    return made[0]


def describe_error(model: type[BaseModel], error: ValidationError, source: Path | str) -> str:
    """The first of pydantic's errors as one line: the file and its line, the key, and what is wrong with it.

    Args:
        source: a YAML file, or the words for where the values come from.
    """
    first = min(error.errors(), key=lambda e: e["type"] == "missing")  # a misspelt key explains a missing one
    dotted = ".".join(str(part) for part in first["loc"])
    place = f"{source}:{line_of(source, first['loc'])}" if isinstance(source, Path) else source
    if first["type"] == "extra_forbidden":
        known = _keys_at(model, first["loc"][:-1])
        if not known:
            return _("{place}: unknown key {dotted!r}", place=place, dotted=dotted)
        near = difflib.get_close_matches(str(first["loc"][-1]), known, n=1, cutoff=0.5)
        hint = (
            _("did you mean {near!r}?", near=near[0]) if near else _("known keys here: {known}", known=", ".join(known))
        )
        return _("{place}: unknown key {dotted!r}; {hint}", place=place, dotted=dotted, hint=hint)
    if first["type"] == "missing":
        return _("{place}: the key {dotted!r} is missing", place=place, dotted=dotted)
    found = repr(first["input"])
    found = f"{dotted} = {found if len(found) <= 80 else found[:79] + '…'}: " if dotted else ""
    return f"{place}: {found}{explain(first)}"


def explain(error: Mapping[str, Any]) -> str:
    """What is wrong with one value, from one of pydantic's errors."""
    if error["type"] == "string_type" and isinstance(error["input"], (bool, int, float)):
        return _("expected text: write it in quotes, {dumps}", dumps=json.dumps(str(error["input"])))
    return retold(EXPECTED.get(error["type"]) or str(error["msg"]).removeprefix("Value error, "))


def _keys_at(model: type[BaseModel], location: tuple[int | str, ...]) -> list[str]:
    from pydantic import BaseModel  # here, so that commands without a configuration never load it

    for part in location:
        if isinstance(part, int):
            continue
        field = model.model_fields.get(part)
        within = (field.annotation, *get_args(field.annotation)) if field else ()
        inner = next((each for each in within if isinstance(each, type) and issubclass(each, BaseModel)), None)
        if inner is None:
            return []
        model = inner
    return list(model.model_fields)


def line_of(path: Path, location: Sequence[str | int]) -> int:
    """The line, from 1, on which `location` begins; for something missing, the line of what it is missing from.

    Args:
        location: keys and indices from the top, as in pydantic's errors: `("principles", 3, "en")`.
    """
    node = _yaml().compose(_text(path))
    line = 1
    for part in location:
        if isinstance(node, MappingNode):
            found = next(((k, v) for k, v in node.value if isinstance(k, ScalarNode) and k.value == str(part)), None)
            if found is None:
                break
            line, node = found[0].start_mark.line + 1, found[1]
        elif isinstance(node, SequenceNode) and isinstance(part, int) and part < len(node.value):
            node = node.value[part]
            line = node.start_mark.line + 1
        else:
            break
    return line
