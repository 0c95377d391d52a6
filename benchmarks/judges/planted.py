"""`python benchmarks/judges/planted.py`: what length and keywords see in faults that code planted.

And what a bag of words can learn from them, which understands nothing: on other answers, on a kind that it was not
shown, and on the judge benchmark, where a person planted the faults. A judge trained on them must beat that, too.

--show KIND    also print three pairs of a kind, as the sentences that differ
"""

from __future__ import annotations

import argparse
import random
import re
from collections import Counter
from collections.abc import Sequence
from difflib import unified_diff
from pathlib import Path

import numpy as np

from noesis.core.jsonl import jsonl_files, read_models
from noesis.core.project import find_project
from noesis.dataset.schema import Example
from noesis.tribunal.calibration.baselines import keyword_score
from noesis.tribunal.planted.draft import Draft
from noesis.tribunal.planted.plant import KINDS, PlantedPair, planted_pairs
from noesis.tribunal.rubric import JUDGES
from noesis.tribunal.suite import Part, read_benchmark

PROJECT = find_project(Path(__file__).resolve().parents[2])
SEED = 0
PARTS: tuple[Part, ...] = ("dev", "locked")
LEAST = 5  # pairs in which a word must tell the answers apart to count
STEPS, RATE, L2 = 300, 1.0, 1e-3


class BagOfWords:
    """Logistic regression on which words only the better, and which only the worse answer of a pair has."""

    def __init__(self, pairs: Sequence[tuple[str, str]]) -> None:
        counts = Counter(word for better, worse in pairs for word in _words(better) ^ _words(worse))
        self.columns = {word: i for i, word in enumerate(w for w, count in counts.items() if count >= LEAST)}
        self.weights = np.zeros(len(self.columns))
        features = self._features(pairs)
        for _ in range(STEPS):
            wrong = 1 / (1 + np.exp(features @ self.weights))
            self.weights += RATE * (features.T @ wrong / len(features) - L2 * self.weights)

    def accuracy(self, pairs: Sequence[tuple[str, str]]) -> float:
        """The share in which the better answer scores above the worse; a tie is not right."""
        return float((self._features(pairs) @ self.weights > 1e-9).mean())

    def _features(self, pairs: Sequence[tuple[str, str]]) -> np.ndarray:
        """(pairs, words) 1 where only the better answer has the word, -1 where only the worse has it."""
        table = np.zeros((len(pairs), len(self.columns)))
        for row, (better, worse) in zip(table, pairs, strict=True):
            for sign, words in ((1, _words(better) - _words(worse)), (-1, _words(worse) - _words(better))):
                row[[self.columns[word] for word in words if word in self.columns]] = sign
        return table


def _words(text: str) -> set[str]:
    return set(re.findall(r"\w+", text.lower()))


def examples() -> list[Example]:
    folders = [PROJECT.data / "training" / name for name in ("philosophical", "philosophical_en")]
    return [example for folder in folders for file in jsonl_files(folder) for _, example in read_models(file, Example)]


def figures(pairs: Sequence[PlantedPair]) -> list[str]:
    """Pairs, in Portuguese, worse answer longer, shorter, mean difference in words, keywords right and tied."""
    growth = [len(pair.worse.split()) - len(pair.better.split()) for pair in pairs]
    gains = [_keywords(pair.better) - _keywords(pair.worse) for pair in pairs]
    return [
        str(len(pairs)),
        str(sum(pair.language == "pt" for pair in pairs)),
        f"{sum(x > 0 for x in growth) / len(pairs):.2f}",
        f"{sum(x < 0 for x in growth) / len(pairs):.2f}",
        f"{sum(growth) / len(pairs):+.1f}",
        f"{sum(x > 1e-9 for x in gains) / len(pairs):.2f}",
        f"{sum(abs(x) <= 1e-9 for x in gains) / len(pairs):.2f}",
    ]


def _keywords(answer: str) -> float:
    return sum(keyword_score(answer, judge) for judge in JUDGES)


def texts(pairs: Sequence[PlantedPair]) -> list[tuple[str, str]]:
    return [(pair.better, pair.worse) for pair in pairs]


def bag_of_words(pairs: Sequence[PlantedPair]) -> None:
    """Half of the sources to learn from, the other half to be asked about."""
    sources = sorted({pair.source_id for pair in pairs})
    random.Random(SEED).shuffle(sources)
    learnt_from = set(sources[::2])
    learn = [pair for pair in pairs if pair.source_id in learnt_from]
    ask = [pair for pair in pairs if pair.source_id not in learnt_from]
    model = BagOfWords(texts(learn))
    print("\n| a bag of words on | all kinds learnt | this kind left out |\n|---|---|---|")
    for kind in KINDS:
        of_kind = texts([pair for pair in ask if pair.kind == kind])
        without = BagOfWords(texts([pair for pair in learn if pair.kind != kind]))
        print(f"| {kind} | {model.accuracy(of_kind):.2f} | {without.accuracy(of_kind):.2f} |")
    print(f"| **all** | {model.accuracy(texts(ask)):.2f} | |")
    for part in PARTS:
        written, _ = read_benchmark(PROJECT.tribunal, part)
        on_written = model.accuracy([(pair.good, pair.bad) for pair in written])
        print(f"| the judge benchmark, {part} half, {len(written)} pairs | {on_written:.2f} | |")


def show(pairs: Sequence[PlantedPair]) -> None:
    for pair in random.Random(SEED).sample(pairs, min(3, len(pairs))):
        print(f"\n{pair.kind}, {pair.source_id}, {pair.language}")
        before, after = (
            [sentence for part in Draft.of(text).paragraphs for sentence in part] for text in (pair.better, pair.worse)
        )
        for line in list(unified_diff(before, after, lineterm="", n=0))[2:]:
            if not line.startswith("@@"):
                print(f"  {line}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--show", choices=KINDS)
    shown = parser.parse_args().show
    found = list(planted_pairs(examples(), SEED))
    print("| kind | pairs | Portuguese | worse is longer | worse is shorter | words | keywords right | ties |")
    print("|---|---|---|---|---|---|---|---|")
    for kind in KINDS:
        print(f"| {kind} | " + " | ".join(figures([pair for pair in found if pair.kind == kind])) + " |")
    print("| **all** | " + " | ".join(figures(found)) + " |")
    bag_of_words(found)
    if shown:
        show([pair for pair in found if pair.kind == shown])
