"""The prompts that data is made from: a JSONL file, a row each, checked by line.

    {"id": "p_001", "language": "en", "prompt": "…", "category": "ethical_dilemma", "difficulty": "medium"}

Only id and prompt are needed; `turns`, `stance` and `principles` (from which the principle is drawn then) are used where they are there.
Records of examples and prompts of the Tribunal's form load as they are; their other fields are not looked at.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from noesis.constitution.document import Constitution
from noesis.core.console import command
from noesis.core.errors import DataError, UsageError
from noesis.dataset.checks.fingerprint import fingerprint
from noesis.dataset.checks.near_duplicates import NEAR
from noesis.dataset.jsonl import FileChunk, lines
from noesis.dataset.schema import MIN_PROMPT, Stance

CONTAINED = 0.7  # share of a shorter prompt's 3-grams that stand in a longer one, from which they ask the same
SHORTEST = 8  # 3-grams below which only an equal text is the same


class Turn(BaseModel):
    """An earlier message."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    role: Literal["user", "assistant"]
    content: Annotated[str, Field(min_length=1)]


class Prompt(BaseModel):
    """One prompt."""

    model_config = ConfigDict(frozen=True, extra="ignore")
    id: Annotated[str, Field(min_length=1, max_length=150)]
    language: Literal["pt", "en"] = "pt"
    prompt: Annotated[str, Field(min_length=MIN_PROMPT)]
    category: Annotated[str, Field(min_length=1)] = "value_application"
    difficulty: Literal["easy", "medium", "hard"] = "medium"
    turns: tuple[Turn, ...] = ()
    stance: Stance | None = None
    principles: tuple[str, ...] = ()

    @model_validator(mode="before")
    @classmethod
    def _no_nulls(cls, raw: Any) -> Any:
        if isinstance(raw, dict):
            if raw.get("instruction") and "prompt" not in raw:
                raise ValueError(
                    "it holds an instruction to write a prompt, not a prompt: have a model phrase it (noesis constitution prompts --model SPEC)"
                )
            return {name: value for name, value in raw.items() if value is not None}
        return raw

    @property
    def dialogue(self) -> list[tuple[str, str]]:
        """(role, text) of the earlier turns and the prompt."""
        return [*((t.role, t.content) for t in self.turns), ("user", self.prompt)]


def read_prompts(file: Path, constitution: Constitution) -> list[Prompt]:
    """The prompts in `file`.

    Raises:
        UsageError: no such file. DataError: naming the line of the first that is wrong.
    """
    if not file.is_file():
        raise UsageError(
            f"{file} does not exist: name a file of prompts, or write one with  {command('constitution', 'prompts', '--model', 'SPEC', '--out', file)}"
        )
    found: list[Prompt] = []
    places: dict[str, str] = {}
    for number, _, line in lines(FileChunk(file, 0, file.stat().st_size)):
        place = f"{file}:{number + 1}"
        try:
            prompt = Prompt.model_validate(json.loads(line))
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(str(p) for p in first["loc"])
            raise DataError(
                f"{place}: {where + ': ' if where else ''}{first['msg'].removeprefix('Value error, ')}"
            ) from None
        except ValueError as error:
            raise DataError(f"{place}: not JSON ({error})") from None
        key = f"{prompt.id} ({prompt.language})"
        if key in places:
            raise DataError(f"{place}: the id {key} was already used at {places[key]}")
        if prompt.category == "tribunal":
            raise DataError(
                f"{place}: the category 'tribunal' needs a critique by three judges, which this method does not write: give it another category"
            )
        if unknown := sorted(set(prompt.principles) - constitution.principle_ids):
            raise DataError(f"{place}: principles names {unknown[0]!r}, which the constitution does not have")
        places[key] = place
        found.append(prompt)
    if not found:
        raise DataError(f"{file} holds no prompt")
    return found


class KnownPrompts:
    """Prompts that exist already, by their word 3-grams: finds what asks the same, read alike or nearly so."""

    def __init__(self) -> None:
        self._places: list[str] = []
        self._sizes: list[int] = []
        self._by_key: dict[int, int] = {}
        self._by_gram: dict[int, list[int]] = {}

    def add(self, texts: Sequence[str], places: Sequence[str]) -> None:
        for text, place in zip(texts, places, strict=True):
            key, grams = _grams(text)
            number = len(self._places)
            self._places.append(place)
            self._sizes.append(len(grams))
            self._by_key.setdefault(key, number)
            for gram in grams:
                self._by_gram.setdefault(gram, []).append(number)

    def find_similar(self, text: str) -> str | None:
        """The place of a known prompt that asks what `text` asks; None: there is none."""
        key, grams = _grams(text)
        if key in self._by_key:
            return self._places[self._by_key[key]]
        common: dict[int, int] = {}
        for gram in grams:
            for number in self._by_gram.get(gram, ()):
                common[number] = common.get(number, 0) + 1
        for number, count in sorted(common.items(), key=lambda entry: (-entry[1], entry[0])):
            shorter, both = min(len(grams), self._sizes[number]), len(grams) + self._sizes[number] - count
            if shorter >= SHORTEST and (count / both >= NEAR or count / shorter >= CONTAINED):
                return self._places[number]
        return None


def _grams(text: str) -> tuple[int, set[int]]:
    found = fingerprint([text])
    return int(found.key[0]), set(found.grams.tolist())


def known_prompts(files: Iterable[Path]) -> KnownPrompts:
    """What the prompts, turns and questions in JSONL files ask: hand-written examples, exports, generated ones, the Tribunal's."""
    known = KnownPrompts()
    for file in files:
        for number, _, line in lines(FileChunk(file, 0, file.stat().st_size)):
            try:
                row = json.loads(line)
            except ValueError:
                continue  # a file that someone else is writing, or not ours: the gate refuses it where it is used
            texts = [
                row.get("prompt"),
                row.get("b_prompt"),
                *(t if isinstance(t, str) else t.get("content") for t in row.get("turns") or ()),
            ]
            told = [text for text in dict.fromkeys(texts) if isinstance(text, str) and text]
            known.add(told, [f"{file.name}:{number + 1}"] * len(told))
    return known
