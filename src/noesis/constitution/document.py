"""Reads `data/constitution.yaml`: values in rank order, principles, system prompt. Its hash is in every artefact.

Mistakes are named by line: `noesis constitution check` lists all of them, every other command the first.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from noesis.core.console import command
from noesis.core.errors import ConstitutionError
from noesis.core.files import sha256_json
from noesis.core.i18n import _
from noesis.core.language import TEXTS, ByLanguage
from noesis.core.text import slug_of
from noesis.core.yaml_file import explain, line_of, read_yaml, validate

Text = Annotated[str, Field(min_length=1)]
Slug = Annotated[str, Field(pattern=r"^[a-z0-9]+(-[a-z0-9]+)*$")]


class _Frozen(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Named(_Frozen):
    """A value's name and meaning in one language."""

    name: Text
    text: Text


class Value(ByLanguage[Named]):
    """One of the ranked values; `judge` is the member of the Tribunal that answers for it, where one does."""

    id: Slug
    judge: Literal["veritas", "sophia", "dike"] | None = None


class Attitude(ByLanguage[Named]):
    """Goes with every value and has no rank (humility)."""

    id: Slug


class Request(ByLanguage[Text]):
    """A request to a model, in each language."""


class Principle(ByLanguage[Text]):
    """What a value requires in conduct; positive and behavioural, so that it can be tested.

    critique, revision: the requests to a model that makes data from the principle; None: generic wording is used
        (`synthesis/prompt_templates.py`)
    """

    id: Slug
    value: Slug
    critique: Request | None = None
    revision: Request | None = None


class SystemPrompt(ByLanguage[Text]):
    """The first message of every conversation, in each language that the project has."""


Entry = Value | Attitude | Principle
Location = tuple[str | int, ...]


class _BrokenReferences(ValueError):
    """(location, what is wrong) of each reference that is broken."""

    def __init__(self, found: list[tuple[Location, str]]) -> None:
        super().__init__(found[0][1])
        self.found = found


class Constitution(_Frozen):
    """The whole document."""

    version: Text
    name: Text
    values: Annotated[tuple[Value, ...], Field(min_length=1)]
    attitudes: tuple[Attitude, ...] = ()
    principles: Annotated[tuple[Principle, ...], Field(min_length=1)]
    system_prompt: SystemPrompt

    @model_validator(mode="after")
    def _references_exist(self) -> Constitution:
        if found := list(self._broken_references()):
            raise _BrokenReferences(found)
        return self

    def _broken_references(self) -> Iterator[tuple[Location, str]]:
        seen: set[str] = set()
        sections: tuple[tuple[str, tuple[Entry, ...]], ...] = (
            ("values", self.values),
            ("attitudes", self.attitudes),
            ("principles", self.principles),
        )
        for section, entries in sections:
            for i, entry in enumerate(entries):
                if entry.id in seen:
                    yield (section, i, "id"), _("the id {id!r} is used twice", id=entry.id)
                seen.add(entry.id)
                yield from self._other_languages((section, i), entry)
        known = {value.id for value in self.values}
        for i, principle in enumerate(self.principles):
            if principle.value not in known:
                yield (
                    ("principles", i, "value"),
                    _(
                        "principle {id!r} serves the unknown value {value!r}; values: {known}",
                        id=principle.id,
                        value=principle.value,
                        known=", ".join(sorted(known)),
                    ),
                )
        for i, value in enumerate(self.values):
            if not any(principle.value == value.id for principle in self.principles):
                yield ("values", i), _("no principle serves the value {id!r}", id=value.id)

    def _other_languages(self, place: Location, entry: ByLanguage[Any]) -> Iterator[tuple[Location, str]]:
        """Where an entry has other languages than the system prompt."""
        spoken = " and ".join(self.languages)
        for code in entry.languages:
            if code not in self.languages:
                yield (*place, code), _("a language that the system prompt lacks; it speaks {spoken}", spoken=spoken)
        for code in self.languages:
            if code not in entry.languages:
                yield (
                    place,
                    _("it has no text in {code!r}; the system prompt speaks {spoken}", code=code, spoken=spoken),
                )
        if isinstance(entry, Principle):
            for name in ("critique", "revision"):
                if (request := getattr(entry, name)) is not None:
                    yield from self._other_languages((*place, name), request)

    @property
    def model_id(self) -> str:
        """The name as an id, of the served model and in the chat: `Biblioteca São João` → `biblioteca-sao-joao`."""
        return slug_of(self.name) or "model"

    @property
    def languages(self) -> tuple[str, ...]:
        """The languages that the system prompt speaks; every entry has a text in each."""
        return self.system_prompt.languages

    @property
    def value_ids(self) -> frozenset[str]:
        """What an example's `values_applied` may name."""
        entries: tuple[Entry, ...] = (*self.values, *self.attitudes)
        return frozenset(entry.id for entry in entries)

    @property
    def principle_ids(self) -> frozenset[str]:
        """What an example's `principles` may name."""
        return frozenset(principle.id for principle in self.principles)

    def principle(self, name: str) -> Principle:
        """The principle of this id. Raises KeyError."""
        return {p.id: p for p in self.principles}[name]

    def digest(self) -> str:
        """SHA-256 of what a model is trained and judged by: not of comments, layout and the requests that make data."""
        return sha256_json(self.model_dump(mode="json", exclude={"principles": {"__all__": {"critique", "revision"}}}))

    def requests_digest(self) -> str:
        """SHA-256 of everything, including the requests: what generated data was made from."""
        return sha256_json(self.model_dump(mode="json"))


@dataclass(frozen=True)
class Mistake:
    """A mistake in a YAML file, with its line."""

    file: Path
    line: int
    message: str

    def __str__(self) -> str:
        return f"{self.file}:{self.line}: {self.message}"


def load_constitution(path: Path) -> Constitution:
    """Read and check the constitution.

    Raises:
        ConstitutionError: naming line and entry of the first mistake.
    """
    constitution, mistakes = read_constitution(path)
    if constitution is None:
        raise ConstitutionError(str(mistakes[0]))
    return constitution


def read_constitution(path: Path) -> tuple[Constitution | None, list[Mistake]]:
    """The constitution, or None and all its mistakes.

    Raises:
        ConstitutionError: it is missing, or not YAML.
    """
    try:
        raw = read_yaml(path)
    except FileNotFoundError:
        raise ConstitutionError(
            _(
                "{path} is missing: every run needs a constitution; make one with  {command}",
                path=path,
                command=command("init", "DIR"),
            )
        ) from None
    except ValueError as error:
        raise ConstitutionError(_("{path} is not valid YAML: {error}", path=path, error=error)) from None
    try:
        return validate(Constitution, raw), []
    except ValidationError as error:
        found: list[tuple[Location, str]] = []
        # A misspelt key explains a missing one, and what is wrong in a list why it counts as too short.
        errors = error.errors()
        inner = [e for e in errors if not any(f["loc"][: len(e["loc"])] == e["loc"] != f["loc"] for f in errors)]
        for each in sorted(inner, key=lambda e: e["type"] == "missing"):
            broken = each.get("ctx", {}).get("error")
            if isinstance(broken, _BrokenReferences):
                found += broken.found
            else:
                location = tuple(part for part in each["loc"] if part != TEXTS)
                message = {"extra_forbidden": _("unknown key"), "missing": _("it is missing")}.get(
                    each["type"], explain(each)
                )
                if each["type"] == "missing" and each["loc"][-1] == TEXTS:
                    message = _("it has no text: write one for each language, as  en: …")
                found.append((location, message))
        return None, [
            Mistake(path, line_of(path, location), f"{_name_of(raw, location)}{message}") for location, message in found
        ]


def _name_of(raw: object, location: tuple[int | str, ...]) -> str:
    """`principles[3] (fontes-reais).en: ` instead of a bare index."""
    name, here = "", raw
    for part in location:
        here = (
            here[part]
            if isinstance(here, list) and isinstance(part, int) and part < len(here)
            else here.get(part)
            if isinstance(here, dict)
            else None
        )
        if isinstance(part, int):
            label = f" ({here['id']})" if isinstance(here, dict) and "id" in here else ""
            name += f"[{part}]{label}"
        else:
            name += f".{part}" if name else str(part)
    return f"{name}: " if name else ""
