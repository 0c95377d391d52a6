"""The small tasks of `data/tribunal/kept/`, read and checked.

A task has one of three keys: an answer to be preferred to distractors (nothing is generated), requirements on a short
greedy answer, or whether such an answer should decline. Tier 1 is what a model of 135M can do, tier 4 has room for one
of 8B to fall. Whoever adds tasks of their own writes another JSONL file beside these.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from noesis.core.errors import DataError
from noesis.core.files import sha256_json
from noesis.core.i18n import _
from noesis.core.jsonl import UniqueIds, jsonl_files, read_models
from noesis.tribunal.suite import AnswerCheck

Tongue = Literal["pt", "en"]
Short = Annotated[str, Field(min_length=1, max_length=200)]
MOST_ITEMS = 5000


class KeptItem(BaseModel):
    """A small task.

    kind: arithmetic, dates, logic, strings, facts, words, format, language, harmful, harmless, …
    tier: difficulty, 1 to 4
    answer, distractors: what a model should find likelier, and than what
    check: requirements on its own answer
    decline: whether its own answer should decline
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    id: Short
    language: Tongue
    kind: Short
    tier: Annotated[int, Field(ge=1, le=4)]
    prompt: Annotated[str, Field(min_length=3, max_length=600)]
    answer: Short | None = None
    distractors: Annotated[tuple[Short, ...], Field(max_length=8)] = ()
    check: tuple[AnswerCheck, ...] = ()
    decline: bool | None = None

    @model_validator(mode="after")
    def _has_one_key(self) -> KeptItem:
        if (self.answer is None) != (not self.distractors):
            raise ValueError(_("an answer needs distractors to be compared with, and distractors an answer"))
        if sum((self.answer is not None, bool(self.check), self.decline is not None)) != 1:
            raise ValueError(_("an item has one of: answer with distractors, check, decline"))
        if self.answer in self.distractors or len(set(self.distractors)) < len(self.distractors):
            raise ValueError(_("the answer and the distractors must all differ"))
        return self

    @property
    def choices(self) -> tuple[str, ...]:
        """The answer, then its distractors; nothing where the model answers in its own words."""
        return (self.answer, *self.distractors) if self.answer is not None else ()

    @property
    def chance(self) -> float:
        """How often a model that knows nothing is right, where that is known; else 0."""
        return 1 / len(self.choices) if self.choices else 0.0


def read_kept_items(tribunal: Path, languages: Sequence[str] = ("pt", "en")) -> list[KeptItem]:
    """The tasks in `tribunal/kept`, in some languages; none where there is no such folder.

    Raises:
        DataError: naming file, line and field.
    """
    items: list[KeptItem] = []
    ids = UniqueIds()
    for file in jsonl_files(tribunal / "kept"):
        for place, item in read_models(file, KeptItem):
            ids.add(item.id, place)
            items.append(item)
            if len(items) > MOST_ITEMS:
                raise DataError(
                    _(
                        "{place}: more than {most_items} items in {parent}: take some out",
                        place=place,
                        most_items=MOST_ITEMS,
                        parent=file.parent,
                    )
                )
    return sorted((i for i in items if i.language in languages), key=lambda i: (i.language, i.kind, i.tier, i.id))


def items_digest(items: Sequence[KeptItem]) -> str:
    """What a measurement belongs to."""
    return sha256_json([item.model_dump(mode="json", exclude_defaults=True) for item in items])


def subset(items: Sequence[KeptItem], count: int) -> list[KeptItem]:
    """At most `count` of `items`, spread evenly over their order (they are sorted by language, kind and tier)."""
    if count >= len(items):
        return list(items)
    return [items[i * len(items) // count] for i in range(count)]
