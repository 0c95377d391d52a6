"""500 strings on which tokenizers disagree: digits, accents, spaces, code, emoji, other scripts, combining marks.

Generated; the same on every machine. The certificate compares token ids on all of them.
"""

from __future__ import annotations

import itertools
import random

# Each shows a real difference: how digits are grouped, what a space belongs to, where a combined character is split.
HARD_STRINGS = [
    "(1936)", "3.14159", "2024-11-22", "R$ 1.234,56", "10^6", "ação", "coração — não!", "É verdade?",
    "Dikē, Sophia e Veritas", "naïve café",
    "  two  spaces", "\ttab", "line\n\nbreak", "x = f(y[0]);",
    "if a != b:\n    return None", "https://example.org/?q=1&r=2", "ἀλήθεια", "Σωκράτης",
    "日本語のテスト", "😀👍🏽", "áẽ", "don't I'll we've", "DON'T", "CamelCaseWord",
    "snake_case_word", "…", "“quotes” ‘single’", "½ ¾ ²", "1st 2nd 3rd",
    "000123", "e.g., i.e.", "%%##@@",
]  # fmt: skip
_WORDS = (
    "verdade", "razão", "ciência", "às", "avô", "avó", "pão", "três", "conseqüência", "Übermut", "façade", "the",
    "truth", "knowledge", "Wahrheit",
    "λόγος", "истина", "真理",
)  # fmt: skip
_NUMBERS = (
    "0",
    "7",
    "12",
    "365",
    "2024",
    "65536",
    "1000000",
    "3,14",
    "1.000,50",
    "6.02e23",
    "0x1F",
    "1/2",
    "12:30",
    "99%",
)
_CODE = (
    "def f(x):\n    return x", "for (int i = 0; i < n; ++i) {", "SELECT * FROM t WHERE id = 3;",
    '{"a": [1, 2], "b": null}', "<div class='x'>é</div>",
    "a->b::c<d>", "$HOME/bin && ls -la", "x = y ** 2  # áé", "\\frac{1}{2}", "#!/bin/sh\r\necho ok\r\n",
)  # fmt: skip
_SIGNS = ("😀", "👩‍👩‍👧", "🇧🇷", "👍🏽", "✅", "→", "∀x∈ℝ", "«»", "—", "¿", "£", "\u00a0", "\u200d", "e\u0301", "ﬁ", "Å")
_JOINS = ("", " ", "  ", "\n", "\n\n", "\t", "-", "_", ".", ", ", "'", "/")


def hard_strings(count: int = 500) -> list[str]:
    """`count` different strings (at least `len(HARD_STRINGS)`), always the same."""
    found = dict.fromkeys(HARD_STRINGS)
    for piece, end in itertools.product((*_WORDS, *_NUMBERS, *_CODE, *_SIGNS), ("", "\n")):
        found[piece + end] = None
    rng = random.Random(20241122)  # noqa: S311  (a fixed choice, nothing secret)
    kinds = (_WORDS, _NUMBERS, _CODE, _SIGNS)
    while len(found) < count:
        pieces = [rng.choice(rng.choice(kinds)) for _ in range(rng.randint(2, 6))]
        text = "".join(piece + rng.choice(_JOINS) for piece in pieces)
        found[rng.choice((text, " " + text, text.upper(), text.title()))] = None
    return list(found)[:count]
