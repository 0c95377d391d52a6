"""What training uses in addition to the examples: a file of preference pairs, and general rows that are replayed.

`dpo.pairs` of training_config.yaml names a file with one JSON object a line:
    {"id", "language", "prompt", "turns"?, "chosen", "rejected", "p_chosen": 0.5 to 1}
(`noesis constitution prefer` writes such a file; its other fields are not read), and `replay.file` one with
    {"prompt", "response", "system"?}  or  {"messages": [{"role", "content"}, …, the assistant's answer last]}
or says `self`: the base's own answers to `everyday.yaml` (`everyday.py`).
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TypeVar

from noesis.core.config import Config
from noesis.core.console import say
from noesis.core.errors import DataError, UsageError
from noesis.core.i18n import _
from noesis.core.jsonl import UniqueIds, read_models
from noesis.core.project import Project
from noesis.core.text import normalised
from noesis.dataset.checks.fingerprint import fingerprint
from noesis.dataset.everyday import wanted_rows
from noesis.dataset.schema import Dataset, Example, PreferencePair, ReplayRow

PAIRS_FILE, REPLAY_FILE = "pairs.jsonl", "replay.jsonl"  # in a run's data folder

TAUGHT = 0.5  # share of a held-out answer's word 3-grams from which a row that says them teaches it
FEWEST_GRAMS = 8  # of an answer; a shorter one is said by chance

R = TypeVar("R", PreferencePair, ReplayRow)


def read_pairs(file: Path, held_out: Iterable[Example]) -> tuple[PreferencePair, ...]:
    """The preference pairs of a file.

    Args:
        held_out: examples whose prompts must not be trained on.

    Raises:
        UsageError: there is no such file. DataError: naming file and line.
    """
    untrainable = {normalised(example.prompt) for example in held_out}
    ids = UniqueIds()
    pairs = []
    for place, pair in _read(file, PreferencePair, "dpo.pairs"):
        if normalised(pair.prompt) in untrainable:
            raise DataError(
                _(
                    "{place}: its prompt is that of a held-out example, which must not be trained on; remove the pair",
                    place=place,
                )
            )
        ids.add(pair.id, place, pair.language)
        pairs.append(pair)
    return tuple(pairs)


def read_replay(file: Path, held_out: Sequence[Example] = ()) -> tuple[ReplayRow, ...]:
    """The conversations of a file.

    Args:
        held_out: examples that must not be trained on: neither their prompts nor, word by word, their answers.

    Raises:
        UsageError: there is no such file. DataError: naming file and line.
    """
    found = _read(file, ReplayRow, "replay.file")
    prompts = {normalised(example.prompt) for example in held_out}
    answers = [
        (example.name, frozenset(fingerprint([text]).grams.tolist()))
        for example in held_out
        for text in (example.response_revised, example.response_initial)
    ]
    for place, row in found:
        if any(m.role == "user" and normalised(m.content) in prompts for m in row.messages):
            raise DataError(
                _(
                    "{place}: its prompt is that of a held-out example, which must not be trained on; remove the row",
                    place=place,
                )
            )
        if answers and (name := _taught_answer(row, answers)):
            raise DataError(
                _(
                    "{place}: it teaches the answer to held-out example {name}, which must not be trained on; "
                    "remove the row",
                    place=place,
                    name=name,
                )
            )
    return tuple(row for _, row in found)


def _taught_answer(row: ReplayRow, answers: Sequence[tuple[str, frozenset[int]]]) -> str | None:
    """The example one of whose answers is largely in the row, by word 3-grams; None if there is none."""
    said = fingerprint(["\n".join(m.content for m in row.messages if m.role == "assistant")]).grams.tolist()
    for name, grams in answers:
        if len(grams) >= FEWEST_GRAMS and len(grams.intersection(said)) >= TAUGHT * len(grams):
            return name
    return None


def sample_replay(rows: Sequence[ReplayRow], examples: int, share: float, seed: int) -> tuple[ReplayRow, ...]:
    """As many of `rows` as make up `share` of all training rows, or all of them where there are too few.

    Args:
        examples: how many other rows are trained on.
        seed: the same seed draws the same rows, whatever their order.
    """
    wanted = wanted_rows(examples, share)
    if len(rows) < wanted:
        say(
            _(
                "  replay: {share:.0%} would be {wanted} rows, but the file has only {rows}: all are used",
                share=share,
                wanted=wanted,
                rows=len(rows),
            )
        )

    def rank(row: ReplayRow) -> str:
        return hashlib.sha256(f"{seed}:{json.dumps(row.to_json(), sort_keys=True)}".encode()).hexdigest()

    return tuple(sorted(rows, key=rank)[:wanted])


def add_auxiliary(dataset: Dataset, project: Project, config: Config) -> Dataset:
    """The dataset with the preference pairs and replayed rows that the configuration names.

    Raises:
        UsageError: a file is missing. DataError: a line of it is wrong.
    """
    t = config.training
    pairs, replay = dataset.pairs, dataset.replay
    if t.on_pairs and t.dpo.pairs is not None:
        pairs = read_pairs(project.root / t.dpo.pairs, dataset.held_out)
    if t.on_rows and t.replay.rows_file is not None:
        rows = read_replay(project.root / t.replay.rows_file, dataset.held_out)
        replay = sample_replay(rows, len(dataset.train), t.replay.share, t.seed)
    return replace(dataset, pairs=pairs, replay=replay)


def _read(file: Path, model: type[R], key: str) -> list[tuple[str, R]]:
    if not file.is_file():
        raise UsageError(
            _(
                "{file}, named by {key} in training_config.yaml, is missing: create it, or set {key} to null",
                file=file,
                key=key,
            )
        )
    rows = list(read_models(file, model))
    if not rows:
        raise DataError(_("{file}, named by {key} in training_config.yaml, is empty", file=file, key=key))
    return rows
