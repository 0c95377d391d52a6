"""What a dataset holds: examples, preference pairs and replayed conversations, each one JSONL line.

Nine fields of an example are required; files of users hold exactly those and load as they are. These classes are the
only place that knows the keys on disk.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from typing import Annotated, Any, Literal, Self

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ModelWrapValidatorHandler,
    PrivateAttr,
    ValidationInfo,
    field_validator,
    model_validator,
)

from noesis.core.files import sha256_json
from noesis.core.i18n import _
from noesis.core.language import LanguageCode as Language
from noesis.core.messages import Message
from noesis.llm.row_encoder import RowEncoder

Stance = Literal["agree", "disagree", "uncertain", "decline", "explore"]
Difficulty = Literal["easy", "medium", "hard"]
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
GENERATED_MARKS = ("generated", "lineage")  # fields that only generated examples have


def _list_to_tuple(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value


def _optional_list_to_tuple(value: Any) -> Any:
    return () if value is None else _list_to_tuple(value)


def _not_blank(text: str) -> str:
    if not text.strip():
        raise ValueError(_("is empty: it has only spaces"))
    return text


_AsTuple = BeforeValidator(_list_to_tuple)
_AsTupleOrEmpty = BeforeValidator(_optional_list_to_tuple)  # null means the same as no entry
_Text = Annotated[str, Field(min_length=1), AfterValidator(_not_blank)]


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class _Lenient(BaseModel):
    model_config = ConfigDict(extra="ignore", frozen=True, strict=True)


class Source(_Strict):
    """A work that the revised answer mentions."""

    author: str
    work: str
    place: str = ""


class Turn(_Strict):
    """An earlier message of a multi-turn example."""

    role: Literal["user", "assistant"]
    content: _Text

    def to_json(self) -> Message:
        return {"role": self.role, "content": self.content}


class Example(_Strict):
    """One example: a prompt, a weak answer, what is wrong with it, and the answer that Noesis would give.

    turns: earlier messages, the user's first, the assistant's last; `prompt` is the last user message
    key: what a checkable answer must contain: valid, invalid, a fallacy's name
    """

    id: Annotated[str, Field(min_length=1, max_length=200)]
    language: Language = "pt"
    category: _Text
    prompt: Annotated[str, Field(min_length=MIN_PROMPT)]
    turns: Annotated[tuple[Turn, ...], _AsTupleOrEmpty] = ()
    response_initial: _Text
    critique: _Text
    response_revised: Annotated[str, Field(min_length=MIN_REVISED)]
    reasoning: str
    values_applied: Annotated[tuple[str, ...], Field(min_length=1), _AsTuple]
    difficulty: Difficulty
    principles: Annotated[tuple[str, ...], _AsTupleOrEmpty] = ()
    stance: Stance | None = None
    key: str | None = None
    sources: Annotated[tuple[Source, ...], _AsTupleOrEmpty] = ()
    _json: dict[str, Any] = PrivateAttr(default_factory=dict)

    @model_validator(mode="after")
    def _turns_alternate(self) -> Example:
        for index, turn in enumerate(self.turns):
            if turn.role != ("user", "assistant")[index % 2]:
                raise ValueError(_("turns must alternate, beginning with the user"))
        if len(self.turns) % 2:
            raise ValueError(_("turns must end with the assistant; the last user message belongs in prompt"))
        return self

    @model_validator(mode="wrap")
    @classmethod
    def _keep_json(cls, raw: Any, handler: ModelWrapValidatorHandler[Self]) -> Self:
        example = handler(raw)
        if isinstance(raw, dict):
            example._json = raw
        return example

    @classmethod
    def from_json(cls, raw: dict[str, Any]) -> Example:
        """The example in a JSON object; a `GeneratedExample` if the object is marked as one.

        Raises:
            pydantic.ValidationError: a field is missing, unknown or has another type.
        """
        kind = GeneratedExample if any(name in raw for name in GENERATED_MARKS) else Example
        return kind.model_validate(raw)

    def to_json(self) -> dict[str, Any]:
        """The object that the example was read from: the same keys in the same order."""
        return dict(self._json)

    @property
    def name(self) -> str:
        """Id and language, which together are unique in a dataset; for messages."""
        return f"{self.id} ({self.language})"

    @property
    def earlier(self) -> list[Message]:
        """The earlier turns as messages."""
        return [turn.to_json() for turn in self.turns]


class Lineage(_Strict):
    """Where a generated example comes from: enough to make it again with the same models.

    settings: options of the command
    steps: each request and its draw, in order (principle, seed, hash of the messages)
    """

    method: _Text  # critique-revision, critique, preference
    model: str
    critic: str
    source: str  # id of the prompt or of the hand-written example
    constitution_sha256: str
    seed: int
    settings: dict[str, Any]
    steps: list[dict[str, Any]]

    def to_json(self) -> dict[str, Any]:
        return self.model_dump(mode="json")


class GeneratedExample(Example):
    """An example that a model wrote. It never belongs in the folders of hand-written ones."""

    generated: Literal[True]
    lineage: Lineage


class PreferencePair(_Lenient):
    """Two answers to one prompt, and the probability that the first is the better one."""

    id: _Text
    language: Language = "pt"
    prompt: _Text
    turns: Annotated[tuple[Turn, ...], _AsTuple] | None = None
    chosen: _Text
    rejected: _Text
    p_chosen: Annotated[float, Field(ge=0.5, le=1, allow_inf_nan=False)]

    @model_validator(mode="after")
    def _differ(self) -> PreferencePair:
        if self.chosen.strip() == self.rejected.strip():
            raise ValueError(_("chosen and rejected are the same answer"))
        return self

    def to_json(self) -> dict[str, Any]:
        return self.model_dump(mode="json", exclude_none=True)

    @property
    def name(self) -> str:
        """Id and language, which together are unique in a file; for messages."""
        return f"{self.id} ({self.language})"

    @property
    def earlier(self) -> list[Message]:
        """The earlier turns as messages."""
        return [turn.to_json() for turn in self.turns or ()]


class ReplayMessage(_Lenient):
    """One message of a replayed conversation; only a system message may be empty."""

    role: Literal["system", "user", "assistant"]
    content: str

    @field_validator("content")
    @classmethod
    def _says_something(cls, content: str, info: ValidationInfo) -> str:
        return content if info.data.get("role") == "system" else _not_blank(content)

    def to_json(self) -> Message:
        return {"role": self.role, "content": self.content}


def _without_empty_system(messages: tuple[ReplayMessage, ...]) -> tuple[ReplayMessage, ...]:
    """An empty system message is none."""
    return messages[1:] if messages[0].role == "system" and not messages[0].content.strip() else messages


class ReplayRow(_Lenient):
    """A general conversation whose last message is the assistant's."""

    messages: Annotated[tuple[ReplayMessage, ...], Field(min_length=2), _AsTuple, AfterValidator(_without_empty_system)]

    @model_validator(mode="before")
    @classmethod
    def _short_form(cls, raw: Any) -> Any:
        if not isinstance(raw, dict) or "messages" in raw or not {"prompt", "response"} <= raw.keys():
            return raw
        named = {"system": raw.get("system") or "", "prompt": raw["prompt"], "response": raw["response"]}
        for name, text in named.items():  # named as the user's row has it, not as messages
            if not isinstance(text, str):
                raise ValueError(
                    _("{name}: expected a text, found {type___name__}", name=name, type___name__=type(text).__name__)
                )
            if name != "system" and not text.strip():
                raise ValueError(_("{name}: is empty", name=name))
        roles = ("system", "user", "assistant")
        return {"messages": [{"role": r, "content": t} for r, t in zip(roles, named.values(), strict=True)]}

    @model_validator(mode="after")
    def _order(self) -> ReplayRow:
        roles = [message.role for message in self.messages]
        turns = roles[roles[0] == "system" :]
        if not turns or len(turns) % 2 or any(role != ("user", "assistant")[i % 2] for i, role in enumerate(turns)):
            raise ValueError(
                _("after an optional system message, user and assistant must alternate, the assistant last")
            )
        return self

    def to_json(self) -> dict[str, Any]:
        return {"messages": [message.to_json() for message in self.messages]}


@dataclass(frozen=True)
class Dataset:
    """Everything that a run trains and measures on.

    held_out: examples that are measured and never trained on
    pairs, replay: None where the configuration asks for none
    encoder: the tokenizer that reading the dataset used, with the rows that it has encoded; None if it used none
    """

    train: tuple[Example, ...]
    held_out: tuple[Example, ...] = ()
    pairs: tuple[PreferencePair, ...] | None = None
    replay: tuple[ReplayRow, ...] | None = None
    encoder: RowEncoder | None = field(default=None, compare=False, repr=False)

    def digest(self) -> str:
        """SHA-256 of the content of all rows, in order."""
        auxiliary = {
            name: [row.to_json() for row in rows]
            for name, rows in (("pairs", self.pairs), ("replay", self.replay))
            if rows is not None
        }
        parts = [_json_of(self.train), _json_of(self.held_out)]
        return sha256_json([*parts, auxiliary] if auxiliary else parts)

    def subset(self, count: int | None, seed: int) -> Dataset:
        """The dataset with at most `count` training examples, the same ones for the same seed; None: all of them."""
        if count is None:
            return self
        ordered = sorted(self.train, key=lambda e: hashlib.sha256(f"{seed}:{e.id}".encode()).hexdigest())
        return replace(self, train=tuple(ordered[:count]))


def examples_digest(examples: Iterable[Example]) -> str:
    """SHA-256 of the content of `examples`, in order."""
    return sha256_json(_json_of(examples))


def _json_of(examples: Iterable[Example]) -> list[dict[str, Any]]:
    return [example.to_json() for example in examples]
