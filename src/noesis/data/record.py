"""The record: one JSONL line, UTF-8. Nine fields are required; files of users hold exactly those and load as they are."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

Language = Literal["pt", "en"]
Stance = Literal["agree", "disagree", "uncertain", "decline", "explore"]
MIN_PROMPT, MIN_REVISED = 10, 50  # characters

# Other names under which the fields are found in the wild.
ALIASES = {
    "values": "values_applied",
    "value": "values_applied",
    "complexity": "difficulty",
    "level": "difficulty",
    "instruction": "prompt",
    "question": "prompt",
    "input": "prompt",
    "initial_response": "response_initial",
    "response": "response_revised",
    "revised_response": "response_revised",
    "answer": "response_revised",
    "output": "response_revised",
    "rationale": "reasoning",
    "lang": "language",
    "type": "category",
}


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class Source(_Strict):
    """A work that the revised answer mentions."""

    author: str
    work: str
    place: str = ""


class Turn(_Strict):
    """An earlier message of a multi-turn example."""

    role: Literal["user", "assistant"]
    content: Annotated[str, Field(min_length=1)]


class Record(_Strict):
    """One example: what was asked, a weak answer, what is wrong with it, and what Noesis would say."""

    id: Annotated[str, Field(min_length=1, max_length=200)]
    language: Language = "pt"
    category: Annotated[str, Field(min_length=1)]
    prompt: Annotated[str, Field(min_length=MIN_PROMPT)]
    turns: list[Turn] | None = None  # earlier messages, user first, assistant last; `prompt` is the last user message
    response_initial: Annotated[str, Field(min_length=1)]
    critique: Annotated[str, Field(min_length=1)]
    response_revised: Annotated[str, Field(min_length=MIN_REVISED)]
    reasoning: str
    values_applied: Annotated[list[str], Field(min_length=1)]
    difficulty: Literal["easy", "medium", "hard"]
    principles: list[str] | None = None
    stance: Stance | None = None
    key: str | None = None  # what a checkable answer must say: valid, invalid, a fallacy's name
    sources: list[Source] | None = None

    @model_validator(mode="after")
    def _turns_alternate(self) -> Record:
        for index, turn in enumerate(self.turns or []):
            if turn.role != ("user", "assistant")[index % 2]:
                raise ValueError("turns must alternate, beginning with the user")
        if self.turns and len(self.turns) % 2:
            raise ValueError("turns must end with the assistant; the last user message belongs in prompt")
        return self
