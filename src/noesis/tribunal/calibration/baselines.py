"""What a judge must beat: two scorers that understand nothing. Also the offline screen's figures on the same pairs.

The keyword scorer is written as such systems commonly are: points for words that sound thoughtful. `noesis tribunal
baselines`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Any

from noesis.constitution.document import Constitution
from noesis.tribunal.offline_screen import NAME, ScreenedPrompt, screen
from noesis.tribunal.statistics import wilson
from noesis.tribunal.suite import JudgePair

_PHILOSOPHERS = (
    r"s[óo]crates|plat(?:ão|o)|arist[óo]t(?:eles|le)|kant|hume|nietzsche|descartes|spinoza|espinosa|s[êe]neca|epi[ct]eto"
    r"|epictetus|epicuro|epicurus|rawls|mill|hegel|heidegger|wittgenstein|arendt|sartre|camus|beauvoir|kierkegaard|locke"
    r"|hobbes|rousseau|agostinho|augustine|aquin[oa]s?|conf[úu]ci(?:o|us)|levinas|weil|bentham|marx"
)
# (judge, points, pattern); every answer starts with half a point
_WORDS = tuple(
    (judge, points, re.compile(pattern, re.IGNORECASE))
    for judge, points, pattern in (
        ("veritas", 0.20, r"\b(?:talvez|depende|não sei|maybe|perhaps|it depends|i don't know|i do not know)\b"),
        ("veritas", 0.15, r"\b(?:por outro lado|perspectivas?|on the other hand|perspectives?)\b"),
        ("veritas", -0.10, r"\b(?:sempre|nunca|certamente|always|never|certainly)\b"),
        ("sophia", 0.15, r"\?"),
        ("sophia", 0.15, rf"\b(?:{_PHILOSOPHERS})\b"),
        ("sophia", 0.10, r"\b(?:exemplo|na prática|example|in practice)\b"),
        ("dike", 0.15, r"\b(?:impactos?|consequências?|outros|impacts?|consequences?|others)\b"),
    )
)


def keyword_score(answer: str, judge: str) -> float:
    """0..1 by keywords; 0.5 where none is found."""
    found = sum(points for of, points, pattern in _WORDS if of == judge and pattern.search(answer))
    return min(1.0, max(0.0, 0.5 + found))


def length_score(answer: str, judge: str) -> float:
    """Words: longer is better."""
    return float(len(answer.split()))


def pairwise(pairs: Sequence[JudgePair], score: Callable[[str, str], float]) -> dict[str, Any]:
    """How often the good answer scores above the bad one, by the mean over the pair's judges; a tie is no success."""
    right, ties = [], 0
    for pair in pairs:
        good, bad = (
            sum(score(text, judge) for judge in pair.judges) / len(pair.judges) for text in (pair.good, pair.bad)
        )
        right.append(good > bad + 1e-9)
        ties += abs(good - bad) <= 1e-9
    low, high = wilson(sum(right), len(right))
    return {
        "pairs": len(pairs),
        "right": sum(right),
        "ties": ties,
        "accuracy": round(sum(right) / len(right), 4) if right else None,
        "interval_95": [round(low, 4), round(high, 4)],
    }


def baselines(pairs: Sequence[JudgePair]) -> dict[str, Any]:
    """The figures of both scorers; of length in the better direction, the most that length alone can do."""
    longer = pairwise(pairs, length_score)
    shorter = pairwise(pairs, lambda text, judge: -length_score(text, judge))
    best = max(("longer", longer), ("shorter", shorter), key=lambda found: found[1]["right"])
    return {"keywords": pairwise(pairs, keyword_score), "length": best[1] | {"direction": best[0]}}


def by_attack(pairs: Sequence[JudgePair], score: Callable[[str, str], float]) -> dict[str, dict[str, Any]]:
    return {
        attack: pairwise([p for p in pairs if p.attack == attack], score)
        for attack in sorted({p.attack for p in pairs})
    }


def screen_figures(pairs: Sequence[JudgePair], constitution: Constitution) -> dict[str, Any]:
    """How many bad answers the offline screen flags, and how many good ones, falsely."""
    flagged: dict[str, list[bool]] = {}
    false_flags = []
    for pair in pairs:
        stance = "explore" if pair.attack == "needless_refusal" else None
        prompt = ScreenedPrompt(pair.prompt, pair.language, stance)
        flagged.setdefault(pair.attack, []).append(bool(screen(pair.bad, prompt, constitution)))
        false_flags.append(bool(screen(pair.good, prompt, constitution)))
    seen = [flag for flags in flagged.values() for flag in flags]
    return {
        "name": NAME,
        "bad_flagged": sum(seen),
        "bad": len(seen),
        "interval_95": [round(x, 4) for x in wilson(sum(seen), len(seen))],
        "good_flagged": sum(false_flags),
        "good": len(false_flags),
        "by_attack": {attack: [sum(flags), len(flags)] for attack, flags in sorted(flagged.items())},
    }
