"""An answer as paragraphs of sentences, and the ways in which a rule changes it: in one place, keeping its length."""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

_BETWEEN = re.compile(r"(?<=[.!?…])[ \t]+(?=[\w\"“(¿])")
_QUOTED = re.compile(r"[\"“”«»]")
LEAST_WORDS, MOST_WORDS = 14, 60  # of the run of sentences that a planted text replaces

Paragraphs = tuple[tuple[str, ...], ...]


def words(text: str) -> int:
    return len(text.split())


@dataclass(frozen=True)
class Draft:
    """An answer's paragraphs, each its sentences; a paragraph of several lines (a list, verses) is one sentence."""

    paragraphs: Paragraphs

    @classmethod
    def of(cls, answer: str) -> Draft:
        parts = [part.strip() for part in answer.split("\n\n") if part.strip()]
        return cls(tuple((part,) if "\n" in part else tuple(_BETWEEN.split(part)) for part in parts))

    def __str__(self) -> str:
        return "\n\n".join(" ".join(sentences) for sentences in self.paragraphs)

    def places(self) -> Iterator[tuple[int, int]]:
        """(paragraph, sentence) of each sentence, in order."""
        return ((p, s) for p, sentences in enumerate(self.paragraphs) for s in range(len(sentences)))

    def __getitem__(self, place: tuple[int, int]) -> str:
        return self.paragraphs[place[0]][place[1]]

    def with_sentences(self, paragraph: int, start: int, end: int, new: Sequence[str]) -> Draft:
        """Sentences `start` to `end` (exclusive) of a paragraph replaced."""
        old = self.paragraphs[paragraph]
        return self.with_paragraph(paragraph, (*old[:start], *new, *old[end:]))

    def with_paragraph(self, paragraph: int, sentences: tuple[str, ...]) -> Draft:
        return Draft((*self.paragraphs[:paragraph], sentences, *self.paragraphs[paragraph + 1 :]))

    def statements(self) -> list[tuple[int, int]]:
        """Places of sentences that the answer says itself: no question, nothing quoted, nothing with several lines."""
        return [
            place
            for place in self.places()
            if not self[place].endswith("?") and not _QUOTED.search(self[place]) and "\n" not in self[place]
        ]


def change_one(
    draft: Draft, places: Sequence[tuple[int, int]], rng: random.Random, change: Callable[[str], str | None]
) -> str | None:
    """The answer with the first of `places`, in random order, that `change` can change; None if it can change none."""
    for place in rng.sample(places, len(places)):
        if (new := change(draft[place])) is not None:
            return str(draft.with_sentences(place[0], place[1], place[1] + 1, [new]))
    return None


def replace_run(draft: Draft, pool: Sequence[str], rng: random.Random, *, first: bool = False) -> str | None:
    """Sentences from `pool` in the place of a run of sentences of about their length.

    Args:
        first: the run is the answer's beginning.

    Returns:
        None if the answer has no run of a fitting length, or would keep less than half of its words.
    """
    runs = [run for run in _runs(draft, words(str(draft)) // 2) if not first or run[:2] == (0, 0)]
    if not runs:
        return None
    paragraph, start, end = rng.choice(runs)
    room = words(" ".join(draft.paragraphs[paragraph][start:end]))
    return str(draft.with_sentences(paragraph, start, end, fill(pool, room, rng)))


def _runs(draft: Draft, most: int) -> list[tuple[int, int, int]]:
    """(paragraph, start, end) of runs of sentences with LEAST_WORDS to MOST_WORDS words, and not above `most`."""
    found = []
    for p, sentences in enumerate(draft.paragraphs):
        for start in range(len(sentences)):
            room = 0
            for end in range(start + 1, len(sentences) + 1):
                room += words(sentences[end - 1])
                if room > min(MOST_WORDS, most):
                    break
                if room >= LEAST_WORDS:
                    found.append((p, start, end))
    return found


def fill(pool: Sequence[str], room: int, rng: random.Random) -> list[str]:
    """Different sentences of `pool`, about `room` words, as often above as below it; at least one."""
    over = rng.random() < 0.5
    chosen: list[str] = []
    length = 0
    for sentence in rng.sample(pool, len(pool)):
        if length >= room or (not over and chosen and length + words(sentence) > room):
            break
        chosen.append(sentence)
        length += words(sentence)
    if not over and length > room:  # a single sentence that is too long: the shortest instead
        return [min(pool, key=words)]
    return chosen
