"""All computed tasks of one language, the same each time. `docs/make_kept_items.py` writes them."""

from __future__ import annotations

from collections.abc import Callable
from random import Random

from noesis.tribunal.kept.computed.numbers import Task, arithmetic, dates
from noesis.tribunal.kept.computed.reasoning import logic, strings
from noesis.tribunal.kept.items import KeptItem, Tongue

KINDS: dict[str, tuple[Callable[[Random, Tongue, int], Task], int]] = {  # and tasks a tier
    "arithmetic": (arithmetic, 10),
    "dates": (dates, 6),
    "logic": (logic, 8),
    "strings": (strings, 8),
}
TIERS = (1, 2, 3, 4)


def computed_items(language: Tongue) -> list[KeptItem]:
    """The tasks of every kind and tier in one language; no prompt stands twice."""
    items = []
    for kind, (make, count) in KINDS.items():
        for tier in TIERS:
            rng = Random(f"{language} {kind} {tier}")  # noqa: S311  (the same tasks each time)
            prompts: set[str] = set()
            while len(prompts) < count:
                prompt, answer, distractors = make(rng, language, tier)
                if prompt in prompts:
                    continue
                prompts.add(prompt)
                name = f"{language}_{kind}_{tier}_{len(prompts):02}"
                items.append(
                    KeptItem(
                        id=name,
                        language=language,
                        kind=kind,
                        tier=tier,
                        prompt=prompt,
                        answer=answer,
                        distractors=tuple(distractors),
                    )
                )
    return items
