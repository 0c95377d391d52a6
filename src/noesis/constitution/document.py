"""Read `data/constitution.yaml`: values in rank order, principles, system prompt. Its hash goes into every artefact."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from noesis.errors import ConstitutionError
from noesis.files import sha256_json
from noesis.yaml_file import read_yaml

Text = Annotated[str, Field(min_length=1)]
Slug = Annotated[str, Field(pattern=r"^[a-z0-9]+(-[a-z0-9]+)*$")]


class _Frozen(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Named(_Frozen):
    """A value's name and meaning in one language."""

    name: Text
    text: Text


class _Entry(_Frozen):
    id: Slug


class Value(_Entry):
    """One of the ranked values; `judge` is the member of the Tribunal that answers for it."""

    judge: Literal["veritas", "sophia", "dike"]
    pt: Named
    en: Named


class Attitude(_Entry):
    """Goes with every value and has no rank (humility)."""

    pt: Named
    en: Named


class Principle(_Entry):
    """What a value asks for in conduct; positive and behavioural, so that it can be tested."""

    value: Slug
    pt: Text
    en: Text


class SystemPrompt(_Frozen):
    """The first message of every conversation, in each language."""

    pt: Text
    en: Text


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
        entries: tuple[_Entry, ...] = (*self.values, *self.attitudes, *self.principles)
        ids = [entry.id for entry in entries]
        twice = sorted({i for i in ids if ids.count(i) > 1})
        if twice:
            raise ValueError(f"the id {twice[0]!r} is used twice")
        known = {value.id for value in self.values}
        for principle in self.principles:
            if principle.value not in known:
                raise ValueError(f"principle {principle.id!r} serves the unknown value {principle.value!r}; values: {', '.join(sorted(known))}")
        for value in self.values:
            if not any(principle.value == value.id for principle in self.principles):
                raise ValueError(f"no principle serves the value {value.id!r}")
        return self

    @property
    def value_ids(self) -> frozenset[str]:
        """What an example's `values_applied` may name."""
        entries: tuple[_Entry, ...] = (*self.values, *self.attitudes)
        return frozenset(entry.id for entry in entries)

    @property
    def principle_ids(self) -> frozenset[str]:
        return frozenset(principle.id for principle in self.principles)

    def digest(self) -> str:
        """SHA-256 of the content (comments and layout do not count)."""
        return sha256_json(self.model_dump(mode="json"))


def load_constitution(path: Path) -> Constitution:
    """Read and check the constitution.

    Raises:
        ConstitutionError: naming the entry that is wrong.
    """
    try:
        raw = read_yaml(path)
    except FileNotFoundError:
        raise ConstitutionError(f"{path} is missing: every run needs a constitution; make one with  noesis init DIR") from None
    except ValueError as error:
        raise ConstitutionError(f"{path} is not valid YAML: {error}") from None
    try:
        return Constitution.model_validate(raw)
    except ValidationError as error:
        first = min(error.errors(), key=lambda e: e["type"] == "missing")  # a misspelt key explains a missing one
        said = "unknown key" if first["type"] == "extra_forbidden" else first["msg"].removeprefix("Value error, ")
        raise ConstitutionError(f"{path}: {_name_of(raw, first['loc'])}{said}") from None


def _name_of(raw: object, location: tuple[int | str, ...]) -> str:
    """`principles[3] (fontes-reais).en: ` instead of a bare index."""
    name, here = "", raw
    for part in location:
        here = here[part] if isinstance(here, list) and isinstance(part, int) and part < len(here) else here.get(part) if isinstance(here, dict) else None
        if isinstance(part, int):
            label = f" ({here['id']})" if isinstance(here, dict) and "id" in here else ""
            name += f"[{part}]{label}"
        else:
            name += f".{part}" if name else str(part)
    return f"{name}: " if name else ""
