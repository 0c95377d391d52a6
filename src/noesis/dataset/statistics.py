"""`statistics.json`: what is in `train.jsonl` and `eval.jsonl`, counted in the files themselves."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from noesis.constitution.document import Constitution
from noesis.core.config import Config
from noesis.core.files import sha256_file, sha256_json
from noesis.dataset.checks.length import TokenCounter, find_token_counter
from noesis.dataset.checks.scan import map_chunks
from noesis.dataset.jsonl import FileChunk, lines

EXACT_UP_TO = 20_000  # rows; beyond that, lengths are those of a sample
SAMPLE = 2_000
TALLIES = ("languages", "categories", "difficulties", "values", "stances")


@dataclass
class Count:
    """What one piece of a file holds, or all of them together."""

    examples: int = 0
    multi_turn: int = 0
    words: Counter[int] = field(default_factory=Counter)  # of revised answers, by length
    tallies: dict[str, Counter[str]] = field(default_factory=lambda: {name: Counter() for name in TALLIES})

    def add(self, other: Count) -> None:
        self.examples += other.examples
        self.multi_turn += other.multi_turn
        self.words.update(other.words)
        for name, tally in other.tallies.items():
            self.tallies[name].update(tally)


def describe(train_file: Path, eval_file: Path, constitution: Constitution, config: Config) -> dict[str, Any]:
    """The statistics of both files."""
    ruler = find_token_counter(config, constitution)
    return {
        "train": _describe_file(train_file, ruler, config),
        "eval": _describe_file(eval_file, ruler, config),
        "constitution": {"version": constitution.version, "sha256": constitution.digest()},
    }


def _describe_file(file: Path, ruler: TokenCounter | None, config: Config) -> dict[str, Any]:
    total = Count()
    for part in map_chunks([file], _count, what="count"):
        total.add(part)
    words = np.repeat(sorted(total.words), [total.words[n] for n in sorted(total.words)])
    return {
        "file": file.name,
        "sha256": sha256_file(file),
        "examples": total.examples,
        **{name: dict(sorted(tally.items())) for name, tally in total.tallies.items()},
        "multi_turn": total.multi_turn,
        "revised_words": {"min": int(words[0]), "median": float(np.median(words)), "max": int(words[-1])},
        "tokens": _tokens(file, total.examples, ruler, config),
    }


def _count(piece: FileChunk) -> Count:
    count = Count()
    for _, _, line in lines(piece):
        record = json.loads(line)
        count.examples += 1
        count.multi_turn += bool(record.get("turns"))
        count.words[len(record["response_revised"].split())] += 1
        count.tallies["languages"][record.get("language", "pt")] += 1
        count.tallies["categories"][record["category"]] += 1
        count.tallies["difficulties"][record["difficulty"]] += 1
        count.tallies["values"].update(record["values_applied"])
        if record.get("stance"):
            count.tallies["stances"][record["stance"]] += 1
    return count


def _tokens(file: Path, rows: int, ruler: TokenCounter | None, config: Config) -> dict[str, Any]:
    """p50, p95 and maximum of the rows' lengths in tokens, exact or of a stated sample."""
    if ruler is None:
        return {"model": config.training.model, "unknown": "this model's tokenizer is not on this machine"}
    wanted = None
    if rows > EXACT_UP_TO:
        wanted = set(np.random.default_rng([config.training.seed, rows]).choice(rows, SAMPLE, replace=False).tolist())
    with open(file, "rb") as f:
        lengths = [ruler.length(json.loads(line)) for i, line in enumerate(f) if wanted is None or i in wanted]
    p50, p95 = np.percentile(lengths, [50, 95], method="inverted_cdf")
    return {
        "model": ruler.model,
        "vocabulary_sha256": sha256_json(ruler.tokenizer.backend.get_vocab(with_added_tokens=True)),
        "rows_measured": len(lengths),
        "exact": wanted is None,
        "p50": int(p50),
        "p95": int(p95),
        "max": max(lengths),
    }
