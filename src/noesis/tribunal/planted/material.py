"""What the rules draw on: the sentences and word pairs of `phrases.yaml`, and other answers."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

from noesis.core.yaml_file import read_yaml
from noesis.tribunal.planted.draft import Draft

_FILE = Path(__file__).with_name("phrases.yaml")
_Sentences = Annotated[tuple[str, ...], Field(min_length=8)]
_WordPairs = tuple[tuple[str, str], ...]


class Phrases(BaseModel):
    """One language's sentences to plant, and its words to swap.

    negations: (claim, its negation), swapped in both directions
    opposites: (word, its opposite), in both directions
    certainty: (what hedges, what claims certainty), in one direction
    verdicts: how a sentence begins that draws the conclusion
    computing: words that say that a number is a result
    citations: with the fields author, title, year and share
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    negations: _WordPairs
    opposites: _WordPairs
    certainty: _WordPairs
    verdicts: tuple[str, ...]
    computing: tuple[str, ...]
    citations: _Sentences
    authors: _Sentences
    titles: _Sentences
    hedges: _Sentences
    balance: _Sentences
    user_flattery: _Sentences
    judge_flattery: _Sentences
    judge_orders: _Sentences
    keywords: _Sentences
    empty: _Sentences
    refusals: _Sentences


@cache
def phrases(language: str) -> Phrases:
    """The phrases of `pt` or `en`.

    Raises:
        KeyError: another language.
    """
    return Phrases.model_validate(read_yaml(_FILE)[language])


@dataclass(frozen=True)
class Material:
    """Answers that a paragraph can be taken from.

    other: the answer to another prompt, in the same language
    parallel: this answer in the other language, paragraph by paragraph
    """

    other: str | None = None
    parallel: str | None = None


Rule = Callable[[Draft, Phrases, random.Random, Material], str | None]
