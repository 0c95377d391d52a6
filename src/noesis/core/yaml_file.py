"""YAML as people edit it: safe types only, and a key written twice is refused (YAML would silently keep the last)."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

if TYPE_CHECKING:
    from pydantic import BaseModel, ValidationError


MOST_BYTES = 4_000_000  # the largest of ours has 30,000


class _Loader(yaml.SafeLoader):
    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        if self.check_event(yaml.AliasEvent):  # a few lines of them can stand for a billion values
            mark = self.peek_event().start_mark  # type: ignore[no-untyped-call]
            raise yaml.composer.ComposerError(None, None, "aliases (*name) are not read: write the value out", mark)
        return super().compose_node(parent, index)

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[str] = set()
        for key_node, _ in node.value:
            key = str(key_node.value)
            if key in seen:
                raise yaml.constructor.ConstructorError(
                    None, None, f"key {key!r} is written twice", key_node.start_mark
                )
            seen.add(key)
        return super().construct_mapping(node, deep)


def read_yaml(path: Path) -> Any:
    """The content of `path`.

    Raises:
        FileNotFoundError: it does not exist.
        ValueError: it is too long, not YAML, or not UTF-8; the message names the line.
    """
    with open(path, "rb") as f:
        data = f.read(MOST_BYTES + 1)
    if len(data) > MOST_BYTES:
        raise ValueError(f"longer than {MOST_BYTES:,} bytes")
    try:
        return yaml.load(data.decode("utf-8"), Loader=_Loader)  # noqa: S506  (a SafeLoader)
    except RecursionError:
        raise ValueError("nested too deeply to be read") from None
    except (yaml.YAMLError, UnicodeDecodeError, ValueError, TypeError, OverflowError) as error:
        raise ValueError(" ".join(str(error).split())) from None


def describe_error(model: type[BaseModel], error: ValidationError, path: Path) -> str:
    """The first of pydantic's errors as one line: the file, the key, and what is wrong with it."""
    first = min(error.errors(), key=lambda e: e["type"] == "missing")  # a misspelt key explains a missing one
    dotted = ".".join(str(part) for part in first["loc"])
    if first["type"] == "extra_forbidden":
        known = _keys_at(model, first["loc"][:-1])
        near = difflib.get_close_matches(str(first["loc"][-1]), known, n=1, cutoff=0.5)
        hint = f"did you mean {near[0]!r}?" if near else f"known keys here: {', '.join(known)}"
        return f"{path}: unknown key {dotted!r}; {hint}"
    if first["type"] == "missing":
        return f"{path}: the key {dotted!r} is missing"
    message = first["msg"].removeprefix("Value error, ")
    return f"{path}: {dotted + ' = ' + repr(first['input']) + ': ' if dotted else ''}{message}"


def _keys_at(model: type[BaseModel], location: tuple[int | str, ...]) -> list[str]:
    from pydantic import BaseModel  # here, so that commands without a configuration never load it

    for part in location:
        inner = model.model_fields[str(part)].annotation
        if not (isinstance(inner, type) and issubclass(inner, BaseModel)):
            return []
        model = inner
    return list(model.model_fields)


def line_of(path: Path, location: Sequence[str | int]) -> int:
    """The line, from 1, on which `location` begins; for something missing, the line of what it is missing from.

    Args:
        location: keys and indices from the top, as in pydantic's errors: `("principles", 3, "en")`.
    """
    node = yaml.compose(path.read_text(encoding="utf-8"), Loader=_Loader)
    line = 1
    for part in location:
        if isinstance(node, yaml.MappingNode):
            found = next(((key, value) for key, value in node.value if key.value == str(part)), None)
            if found is None:
                break
            line, node = found[0].start_mark.line + 1, found[1]
        elif isinstance(node, yaml.SequenceNode) and isinstance(part, int) and part < len(node.value):
            node = node.value[part]
            line = node.start_mark.line + 1
        else:
            break
    return line
