"""`noesis data export`: write `train.jsonl`, `eval.jsonl` and `statistics.json`, byte-identical for the same input and configuration."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from statistics import median
from typing import Any

from noesis.config import Config
from noesis.constitution.document import Constitution
from noesis.data.split import split
from noesis.data.validate import Report, validate
from noesis.errors import DataError
from noesis.files import sha256_file, write_json, write_jsonl


def check_sources(sources: list[Path], constitution: Constitution, config: Config) -> Report:
    """Validate `sources`; go on only if every line may be trained on.

    Raises:
        DataError: the first errors by file and line. Nothing is dropped in silence.
    """
    report = validate(sources, constitution, config.training.data.categories)
    if report.errors:
        shown = "\n  ".join(str(problem) for problem in report.errors[:5])
        more = f"\n  … and {len(report.errors) - 5} more: noesis data validate" if len(report.errors) > 5 else ""
        raise DataError(f"{len(report.errors)} error(s) in the examples; nothing was exported:\n  {shown}{more}")
    if not report.records:
        raise DataError(f"no examples in {', '.join(str(s) for s in sources)}")
    return report


def export(sources: list[Path], out: Path, constitution: Constitution, config: Config) -> dict[str, Any]:
    """Check, split and write; returns the statistics, which are computed from the files as written."""
    report = check_sources(sources, constitution, config)
    train, held_out = split(report.records, eval_examples=config.training.data.eval_examples, seed=config.training.seed)
    write_jsonl(out / "train.jsonl", train)
    write_jsonl(out / "eval.jsonl", held_out)
    statistics = describe(out / "train.jsonl", out / "eval.jsonl", train, held_out, constitution)
    write_json(out / "statistics.json", statistics)
    return statistics


def describe(train_file: Path, eval_file: Path, train: list[dict[str, Any]], held_out: list[dict[str, Any]], constitution: Constitution) -> dict[str, Any]:
    """Counts and hashes of the two files."""
    return {
        "train": {"file": train_file.name, "sha256": sha256_file(train_file), **_counts(train)},
        "eval": {"file": eval_file.name, "sha256": sha256_file(eval_file), **_counts(held_out)},
        "constitution": {"version": constitution.version, "sha256": constitution.digest()},
    }


def _counts(records: list[dict[str, Any]]) -> dict[str, Any]:
    words = sorted(len(r["response_revised"].split()) for r in records)
    return {
        "examples": len(records),
        "languages": _tally(r.get("language", "pt") for r in records),
        "categories": _tally(r["category"] for r in records),
        "difficulties": _tally(r["difficulty"] for r in records),
        "values": _tally(value for r in records for value in r["values_applied"]),
        "stances": _tally(r["stance"] for r in records if r.get("stance")),
        "multi_turn": sum(bool(r.get("turns")) for r in records),
        "revised_words": {"min": words[0], "median": median(words), "max": words[-1]},
    }


def _tally(items: Any) -> dict[str, int]:
    return dict(sorted(Counter(items).items()))
