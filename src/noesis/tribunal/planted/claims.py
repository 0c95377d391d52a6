"""Rules that change what the answer claims and leave its words almost as they were: the faults that are hard to see."""

from __future__ import annotations

import random
import re
from collections.abc import Iterable, Sequence

from noesis.tribunal.planted.draft import Draft, change_one, words
from noesis.tribunal.planted.material import Material, Phrases

_NUMBER = re.compile(r"(?<![\w.,:/^–-])\d+(?:[.,]\d+)*(?![\w:/^–-]|[.,]\d)")
_LISTED = re.compile(r"(?:art|arts|n|nº|§|p|cap|v|vol)\.?\s*$", re.IGNORECASE)  # before a number that names a place
_NEGATED = re.compile(r"(?<!\w)(?:não|nem|nunca|ninguém|not|nor|neither|never|nobody|hardly)\s+$", re.IGNORECASE)
_CONDITION = re.compile(r"(?:if|se|when|quando|suponha|suppose|imagine|pense)\b", re.IGNORECASE)
LEAST_CHANGES, MOST_CHANGES = 2, 4  # of hedges in one answer
GROWS = 0.3  # how often a swap should rather add a word; it often can't take one away, so this makes both as frequent


def negated_claim(draft: Draft, phrases: Phrases, rng: random.Random, material: Material) -> str | None:
    """A claim becomes its negation, or the other way round."""
    return _swap_one(draft, draft.statements(), phrases.negations, rng)


def reversed_conclusion(draft: Draft, phrases: Phrases, rng: random.Random, material: Material) -> str | None:
    """The sentence that draws the conclusion says the contrary; the reasons stay."""
    statements = draft.statements()
    drawn = re.compile(rf"(?:{'|'.join(map(re.escape, phrases.verdicts))})(?!\w)", re.IGNORECASE)
    places = [place for place in statements if place == (0, 0) or drawn.match(draft[place])]
    pairs = (*phrases.opposites, *phrases.negations)
    return _swap_one(draft, places, pairs, rng)


def opposite_word(draft: Draft, phrases: Phrases, rng: random.Random, material: Material) -> str | None:
    """One word becomes its opposite: more and less, before and after, cause and effect."""
    return _swap_one(draft, draft.statements(), phrases.opposites, rng)


def certainty_inflated(draft: Draft, phrases: Phrases, rng: random.Random, material: Material) -> str | None:
    """What the answer knows to be uncertain it claims as certain: at least two of its hedges."""
    text, sure = str(draft), dict(phrases.certainty)
    found = list(_any_of(sure).finditer(text))
    if len(found) < LEAST_CHANGES:
        return None
    chosen = rng.sample(found, rng.randint(LEAST_CHANGES, min(MOST_CHANGES, len(found))))
    for hedge in sorted(chosen, key=lambda match: -match.start()):
        text = f"{text[: hedge.start()]}{_like(hedge[0], sure[hedge[0].lower()])}{text[hedge.end() :]}"
    return text


def arithmetic_slip(draft: Draft, phrases: Phrases, rng: random.Random, material: Material) -> str | None:
    """The result of a calculation is a little wrong."""
    computing = "|".join(map(re.escape, phrases.computing))
    before = re.compile(rf"(?:=|(?<!\w)(?:{computing})(?!\w))[^\d.,;]{{0,12}}$", re.IGNORECASE)

    def slip(sentence: str) -> str | None:
        numbers = list(_NUMBER.finditer(sentence))
        results = [found for found in numbers[1:] if before.search(sentence[: found.start()][-30:])]
        return _with_number(sentence, results[-1], rng) if results else None

    return change_one(draft, draft.statements(), rng, slip)


def number_changed(draft: Draft, phrases: Phrases, rng: random.Random, material: Material) -> str | None:
    """A year, a share or a quantity is another one."""

    def change(sentence: str) -> str | None:
        numbers = [n for n in _NUMBER.finditer(sentence) if not _LISTED.search(sentence[: n.start()][-8:])]
        return _with_number(sentence, rng.choice(numbers), rng) if numbers else None

    return change_one(draft, draft.statements(), rng, change)


def _with_number(sentence: str, found: re.Match[str], rng: random.Random) -> str:
    """The sentence with one digit of the number changed: not the last of a long one, so that it is no rounding."""
    digits = [i for i, character in enumerate(found[0]) if character.isdigit()]
    place = digits[-2] if len(digits) > 2 else digits[0]
    old = int(found[0][place])
    lowest = 1 if place == digits[0] else 0
    new = rng.choice([d for d in range(max(lowest, old - 3), min(9, old + 3) + 1) if d != old])
    number = f"{found[0][:place]}{new}{found[0][place + 1 :]}"
    return f"{sentence[: found.start()]}{number}{sentence[found.end() :]}"


def _swap_one(
    draft: Draft, places: Sequence[tuple[int, int]], pairs: Iterable[tuple[str, str]], rng: random.Random
) -> str | None:
    """The answer with one word of `pairs`, in one of the sentences, exchanged for its partner.

    Chance decides whether the answer should rather gain a word ("é" → "não é") or lose one. A condition is left alone:
    its negation may be as true.
    """
    partner = {a: b for pair in pairs for a, b in (pair, pair[::-1])}
    grows = rng.random() < GROWS
    preferred = [word for word in partner if (words(partner[word]) >= words(word)) == grows]
    for choice in filter(None, (preferred, list(partner))):
        pattern = _any_of(choice)

        def swap(sentence: str, pattern: re.Pattern[str] = pattern) -> str | None:
            if _CONDITION.match(sentence):
                return None
            found = [one for one in pattern.finditer(sentence) if not _NEGATED.search(sentence[: one.start()][-12:])]
            if not found:
                return None
            one = rng.choice(found)
            return f"{sentence[: one.start()]}{_like(one[0], partner[one[0].lower()])}{sentence[one.end() :]}"

        if (changed := change_one(draft, places, rng, swap)) is not None:
            return changed
    return None


def _any_of(choice: Iterable[str]) -> re.Pattern[str]:
    longest_first = sorted(choice, key=lambda word: (-len(word), word))
    return re.compile(
        rf"(?<![\w-])(?:{'|'.join(map(re.escape, longest_first))})(?![\w'’-]| (?:not|não)\b)", re.IGNORECASE
    )


def _like(old: str, new: str) -> str:
    """`new`, with a capital where `old` has one."""
    return new[0].upper() + new[1:] if old[0].isupper() else new
