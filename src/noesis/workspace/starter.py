"""The texts that a project of one's own starts from, in one language: `data/starter/<code>.yaml`."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from noesis.core.errors import ConfigError
from noesis.core.i18n import _
from noesis.core.machine.package_files import package_files
from noesis.core.yaml_file import describe_error, read_yaml, validate

FALLBACK = "en"  # for languages that have no texts of their own: to be translated


class Starter(BaseModel):
    """`{name}` and `{domain}` in its texts stand for the project's; see the comments in the files."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    system_prompt: str
    values: tuple[dict[str, str], ...]
    principles: tuple[dict[str, str], ...]
    categories: tuple[str, ...]
    examples: tuple[dict[str, Any], ...]
    suite: tuple[str, ...]
    topics: dict[str, str]
    situations: tuple[str, ...]
    askers: tuple[str, ...]
    difficulties: dict[str, str]
    judge: str
    item: str
    anchors: Annotated[tuple[str, ...], Field(min_length=3, max_length=3)]
    comment: str
    readme: str  # of a project for a domain of its own
    philosopher: str  # of one with Noesis's own constitution


def read_starter(language: str) -> Starter:
    """The texts in `language`, or in English where there are none.

    Raises:
        ConfigError: the installation's file is damaged.
    """
    folder = package_files() / "data" / "starter"
    file = folder / f"{language if (folder / f'{language}.yaml').is_file() else FALLBACK}.yaml"
    try:
        return validate(Starter, read_yaml(file))
    except ValidationError as error:
        raise ConfigError(describe_error(Starter, error, file)) from None
    except (OSError, ValueError) as error:
        raise ConfigError(_("{file} can't be read ({error}): install Noesis again", file=file, error=error)) from None


def filled(value: Any, words: dict[str, str]) -> Any:
    """`value` with `{name}`, `{domain}` and the like replaced in all its texts, in one pass over each."""
    if isinstance(value, str):
        parts = value.split("{")
        return parts[0] + "".join(_filled(part, words) for part in parts[1:])
    if isinstance(value, dict):
        return {key: filled(each, words) for key, each in value.items()}
    if isinstance(value, (list, tuple)):
        return [filled(each, words) for each in value]
    return value


def _filled(part: str, words: dict[str, str]) -> str:
    name, closed, rest = part.partition("}")
    return words[name] + rest if closed and name in words else "{" + part
