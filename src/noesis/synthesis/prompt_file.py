"""The prompts that data is made from: a JSONL file, one prompt a line.

    {"id": "p_001", "language": "en", "prompt": "…", "category": "ethical_dilemma", "difficulty": "medium"}

Only id and prompt are required. `turns`, `stance` and `principles` (which limits the choice of one) are optional.
Examples and prompts of the Tribunal's form load as they are; their other fields are ignored.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, TypeVar

from pydantic import BaseModel, ConfigDict, Field, model_validator

from noesis.constitution.document import Constitution
from noesis.core.console import command
from noesis.core.errors import DataError, UsageError
from noesis.core.i18n import _
from noesis.core.jsonl import UniqueIds, read_models
from noesis.core.language import LanguageCode as Language
from noesis.dataset.schema import MIN_PROMPT, Difficulty, Example, Stance, Turn

P = TypeVar("P", bound="Prompt")


class Prompt(BaseModel):
    """One prompt."""

    model_config = ConfigDict(frozen=True, extra="ignore")
    id: Annotated[str, Field(min_length=1, max_length=150)]
    language: Language = "pt"
    prompt: Annotated[str, Field(min_length=MIN_PROMPT)]
    category: Annotated[str, Field(min_length=1)] = "value_application"
    difficulty: Difficulty = "medium"
    turns: tuple[Turn, ...] = ()
    stance: Stance | None = None
    principles: tuple[str, ...] = ()

    @model_validator(mode="before")
    @classmethod
    def _no_nulls(cls, raw: Any) -> Any:
        if isinstance(raw, dict):
            if raw.get("instruction") and "prompt" not in raw:
                raise ValueError(
                    _(
                        "this is an instruction to write a prompt, not a prompt: have a model phrase it ({command})",
                        command=command("constitution", "prompts", "--model", "SPEC"),
                    )
                )
            return {name: value for name, value in raw.items() if value is not None}
        return raw

    @classmethod
    def of_example(cls, example: Example) -> Prompt:
        """The prompt of an example."""
        return cls(
            id=example.id,
            language=example.language,
            prompt=example.prompt,
            category=example.category,
            difficulty=example.difficulty,
            turns=example.turns,
            stance=example.stance,
            principles=example.principles,
        )

    @property
    def key(self) -> str:
        """Language and id, which together are unique in a file."""
        return f"{self.language}/{self.id}"

    @property
    def dialogue(self) -> list[tuple[str, str]]:
        """(role, text) of the earlier turns and the prompt."""
        return [*((t.role, t.content) for t in self.turns), ("user", self.prompt)]


def read_prompts(file: Path, constitution: Constitution) -> list[Prompt]:
    """The prompts in `file`.

    Raises:
        UsageError: no such file. DataError: naming the first line that is wrong.
    """
    return read_prompt_rows(file, constitution, Prompt)


def read_prompt_rows(file: Path, constitution: Constitution, model: type[P]) -> list[P]:
    """The rows of `file`, each a prompt with further fields.

    Raises:
        UsageError: no such file. DataError: naming the line of the first that is wrong.
    """
    if not file.is_file():
        raise UsageError(
            _(
                "{file} does not exist: name a file of prompts, or write one with  {command}",
                file=file,
                command=command("constitution", "prompts", "--model", "SPEC", "--out", file),
            )
        )
    prompts: list[P] = []
    ids = UniqueIds()
    for place, prompt in read_models(file, model):
        ids.add(prompt.id, place, prompt.language)
        if prompt.category == "tribunal":
            raise DataError(
                _(
                    "{place}: the category 'tribunal' needs a critique by three judges, which this method does not "
                    "write: give it another category",
                    place=place,
                )
            )
        if unknown := sorted(set(prompt.principles) - constitution.principle_ids):
            raise DataError(
                _(
                    "{place}: principles names {unknown!r}, which the constitution does not have",
                    place=place,
                    unknown=unknown[0],
                )
            )
        prompts.append(prompt)
    if not prompts:
        raise DataError(_("{file} is empty: it needs at least one prompt", file=file))
    return prompts
