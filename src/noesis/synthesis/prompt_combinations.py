"""Combinations of topic, situation, asker and difficulty, from the lists in data/constitution_prompts.yaml.

Every list is dealt out evenly, so that prompts vary by construction instead of filling one template again and again.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from noesis.constitution.document import Request, Slug
from noesis.core.errors import ConfigError, UsageError
from noesis.core.i18n import _
from noesis.core.yaml_file import describe_error, read_yaml, validate
from noesis.dataset.schema import Difficulty

INSTRUCTION = {
    "pt": (
        "Escreva a mensagem que esta pessoa manda a um conselheiro.\nQuem escreve: {asker}.\nO assunto: {topic}.\nO "
        "que houve: {situation}.\n"
        "Dificuldade: {difficulty}.\n\nEm português, na primeira pessoa, como ela digitaria: de duas a cinco frases, "
        "com um detalhe concreto da vida dela, "
        "terminando numa pergunta ou num pedido. Escreva só a mensagem, sem saudação nem assinatura."
    ),
    "en": (
        "Write the message that this person sends to an adviser.\nWho writes: {asker}.\nThe subject: {topic}.\nWhat "
        "happened: {situation}.\n"
        "Difficulty: {difficulty}.\n\nIn English, in the first person, as they would type it: two to five sentences, "
        "with one concrete detail of their life, "
        "ending in a question or a request. Write the message alone, with no greeting and no signature."
    ),
}


class _Entry(Request):
    model_config = ConfigDict(extra="forbid", frozen=True)
    id: Slug


class _Topic(_Entry):
    category: Annotated[str, Field(min_length=1)]


class PromptLists(BaseModel):
    """The lists of data/constitution_prompts.yaml."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    version: str
    topics: Annotated[tuple[_Topic, ...], Field(min_length=1)]
    situations: Annotated[tuple[_Entry, ...], Field(min_length=1)]
    askers: Annotated[tuple[_Entry, ...], Field(min_length=1)]
    difficulties: dict[Difficulty, Request]

    @property
    def combinations(self) -> int:
        """How many prompts the lists make in one language."""
        return len(self.topics) * len(self.situations) * len(self.askers) * len(self.difficulties)


def read_lists(file: Path) -> PromptLists:
    """The lists in a YAML file.

    Raises:
        ConfigError: naming the line of what is wrong.
    """
    try:
        return validate(PromptLists, read_yaml(file))
    except FileNotFoundError:
        raise ConfigError(
            _("{file} is missing: copy it from the Noesis repository, or write your own lists", file=file)
        ) from None
    except ValidationError as error:
        raise ConfigError(describe_error(PromptLists, error, file)) from None
    except ValueError as error:
        raise ConfigError(_("{file} is not valid YAML: {error}", file=file, error=error)) from None


@dataclass(frozen=True)
class Combination:
    """One entry of each list, from which one prompt is written."""

    id: str
    language: str
    topic: _Topic
    situation: _Entry
    asker: _Entry
    difficulty: Difficulty

    def instruction(self, lists: PromptLists) -> str:
        """The request to whoever writes the prompt."""
        parts = {
            "topic": self.topic,
            "situation": self.situation,
            "asker": self.asker,
            "difficulty": lists.difficulties[self.difficulty],
        }
        texts = {name: part[self.language] for name, part in parts.items()}
        return INSTRUCTION.get(self.language, INSTRUCTION["en"]).format(**texts)

    def to_json(self) -> dict[str, Any]:
        """The fields that the prompt's row begins with."""
        return {
            "id": self.id,
            "language": self.language,
            "category": self.topic.category,
            "difficulty": self.difficulty,
        }

    def lineage(self) -> dict[str, Any]:
        """The ids of the entries, for the prompt's lineage."""
        return {"topic": self.topic.id, "situation": self.situation.id, "asker": self.asker.id}


def deal(lists: PromptLists, languages: tuple[str, ...], count: int, seed: int) -> list[Combination]:
    """`count` different combinations, languages in turn.

    Every list is dealt out like a shuffled deck, so that its entries come equally often.

    Raises:
        UsageError: there are fewer combinations.
    """
    most = len(languages) * lists.combinations
    if count > most:
        raise UsageError(
            _(
                "--count {count}: the lists make {most:,} prompts in {languages}; "
                "add lines to data/constitution_prompts.yaml",
                count=count,
                most=most,
                languages=" and ".join(languages),
            )
        )
    decks = {
        language: [_deck(part, f"{seed}:{language}:{name}") for name, part in _parts(lists)] for language in languages
    }
    seen: set[tuple[str, ...]] = set()
    found: list[Combination] = []
    spare = {language: iter(_all(lists)) for language in languages}
    for i in range(count):
        language = languages[i % len(languages)]
        for _ignored in range(64):
            entries = tuple(next(deck) for deck in decks[language])
            if (language, *map(_name, entries)) not in seen:
                break
        else:  # nearly all are taken: the first that is not
            entries = next(c for c in spare[language] if (language, *map(_name, c)) not in seen)
        seen.add((language, *map(_name, entries)))
        found.append(Combination(f"q{seed}_{language}_{i:05d}", language, *entries))
    return found


def _parts(lists: PromptLists) -> list[tuple[str, tuple[Any, ...]]]:
    return [
        ("topics", lists.topics),
        ("situations", lists.situations),
        ("askers", lists.askers),
        ("difficulties", tuple(lists.difficulties)),
    ]


def _all(lists: PromptLists) -> Iterator[tuple[Any, ...]]:
    return (
        (t, s, a, d) for t in lists.topics for s in lists.situations for a in lists.askers for d in lists.difficulties
    )


def _deck(entries: tuple[Any, ...], seed: str) -> Iterator[Any]:
    generator = random.Random(seed)  # noqa: S311  (not a secret)
    while True:
        yield from generator.sample(entries, len(entries))


def _name(entry: Any) -> str:
    return entry if isinstance(entry, str) else str(entry.id)
