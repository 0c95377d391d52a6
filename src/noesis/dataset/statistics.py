"""`statistics.json`: what is in `train.jsonl` and `eval.jsonl`."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from noesis.constitution.document import Constitution
from noesis.core.config import Config
from noesis.core.files import sha256_file, sha256_json
from noesis.core.jsonl import iter_lines, parse_object
from noesis.dataset.checks.length import TokenCounter
from noesis.dataset.checks.scan import map_chunks
from noesis.dataset.jsonl import FileChunk, chunk_lines
from noesis.dataset.schema import Dataset, Example

EXACT_UP_TO = 20_000  # rows; beyond that, lengths are those of a sample
SAMPLE = 2_000
TALLIES = ("languages", "categories", "difficulties", "values", "stances")


@dataclass
class Count:
    """What is in some examples.

    words: how many revised answers have this many words
    tallies: by name, how many examples have each label
    """

    examples: int = 0
    multi_turn: int = 0
    words: Counter[int] = field(default_factory=Counter)
    tallies: dict[str, Counter[str]] = field(default_factory=lambda: {name: Counter() for name in TALLIES})

    def add(self, example: Example) -> None:
        """Count one example."""
        self.examples += 1
        self.multi_turn += bool(example.turns)
        self.words[len(example.response_revised.split())] += 1
        self.tallies["languages"][example.language] += 1
        self.tallies["categories"][example.category] += 1
        self.tallies["difficulties"][example.difficulty] += 1
        self.tallies["values"].update(example.values_applied)
        if example.stance:
            self.tallies["stances"][example.stance] += 1

    def merge(self, other: Count) -> None:
        """Add the numbers of another count."""
        self.examples += other.examples
        self.multi_turn += other.multi_turn
        self.words.update(other.words)
        for name, tally in other.tallies.items():
            self.tallies[name].update(tally)


def describe(
    dataset: Dataset, folder: Path, constitution: Constitution, config: Config, counter: TokenCounter | None
) -> dict[str, Any]:
    """The statistics of a dataset that was written to `train.jsonl` and `eval.jsonl` in `folder`.

    Args:
        counter: measures rows in tokens; None: the model's tokenizer is not on this machine.
    """

    def part(file: Path, examples: Sequence[Example]) -> dict[str, Any]:
        count = Count()
        for example in examples:
            count.add(example)

        def chosen(rows: set[int] | None) -> Iterable[Example]:
            return examples if rows is None else (examples[i] for i in sorted(rows))

        return _part_json(file, count, _tokens(chosen, count.examples, counter, config))

    return _statistics(
        part(folder / "train.jsonl", dataset.train), part(folder / "eval.jsonl", dataset.held_out), constitution
    )


def describe_files(
    train_file: Path, eval_file: Path, constitution: Constitution, config: Config, counter: TokenCounter | None
) -> dict[str, Any]:
    """The statistics of two files, counted in the files themselves, which need not fit into memory."""

    def part(file: Path) -> dict[str, Any]:
        count = Count()
        for result in map_chunks([file], _count_chunk, what="count"):
            count.merge(result)

        def chosen(rows: set[int] | None) -> Iterable[Example]:
            lines = (line.data for i, line in enumerate(iter_lines(file)) if rows is None or i in rows)
            return (Example.from_json(parse_object(data)) for data in lines)

        return _part_json(file, count, _tokens(chosen, count.examples, counter, config))

    return _statistics(part(train_file), part(eval_file), constitution)


def _count_chunk(chunk: FileChunk) -> Count:
    count = Count()
    for line in chunk_lines(chunk):
        count.add(Example.from_json(parse_object(line.data)))
    return count


def _statistics(train: dict[str, Any], held_out: dict[str, Any], constitution: Constitution) -> dict[str, Any]:
    about = {"version": constitution.version, "sha256": constitution.digest()}
    return {"train": train, "eval": held_out, "constitution": about}


def _part_json(file: Path, count: Count, tokens: dict[str, Any]) -> dict[str, Any]:
    words = np.repeat(sorted(count.words), [count.words[n] for n in sorted(count.words)])
    return {
        "file": file.name,
        "sha256": sha256_file(file),
        "examples": count.examples,
        **{name: dict(sorted(tally.items())) for name, tally in count.tallies.items()},
        "multi_turn": count.multi_turn,
        "revised_words": {"min": int(words[0]), "median": float(np.median(words)), "max": int(words[-1])},
        "tokens": tokens,
    }


def _tokens(
    chosen: Callable[[set[int] | None], Iterable[Example]], rows: int, counter: TokenCounter | None, config: Config
) -> dict[str, Any]:
    """p50, p95 and maximum of the rows' lengths in tokens, exact or of a stated sample.

    Args:
        chosen: gives the examples at these indices; None: all of them.
    """
    if counter is None:
        return {"model": config.training.model, "unknown": "this model's tokenizer is not on this machine"}
    sample = None
    if rows > EXACT_UP_TO:
        sample = set(np.random.default_rng([config.training.seed, rows]).choice(rows, SAMPLE, replace=False).tolist())
    lengths = [counter.length(example) for example in chosen(sample)]
    p50, p95 = np.percentile(lengths, [50, 95], method="inverted_cdf")
    return {
        "model": counter.model,
        "vocabulary_sha256": sha256_json(counter.tokenizer.backend.get_vocab(with_added_tokens=True)),
        "rows_measured": len(lengths),
        "exact": sample is None,
        "p50": int(p50),
        "p95": int(p95),
        "max": max(lengths),
    }
