"""`python benchmarks/planted.py`: what length and keywords see in faults that code planted in the project's answers.

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
from noesis.tribunal.planted.draft import Draft
from noesis.tribunal.planted.plant import KINDS, PlantedPair, planted_pairs
from noesis.tribunal.rubric import JUDGES

PROJECT = find_project(Path(__file__).resolve().parents[1])
SEED = 0


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
    if shown:
        show([pair for pair in found if pair.kind == shown])
