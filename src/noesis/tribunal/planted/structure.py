"""Rules that move, repeat, cut or exchange whole paragraphs and sentences."""

from __future__ import annotations

import random

from noesis.tribunal.planted.draft import Draft, words
from noesis.tribunal.planted.material import Material, Phrases

LIKE = 0.35  # how much longer or shorter a paragraph may be than the one that it replaces, as a share of it
LEAST_PARAGRAPH = 20  # words
CUT = (0.08, 0.25)  # share of the words that a truncated answer lacks


def off_topic(draft: Draft, phrases: Phrases, rng: random.Random, material: Material) -> str | None:
    """A paragraph is one from the answer to another question."""
    if material.other is None:
        return None
    donor = Draft.of(material.other).paragraphs
    return _exchange(draft, [(p, q) for p in range(len(draft.paragraphs)) for q in range(len(donor))], donor, rng)


def language_switched(draft: Draft, phrases: Phrases, rng: random.Random, material: Material) -> str | None:
    """A paragraph is in the other language. None where the translation has other paragraphs."""
    if material.parallel is None:
        return None
    donor = Draft.of(material.parallel).paragraphs
    if len(donor) != len(draft.paragraphs):
        return None
    return _exchange(draft, [(p, p) for p in range(len(donor))], donor, rng)


def repeated(draft: Draft, phrases: Phrases, rng: random.Random, material: Material) -> str | None:
    """A paragraph is said again, in the place of a later one."""
    count = len(draft.paragraphs)
    return _exchange(draft, [(p, q) for p in range(count) for q in range(p)], draft.paragraphs, rng)


def _exchange(
    draft: Draft, places: list[tuple[int, int]], donor: tuple[tuple[str, ...], ...], rng: random.Random
) -> str | None:
    """Paragraph p of the draft becomes paragraph q of the donor, for one (p, q) with paragraphs of like length."""
    longer: list[tuple[int, int]] = []
    shorter: list[tuple[int, int]] = []
    for p, q in places:
        here, there = words(" ".join(draft.paragraphs[p])), words(" ".join(donor[q]))
        if here >= LEAST_PARAGRAPH and abs(there - here) <= LIKE * here:
            (longer if there > here else shorter).append((p, q))
    if not (longer or shorter) or len(draft.paragraphs) < 2:
        return None
    first, second = (longer, shorter) if rng.random() < 0.5 else (shorter, longer)
    p, q = rng.choice(first or second)
    return str(draft.with_paragraph(p, donor[q]))


def shuffled(draft: Draft, phrases: Phrases, rng: random.Random, material: Material) -> str | None:
    """The sentences of all paragraphs change places, so that no reason stands by what it is a reason for."""
    sentences = [sentence for paragraph in draft.paragraphs for sentence in paragraph]
    if len(sentences) < 6 or any("\n" in sentence for sentence in sentences):
        return None
    rng.shuffle(sentences)
    paragraphs, start = [], 0
    for paragraph in draft.paragraphs:
        paragraphs.append(tuple(sentences[start : start + len(paragraph)]))
        start += len(paragraph)
    return str(Draft(tuple(paragraphs)))


def truncated(draft: Draft, phrases: Phrases, rng: random.Random, material: Material) -> str | None:
    """The answer breaks off in the middle of a sentence. The only rule whose fault is that words are missing."""
    text = str(draft)
    kept = round(words(text) * (1 - rng.uniform(*CUT)))
    end = 0
    for _ in range(kept):
        end = _end_of_word(text, end)
    cut = text[:end].rstrip(",;:")
    return None if cut.endswith((".", "!", "?", "…", '"', "”")) else cut


def _end_of_word(text: str, start: int) -> int:
    """Where the first word after `start` ends."""
    while text[start].isspace():
        start += 1
    while start < len(text) and not text[start].isspace():
        start += 1
    return start
