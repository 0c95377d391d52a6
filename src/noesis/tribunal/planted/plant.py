"""Pairs for training a judge: a good answer, and the same answer with one fault that code planted.

Each rule applies only where it makes the answer truly worse, replaces rather than adds, so that length tells nothing,
and gives the same result for the same seed. What length and keywords see in them:
benchmarks/judges/planted.py.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from noesis.tribunal.planted import claims, insertions, structure
from noesis.tribunal.planted.draft import Draft
from noesis.tribunal.planted.material import Material, Rule, phrases

RULES: dict[str, Rule] = {
    "reversed_conclusion": claims.reversed_conclusion,
    "negated_claim": claims.negated_claim,
    "opposite_word": claims.opposite_word,
    "arithmetic_slip": claims.arithmetic_slip,
    "number_changed": claims.number_changed,
    "certainty_inflated": claims.certainty_inflated,
    "invented_citation": insertions.invented_citation,
    "hedge_flood": insertions.hedge_flood,
    "false_balance": insertions.false_balance,
    "user_flattered": insertions.user_flattered,
    "judge_flattered": insertions.judge_flattered,
    "judge_instructed": insertions.judge_instructed,
    "keyword_stuffed": insertions.keyword_stuffed,
    "empty_words": insertions.empty_words,
    "refused": insertions.refused,
    "off_topic": structure.off_topic,
    "language_switched": structure.language_switched,
    "repeated": structure.repeated,
    "shuffled": structure.shuffled,
    "truncated": structure.truncated,
}
KINDS = tuple(RULES)


class _Turn(Protocol):
    role: Any
    content: str


class AnsweredPrompt(Protocol):
    """What is needed of an example; `dataset.schema.Example` has it."""

    id: str
    language: Any
    category: str
    prompt: str
    turns: Any
    response_revised: str
    stance: Any


@dataclass(frozen=True)
class PlantedPair:
    """`worse` is `better` with one fault of `kind`.

    source_id: of the example; its translation has the same
    turns: (role, content) of the messages before the prompt
    """

    prompt: str
    better: str
    worse: str
    kind: str
    language: str
    source_id: str
    turns: tuple[tuple[str, str], ...] = ()


def plant(answer: str, language: str, kind: str, rng: random.Random, material: Material | None = None) -> str | None:
    """`answer` with one fault of `kind`; None where the rule does not apply.

    Args:
        language: pt or en.
        kind: one of KINDS.
        material: what off_topic and language_switched take their paragraph from; without it they do not apply.

    Raises:
        KeyError: an unknown kind or language.
    """
    draft = Draft.of(answer)
    worse = RULES[kind](draft, phrases(language), rng, material or Material())
    return worse if worse != str(draft) else None


def planted_pairs(examples: Sequence[AnsweredPrompt], seed: int, kinds: Sequence[str] = KINDS) -> Iterator[PlantedPair]:
    """Each example with each fault that fits it; the same pairs for the same examples and seed.

    A pair depends on its example and its donors alone: leaving out a kind changes no other pair.
    """
    parallel = {(e.id, e.language): e.response_revised for e in examples}
    for example in examples:
        strangers = [e.response_revised for e in examples if e.language == example.language and e.id != example.id]
        better = str(Draft.of(example.response_revised))
        translation = parallel.get((example.id, "en" if example.language == "pt" else "pt"))
        for kind in kinds:
            if kind == "refused" and example.stance == "decline":
                continue
            rng = random.Random(f"{seed}/{example.id}/{example.language}/{kind}")  # noqa: S311
            material = Material(other=rng.choice(strangers) if strangers else None, parallel=translation)
            worse = plant(better, example.language, kind, rng, material)
            if worse is not None:
                turns = tuple((turn.role, turn.content) for turn in example.turns)
                yield PlantedPair(example.prompt, better, worse, kind, example.language, example.id, turns)
