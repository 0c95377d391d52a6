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
from noesis.core.files import sha256_file
from noesis.core.i18n import _
from noesis.core.jsonl import iter_lines, parse_object
from noesis.dataset.checks.length import TokenCounter
from noesis.dataset.checks.scan import map_chunks
from noesis.dataset.schema import Dataset, Example
from noesis.dataset.source_files import FileChunk, chunk_lines

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


@dataclass(frozen=True)
class TokenStatistics:
    """Lengths of rows in tokens.

    rows_measured: all rows if `exact`, else a sample of them
    p50, p95, longest: tokens
    """

    model: str
    vocabulary_sha256: str
    rows_measured: int
    exact: bool
    p50: int
    p95: int
    longest: int

    def to_json(self) -> dict[str, str | int]:
        return {
            "model": self.model,
            "vocabulary_sha256": self.vocabulary_sha256,
            "rows_measured": self.rows_measured,
            "exact": self.exact,
            "p50": self.p50,
            "p95": self.p95,
            "max": self.longest,
        }

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> TokenStatistics:
        own = {name: item for name, item in value.items() if name != "max"}
        return cls(**own, longest=value["max"])


@dataclass(frozen=True)
class WordStatistics:
    """Lengths of revised answers in words."""

    shortest: int
    median: float
    longest: int

    @classmethod
    def of(cls, count: Count) -> WordStatistics:
        lengths = sorted(count.words)
        words = np.repeat(lengths, [count.words[n] for n in lengths])
        return cls(int(words[0]), float(np.median(words)), int(words[-1]))

    def to_json(self) -> dict[str, float]:
        return {"min": self.shortest, "median": self.median, "max": self.longest}

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> WordStatistics:
        return cls(value["min"], value["median"], value["max"])


@dataclass(frozen=True)
class PartStatistics:
    """What is in one exported file.

    tallies: by name, how many examples have each label
    tokens: None if the model's tokenizer is not on this machine
    """

    file: Path
    sha256: str
    examples: int
    tallies: dict[str, dict[str, int]]
    multi_turn: int
    words: WordStatistics
    model: str
    tokens: TokenStatistics | None

    @classmethod
    def of(cls, file: Path, count: Count, model: str, tokens: TokenStatistics | None) -> PartStatistics:
        tallies = {name: dict(sorted(tally.items())) for name, tally in count.tallies.items()}
        words = WordStatistics.of(count)
        return cls(file, sha256_file(file), count.examples, tallies, count.multi_turn, words, model, tokens)

    def to_json(self) -> dict[str, Any]:
        unknown = {"model": self.model, "unknown": _("this model's tokenizer is not on this machine")}
        return {
            "file": self.file.name,
            "sha256": self.sha256,
            "examples": self.examples,
            **self.tallies,
            "multi_turn": self.multi_turn,
            "revised_words": self.words.to_json(),
            "tokens": unknown if self.tokens is None else self.tokens.to_json(),
        }

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> PartStatistics:
        tokens = value["tokens"]
        return cls(
            file=Path(value["file"]),
            sha256=value["sha256"],
            examples=value["examples"],
            tallies={name: value[name] for name in TALLIES},
            multi_turn=value["multi_turn"],
            words=WordStatistics.from_json(value["revised_words"]),
            model=tokens["model"],
            tokens=None if "unknown" in tokens else TokenStatistics.from_json(tokens),
        )


@dataclass(frozen=True)
class ExportStatistics:
    """What `statistics.json` says.

    duplicates: rows in clusters of each kind, and rows dropped; None where nothing was looked for
    """

    train: PartStatistics
    held_out: PartStatistics
    constitution_version: str
    constitution_sha256: str
    duplicates: dict[str, int] | None = None

    def to_json(self) -> dict[str, Any]:
        found = {
            "train": self.train.to_json(),
            "eval": self.held_out.to_json(),
            "constitution": {"version": self.constitution_version, "sha256": self.constitution_sha256},
        }
        return found if self.duplicates is None else found | {"duplicates": self.duplicates}

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> ExportStatistics:
        train, held_out = (PartStatistics.from_json(value[part]) for part in ("train", "eval"))
        constitution = value["constitution"]
        return cls(train, held_out, constitution["version"], constitution["sha256"], value.get("duplicates"))


def describe(
    dataset: Dataset, folder: Path, constitution: Constitution, config: Config, counter: TokenCounter | None
) -> ExportStatistics:
    """The statistics of a dataset that was written to `train.jsonl` and `eval.jsonl` in `folder`.

    Args:
        counter: measures rows in tokens; None: the model's tokenizer is not on this machine.
    """

    def part(file: Path, examples: Sequence[Example]) -> PartStatistics:
        count = Count()
        for example in examples:
            count.add(example)

        def chosen(rows: set[int] | None) -> Iterable[Example]:
            return examples if rows is None else (examples[i] for i in sorted(rows))

        tokens = _tokens(chosen, count.examples, counter, config.training.seed)
        return PartStatistics.of(file, count, config.training.model, tokens)

    train, held_out = part(folder / "train.jsonl", dataset.train), part(folder / "eval.jsonl", dataset.held_out)
    return ExportStatistics(train, held_out, constitution.version, constitution.digest())


def describe_files(
    folder: Path, constitution: Constitution, config: Config, counter: TokenCounter | None
) -> ExportStatistics:
    """As `describe`, counted in the files themselves, which need not fit into memory."""

    def part(file: Path) -> PartStatistics:
        count = Count()
        for result in map_chunks([file], _count_chunk, what="count"):
            count.merge(result)

        def chosen(rows: set[int] | None) -> Iterable[Example]:
            lines = (line.data for i, line in enumerate(iter_lines(file)) if rows is None or i in rows)
            return (Example.from_json(parse_object(data)) for data in lines)

        tokens = _tokens(chosen, count.examples, counter, config.training.seed)
        return PartStatistics.of(file, count, config.training.model, tokens)

    train, held_out = part(folder / "train.jsonl"), part(folder / "eval.jsonl")
    return ExportStatistics(train, held_out, constitution.version, constitution.digest())


def _count_chunk(chunk: FileChunk) -> Count:
    count = Count()
    for line in chunk_lines(chunk):
        count.add(Example.from_json(parse_object(line.data)))
    return count


def _tokens(
    chosen: Callable[[set[int] | None], Iterable[Example]], rows: int, counter: TokenCounter | None, seed: int
) -> TokenStatistics | None:
    """Lengths of all rows, or of a sample where there are many.

    Args:
        chosen: gives the examples at these indices; None: all of them.
    """
    if counter is None:
        return None
    sample = None
    if rows > EXACT_UP_TO:
        sample = set(np.random.default_rng([seed, rows]).choice(rows, SAMPLE, replace=False).tolist())
    lengths = [counter.length(example) for example in chosen(sample)]
    p50, p95 = np.percentile(lengths, [50, 95], method="inverted_cdf")
    vocabulary = counter.tokenizer.vocabulary_sha256()
    return TokenStatistics(counter.model, vocabulary, len(lengths), sample is None, int(p50), int(p95), max(lengths))
