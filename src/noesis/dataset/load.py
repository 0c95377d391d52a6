"""Makes a `Dataset`: from the hand-written sources, from exported files, or from a run's own copy of its data.

Every line is parsed once, by the pass that checks it.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TypeVar

from noesis.constitution.document import Constitution
from noesis.core.config import Config
from noesis.core.console import command, say
from noesis.core.errors import DataError, UsageError
from noesis.core.i18n import _
from noesis.core.jsonl import jsonl_files, read_models
from noesis.core.language import LanguageCode as Language
from noesis.core.project import Project
from noesis.dataset.auxiliary import PAIRS_FILE, REPLAY_FILE, add_auxiliary, read_pairs
from noesis.dataset.checks.length import find_token_counter
from noesis.dataset.checks.validate import validate
from noesis.dataset.export import check_sources, held_out_rows, raise_on_errors
from noesis.dataset.schema import Dataset, Example, ReplayRow
from noesis.dataset.split import describe_share, in_order

T = TypeVar("T")


def split_sources(sources: list[Path], constitution: Constitution, config: Config) -> Dataset:
    """Check the hand-written examples and split them as `noesis data export` would.

    Raises:
        DataError: an error in a line, or too few different examples.
    """
    counter = find_token_counter(config, constitution, remember=True)
    report = check_sources(sources, constitution, config, counter=counter, keep_examples=True)
    say(f"  {report.describe()}")
    table = report.table
    held_out = held_out_rows(table, report.clusters, config)
    order = in_order(table)
    say(f"  {describe_share(held_out)}")
    return Dataset(
        train=table.keep(order[~held_out[order]]).examples,
        held_out=table.keep(order[held_out[order]]).examples,
        encoder=counter.encoder if counter else None,
    )


def read_exports(folder: Path, constitution: Constitution) -> Dataset:
    """`train.jsonl` and `eval.jsonl` of a folder.

    Raises:
        UsageError: one of them is missing.
        DataError: a line that must not be trained on, an empty file, or a held-out row that says what a training row
            says.
    """
    files = [_existing(folder / f"{name}.jsonl") for name in ("train", "eval")]
    report = validate(files, constitution, categories=(), keep_examples=True)
    raise_on_errors(report, _("nothing was trained"))
    train, held_out = (report.table.keep(report.table.file == i).examples for i in range(2))
    for file, examples in zip(files, (train, held_out), strict=True):
        if not examples:
            raise DataError(_("{file} holds no example", file=file))
    return Dataset(train, held_out)


def read_run_copy(folder: Path, constitution: Constitution) -> Dataset:
    """The dataset of a run, from its own data folder; each line is checked again, since it may have been edited.

    Raises:
        UsageError: a file is missing.
        DataError: a line that must not be trained on, or an empty file.
    """
    train, held_out = (read_examples(folder / f"{name}.jsonl", constitution) for name in ("train", "eval"))
    pairs, replay = folder / PAIRS_FILE, folder / REPLAY_FILE
    return Dataset(
        train,
        held_out,
        pairs=read_pairs(pairs, ()) if pairs.is_file() else None,
        # Empty where the share of replayed rows came to less than half a row.
        replay=tuple(row for _, row in read_models(replay, ReplayRow)) if replay.is_file() else None,
    )


def read_train_export(
    project: Project, config: Config, constitution: Constitution, folder: Path | None = None
) -> Dataset:
    """What a run would train on if it started from exported files, for a plan or quote; nothing is held out.

    Args:
        folder: with train.jsonl; default: the project's exports.

    Raises:
        UsageError: a file is missing.
        DataError: a line that must not be trained on, or an empty file.
    """
    dataset = Dataset(read_examples((folder or project.exports) / "train.jsonl", constitution))
    return for_run(dataset, project, config)


def for_run(dataset: Dataset, project: Project, config: Config) -> Dataset:
    """The dataset as a run with this configuration takes it: `max_examples` applied, pairs and replayed rows added.

    Raises:
        UsageError: a file of pairs or replayed rows is missing. DataError: a line of it is wrong.
    """
    return add_auxiliary(dataset.subset(config.max_examples, config.training.seed), project, config)


def read_examples(file: Path, constitution: Constitution) -> tuple[Example, ...]:
    """The examples of one file.

    Raises:
        UsageError: the file is missing.
        DataError: a line that must not be trained on, or no line at all.
    """
    report = validate([_existing(file)], constitution, categories=(), whole=False, keep_examples=True)
    raise_on_errors(report, _("nothing was read"))
    if not len(report.table):
        raise DataError(_("{file} holds no example", file=file))
    return report.table.examples


def read_hand_written(project: Project, language: Language) -> tuple[Example, ...]:
    """The project's hand-written examples of one language, without the checks of the data gate; () where it has none.

    Raises:
        DataError: a line that is no example.
    """
    files = [file for folder in project.sources(language) for file in jsonl_files(folder)]
    return tuple(example for file in files for _, example in read_models(file, Example))


def evenly_spread(rows: Sequence[T], count: int) -> list[T]:
    """`count` of `rows`, evenly spread over them (examples are sorted by category)."""
    count = min(count, len(rows))
    return [rows[i * len(rows) // count] for i in range(count)]


def _existing(file: Path) -> Path:
    if not file.is_file():
        raise UsageError(
            _(
                "{file} is missing (Dataset not found): write it with  {command}",
                file=file,
                command=command("data", "export"),
            )
        )
    return file
