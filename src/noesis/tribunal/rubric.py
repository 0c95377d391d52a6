"""The judges' rubrics: `data/tribunal/judges/{veritas,sophia,dike}.yaml`, and `prompt.yaml`, the text around them.

A rubric has 1 to 10 items scored 0, 1 or 2, in the constitution's languages. Its hash, with that of `prompt.yaml`, goes
into each verdict and decides which calibration belongs to it: a changed word is another judge.
"""

from __future__ import annotations

from collections import Counter
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from noesis.core.errors import ConfigError
from noesis.core.files import sha256_json
from noesis.core.i18n import _
from noesis.core.language import CODES, ByLanguage
from noesis.core.yaml_file import describe_error, read_yaml, validate

JUDGES = ("veritas", "sophia", "dike")
TITLES = {"veritas": "Veritas", "sophia": "Sophia", "dike": "Dikē"}
VETOES = {"veritas": "fabricated_citation", "dike": "harmful_compliance"}  # by the judge's item with `veto: true`
Text = Annotated[str, Field(min_length=1)]


class _Frozen(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Texts(ByLanguage[Text]):
    """A text in each language of the judge."""


class RubricItem(ByLanguage[Text]):
    """One question asked about an answer."""

    id: Annotated[str, Field(pattern=r"^[a-z][a-z0-9_]{1,40}$")]
    anchors: dict[Literal["0", "1", "2"], Texts]
    span: Literal["required", "optional", "none"] = "required"
    applies: tuple[tuple[str, tuple[Any, ...]], ...] = ()  # (field, values) of the prompt, one must match; (): always
    principles: tuple[str, ...] = ()
    veto: bool = False  # a 0 with a span that is in the answer rejects it, whatever the mean

    @field_validator("id", mode="before")
    @classmethod
    def _field_name(cls, raw: Any) -> Any:
        return raw.replace("-", "_") if isinstance(raw, str) else raw

    @field_validator("anchors", mode="before")
    @classmethod
    def _anchors_by_score(cls, raw: Any) -> Any:
        """YAML keys 0, 1, 2 are numbers; anchors may also be grouped by language."""
        if not isinstance(raw, dict):
            return raw
        if raw and all(key in CODES and isinstance(raw[key], dict) for key in raw):
            raw = {
                score: {language: {str(k): v for k, v in raw[language].items()}.get(str(score)) for language in raw}
                for score in (0, 1, 2)
            }
        return {str(score): text for score, text in raw.items()}

    @field_validator("anchors")
    @classmethod
    def _all_three(cls, anchors: dict[str, Texts]) -> dict[str, Texts]:
        if set(anchors) != {"0", "1", "2"}:
            raise ValueError(_("an item needs the anchors 0, 1 and 2"))
        return anchors

    @field_validator("applies", mode="before")
    @classmethod
    def _conditions(cls, raw: Any) -> Any:
        """`always`, or `{when: [field, {field: [values]}]}`; without values: the field is present and not empty."""
        if raw == "always":
            return ()
        if not (isinstance(raw, dict) and set(raw) == {"when"} and isinstance(raw["when"], list)):
            raise ValueError(_("applies is  always  or  {when: [field, {field: [values]}]}"))
        pairs: list[tuple[str, tuple[Any, ...]]] = []
        for condition in raw["when"]:
            pairs += (
                [(field, tuple(values)) for field, values in condition.items()]
                if isinstance(condition, dict)
                else [(str(condition), ())]
            )
        return tuple(pairs)

    def applies_to(self, record: dict[str, Any]) -> bool:
        """Whether the item applies to an answer to this prompt."""
        return not self.applies or any(
            record.get(field) in values if values else bool(record.get(field)) for field, values in self.applies
        )

    def question(self, language: str) -> str:
        return self[language]


class Rubric(_Frozen):
    """One judge."""

    version: Text
    id: Literal["veritas", "sophia", "dike"]
    name: Text
    weight_note: Any = None  # for readers; part of the digest
    system: Texts
    items: Annotated[tuple[RubricItem, ...], Field(min_length=1, max_length=10)]

    @field_validator("version", mode="before")
    @classmethod
    def _as_text(cls, raw: Any) -> Any:
        return str(raw) if isinstance(raw, (int, float)) else raw

    @model_validator(mode="after")
    def _ids_differ(self) -> Rubric:
        counts = Counter(item.id for item in self.items)
        if twice := sorted(name for name, count in counts.items() if count > 1):
            raise ValueError(_("the item {twice!r} appears twice", twice=twice[0]))
        return self

    def applicable_items(self, record: dict[str, Any]) -> tuple[RubricItem, ...]:
        """The items that apply to a prompt with the fields of `record`."""
        return tuple(item for item in self.items if item.applies_to(record))


class Wording(_Frozen):
    """The text around a rubric in one language; `fill_template` fills its `{fields}`."""

    system: Text
    user: Text
    retry: Text
    reference: Text
    key: Text
    answerable: Text
    unanswerable: Text
    false_premise: Text
    harmful: Text
    benign: Text
    stakeholders: Text
    traps: Text


class Prompt(ByLanguage[Wording]):
    """`prompt.yaml`."""

    version: Text


class RubricSet(_Frozen):
    """The three rubrics and the prompt that they share."""

    rubrics: dict[str, Rubric]
    prompt: Prompt

    def digest(self, judge: str | None = None) -> str:
        """SHA-256 of one judge's rubric with the prompt, or of all three."""
        return self._digests[judge]

    @cached_property
    def _digests(self) -> dict[str | None, str]:
        prompt, each = (
            self.prompt.model_dump(mode="json"),
            {name: rubric.model_dump(mode="json") for name, rubric in sorted(self.rubrics.items())},
        )
        return {None: sha256_json([prompt, *each.values()])} | {
            name: sha256_json([prompt, rubric]) for name, rubric in each.items()
        }


def load_rubrics(folder: Path) -> RubricSet:
    """Read `veritas.yaml`, `sophia.yaml`, `dike.yaml` and `prompt.yaml` from `folder`.

    Raises:
        ConfigError: naming file and key.
    """
    rubrics = {name: read_wording(folder / f"{name}.yaml", Rubric) for name in JUDGES}
    for name, rubric in rubrics.items():
        if rubric.id != name:
            raise ConfigError(
                _(
                    "{folder}.yaml holds the rubric of {id!r}: its id must be {name!r}",
                    folder=folder / name,
                    id=rubric.id,
                    name=name,
                )
            )
    return RubricSet(rubrics=rubrics, prompt=read_wording(folder / "prompt.yaml", Prompt))


def read_wording(path: Path, model: Any) -> Any:
    """What a file of `data/tribunal/judges` says, as `model` has it. Raises ConfigError, naming file and key."""
    try:
        return validate(model, read_yaml(path))
    except FileNotFoundError:
        raise ConfigError(
            _("{path} is missing: copy data/tribunal/judges from the project of Noesis", path=path)
        ) from None
    except ValidationError as error:
        raise ConfigError(describe_error(model, error, path)) from None
    except ValueError as error:
        raise ConfigError(_("{path} is not valid YAML: {error}", path=path, error=error)) from None
