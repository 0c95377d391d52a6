"""Write data/croissant.json, the data set's Croissant 1.1 card, from its files: `make docs`; with --check only compare
(a test does).
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from noesis.release.hub.croissant import CONFORMS_TO, CONTEXT, described

DATA = Path(__file__).resolve().parents[1] / "data"
TARGET = DATA / "croissant.json"
# Name of a record set: files, what it holds.
RECORD_SETS = {
    "examples_pt": (
        "training/philosophical/*.jsonl",
        "All examples in Brazilian Portuguese, in which they were written.",
    ),
    "examples_en": ("training/philosophical_en/*.jsonl", "The same examples in English, by id."),
    "train": ("training/exports/train.jsonl", "The Portuguese examples to train on, as exported."),
    "eval": (
        "training/exports/eval.jsonl",
        "The Portuguese examples held out, at least one of each category, as exported.",
    ),
}


def card() -> dict[str, Any]:
    """The whole card, of the files as they lie in data/."""
    return {
        "@context": CONTEXT,
        "@type": "sc:Dataset",
        "conformsTo": CONFORMS_TO,
        "name": "noesis-philosophical",
        "description": "Hand-written examples for constitutional fine-tuning: a question, a plausible weak answer, a "
        "critique by three judges, and the answer "
        "that Noesis would give. 124 examples in Brazilian Portuguese and the same 124 in English, in twelve "
        "categories of philosophical conversation.",
        "license": "https://creativecommons.org/licenses/by/4.0/",
        "version": "1.0.0",
        "datePublished": "2026-11-22",
        "inLanguage": ["pt-BR", "en"],
        "keywords": ["philosophy", "instruction tuning", "constitutional AI", "critique and revision", "Portuguese"],
        "creator": {"@type": "sc:Organization", "name": "The Noesis maintainers"},
        "citeAs": "@misc{noesis2026, title={Noesis: philosophical examples with critiques and revisions}, author={The "
        "Noesis maintainers}, year={2026}}",
        "isLiveDataset": False,
        "rai:dataCollection": "Each example was written by hand for its own sake, then read by someone who did not "
        "write it.",
        "rai:dataUseCases": [
            "Supervised fine-tuning on the revised answers",
            "Preference training of revised over weak answers",
            "Studies of critique and revision",
        ],
        "rai:dataLimitations": [
            "Thirteen held-out examples decide little: report intervals.",
            "Telephone numbers of Brazilian public services occur in a few answers; check them before use in another "
            "country.",
        ],
        **described(DATA, RECORD_SETS),
    }


def main() -> int:
    """Write or compare."""
    text = json.dumps(card(), ensure_ascii=False, indent=2) + "\n"
    if "--check" in sys.argv:
        if TARGET.read_text(encoding="utf-8") != text:
            print("data/croissant.json is stale: run  make docs", file=sys.stderr)
            return 1
        return 0
    TARGET.write_text(text, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
