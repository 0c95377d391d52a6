"""Whether a value that was read from JSON has the types that its dataclass declares, to the bottom."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import is_dataclass
from functools import cache
from typing import Any

from pydantic import ConfigDict, TypeAdapter, ValidationError, create_model

MOST = 2.0**63  # no figure of a run comes near; beyond a float, printing and dividing fail


def require_types(value: Any) -> None:
    """Check a dataclass, and every dataclass in it, against the types of its fields.

    Raises:
        ValueError: a field has a value of another type, or a number that no float holds; the message names it.
    """
    for part in _parts(value):
        if is_dataclass(part) and not isinstance(part, type):
            try:
                _adapter(type(part)).validate_python(part, strict=True)
            except ValidationError as error:
                first = error.errors()[0]
                raise ValueError(f"{'.'.join(map(str, first['loc']))}: {first['msg']}") from None
