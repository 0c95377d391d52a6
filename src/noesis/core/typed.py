"""Whether a value that was read from JSON has the types that its dataclass declares, to the bottom."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import fields, is_dataclass
from functools import cache
from typing import Any, get_type_hints

from pydantic import TypeAdapter, ValidationError

from noesis.core.i18n import _

MOST = 2**63  # no figure of a run comes near; printing and dividing fail on what no float holds


def require_types(value: Any) -> None:
    """Check a dataclass, and every one in it, against the types of its fields.

    Raises:
        ValueError: a field has a value of another type, or a number beyond all figures; the message names it.
    """
    if is_dataclass(value) and not isinstance(value, type):
        adapters = _adapters(type(value))
        for field in fields(value):
            found = getattr(value, field.name)
            try:
                adapters[field.name].validate_python(found, strict=True)
                require_types(found)
            except ValidationError as error:
                raise ValueError(
                    _(
                        "{name}: {errors}, found {found}",
                        name=field.name,
                        errors=error.errors()[0]["msg"],
                        found=repr(found)[:60],
                    )
                ) from None
            except ValueError as error:
                raise ValueError(f"{field.name}: {error}") from None
    elif isinstance(value, (list, tuple, Mapping)):
        for item in _items(value):
            require_types(item)
    elif isinstance(value, (int, float)) and not abs(value) < MOST:
        raise ValueError(_("{value} is no figure of a run", value=repr(value)[:60]))


def _items(value: Any) -> Iterator[Any]:
    yield from value.values() if isinstance(value, Mapping) else value


@cache
def _adapters(kind: type) -> dict[str, TypeAdapter[Any]]:
    return {name: TypeAdapter(hint) for name, hint in get_type_hints(kind).items()}
