"""Finds prompts that ask what an existing prompt asks: the same words, nearly the same, or a part of a longer one."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

from noesis.core.jsonl import iter_intact_objects
from noesis.dataset.checks.fingerprint import fingerprint
from noesis.dataset.checks.near_duplicates import NEAR

CONTAINED = 0.7  # share of a shorter prompt's 3-grams that a longer one contains, from which they ask the same
SHORTEST = 8  # 3-grams below which only an equal text is the same


class KnownPrompts:
    """Existing prompts, indexed by their word 3-grams."""

    def __init__(self) -> None:
        self._places: list[str] = []
        self._sizes: list[int] = []
        self._by_key: dict[int, int] = {}
        self._by_gram: dict[int, list[int]] = {}

    def add(self, texts: Sequence[str], places: Sequence[str]) -> None:
        """Index `texts`; the places name them in messages."""
        for text, place in zip(texts, places, strict=True):
            key, grams = _grams(text)
            number = len(self._places)
            self._places.append(place)
            self._sizes.append(len(grams))
            self._by_key.setdefault(key, number)
            for gram in grams:
                self._by_gram.setdefault(gram, []).append(number)

    def find_similar(self, text: str) -> str | None:
        """The place of a known prompt that asks what `text` asks; None if there is none."""
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
    """The prompts, turns and questions in JSONL files: examples, exports, generated data, the Tribunal's prompts.

    Lines that hold no JSON object are skipped: the data gate refuses them where they are used.
    """
    known = KnownPrompts()
    for file in files:
        for number, row in iter_intact_objects(file):
            turns = (t if isinstance(t, str) else t.get("content") for t in row.get("turns") or ())
            texts = dict.fromkeys([row.get("prompt"), row.get("b_prompt"), *turns])
            present = [text for text in texts if isinstance(text, str) and text]
            known.add(present, [f"{file.name}:{number}"] * len(present))
    return known
