"""Stage export: the run's own copy of its examples and its constitution, with statistics."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from noesis.core.console import say
from noesis.core.files import copy_file, files_in, write_json, write_jsonl
from noesis.core.i18n import _
from noesis.dataset.auxiliary import PAIRS_FILE, REPLAY_FILE
from noesis.dataset.checks.length import counter_of
from noesis.dataset.schema import Dataset
from noesis.dataset.statistics import ExportStatistics, describe
from noesis.pipeline.results import read_result
from noesis.pipeline.session import RunSession
from noesis.run.manifest import Json


@dataclass(frozen=True)
class ExportSource:
    """What a run is made from, already checked.

    Attributes:
        constitution: the project's constitution file.
    """

    dataset: Dataset
    constitution: Path


def run_export(s: RunSession, source: ExportSource) -> ExportStatistics:
    """Copy data and constitution into the run; returns the statistics of the examples."""

    def work() -> Json:
        data, dataset = s.run.data, source.dataset
        for name, rows in (
            ("train.jsonl", dataset.train),
            ("eval.jsonl", dataset.held_out),
            (PAIRS_FILE, dataset.pairs),
            (REPLAY_FILE, dataset.replay),
        ):
            if rows is not None:
                write_jsonl(data / name, [row.to_json() for row in rows])
        copy_file(source.constitution, data / "constitution.yaml")
        counter = counter_of(s.encoder, s.config, s.constitution)
        statistics = describe(dataset, data, s.constitution, s.config, counter).to_json()
        write_json(data / "statistics.json", statistics)
        return statistics

    stored = s.run.perform("export", work, lambda: files_in(s.run.data))
    result = read_result(s.run, "export", stored, ExportStatistics.from_json)
    say(
        _(
            "  {examples} to train on, {held_out_examples} held out → {data}",
            examples=result.train.examples,
            held_out_examples=result.held_out.examples,
            data=s.run.data,
        )
    )
    return result
