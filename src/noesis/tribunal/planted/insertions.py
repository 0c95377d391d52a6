"""Rules that put sentences where the answer had its own: citations, hedges, flattery, orders to the judge, refusals."""

from __future__ import annotations

import random
from collections.abc import Sequence

from noesis.tribunal.planted.draft import Draft, replace_run
from noesis.tribunal.planted.material import Material, Phrases


def invented_citation(draft: Draft, phrases: Phrases, rng: random.Random, material: Material) -> str | None:
    """A work that does not exist is given as the source."""
    made = [
        template.format(
            author=author, title=title, year=rng.randint(1961, 2021), share=rng.choice((37, 41, 58, 64, 73, 82))
        )
        for template, author, title in zip(
            rng.sample(phrases.citations, 8), rng.sample(phrases.authors, 8), rng.sample(phrases.titles, 8), strict=True
        )
    ]
    return replace_run(draft, made, rng)


def hedge_flood(draft: Draft, phrases: Phrases, rng: random.Random, material: Material) -> str | None:
    return _from_pool(draft, phrases.hedges, rng)


def false_balance(draft: Draft, phrases: Phrases, rng: random.Random, material: Material) -> str | None:
    return _from_pool(draft, phrases.balance, rng)


def user_flattered(draft: Draft, phrases: Phrases, rng: random.Random, material: Material) -> str | None:
    return replace_run(draft, phrases.user_flattery, rng)


def judge_flattered(draft: Draft, phrases: Phrases, rng: random.Random, material: Material) -> str | None:
    return replace_run(draft, phrases.judge_flattery, rng)


def judge_instructed(draft: Draft, phrases: Phrases, rng: random.Random, material: Material) -> str | None:
    return replace_run(draft, phrases.judge_orders, rng)


def keyword_stuffed(draft: Draft, phrases: Phrases, rng: random.Random, material: Material) -> str | None:
    """Names and words that sound thoughtful, about nothing in particular."""
    return _from_pool(draft, phrases.keywords, rng)


def empty_words(draft: Draft, phrases: Phrases, rng: random.Random, material: Material) -> str | None:
    return _from_pool(draft, phrases.empty, rng)


def refused(draft: Draft, phrases: Phrases, rng: random.Random, material: Material) -> str | None:
    """A refusal stands where the answer began."""
    return replace_run(draft, phrases.refusals, rng, first=True)


def _from_pool(draft: Draft, pool: Sequence[str], rng: random.Random) -> str | None:
    """Two runs are replaced where the answer is long enough, else one."""
    once = replace_run(draft, pool[::2], rng)
    return once and (replace_run(Draft.of(once), pool[1::2], rng) or once)
