"""The record: one JSONL line, UTF-8. Nine fields are required; files of users hold exactly those and load as they are."""

from __future__ import annotations

from typing import Annotated, Any, Literal

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


class Lineage(_Strict):
    """Where a generated example comes from: enough to make it again with the same models.

    settings: what the command was asked for; steps: what was asked and drawn, in order (principle, seed, hash of the messages)
    """

    method: Annotated[str, Field(min_length=1)]  # critique-revision, critique, preference
    model: str
    critic: str
    source: str  # id of the prompt or of the hand-written example
    constitution_sha256: str
    seed: int
    settings: dict[str, Any]
    steps: list[dict[str, Any]]


class Generated(Record):
    """An example that a model wrote. It never stands in the folders of the hand-written ones."""

    generated: Literal[True]
    lineage: Lineage
