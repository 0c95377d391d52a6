"""`python benchmarks/judges/planted.py`: what length and keywords see in faults that code planted.

And what a bag of words can learn from them, which understands nothing: on other answers, on a kind that it was not
shown, and on the judge benchmark, where a person planted the faults. A judge trained on them must beat that, too.

--show KIND    also print three pairs of a kind, as the sentences that differ
"""

from __future__ import annotations

import argparse
import random
from collections.abc import Sequence
from difflib import unified_diff
from pathlib import Path

from noesis.core.jsonl import jsonl_files, read_models
from noesis.core.project import find_project
from noesis.dataset.schema import Example
from noesis.tribunal.calibration.baselines import keyword_score
from noesis.tribunal.planted.bag_of_words import BagOfWords
from noesis.tribunal.planted.draft import Draft
from noesis.tribunal.planted.plant import KINDS, PlantedPair, planted_pairs
from noesis.tribunal.rubric import JUDGES
from noesis.tribunal.suite import Part, read_benchmark

PROJECT = find_project(Path(__file__).resolve().parents[2])
SEED = 0
PARTS: tuple[Part, ...] = ("dev", "locked")


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
