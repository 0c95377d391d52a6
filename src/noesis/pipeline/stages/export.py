"""Stage export: the run's own copy of its examples and its constitution, with statistics."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from noesis.core.console import say
from noesis.core.files import write_json, write_jsonl
from noesis.dataset.statistics import describe
from noesis.pipeline.session import Records, RunSession


@dataclass(frozen=True)
class ExportSource:
    """What a run is made from, already checked.

    Attributes:
        auxiliary: preference pairs and replay rows, by the name of their file.
        constitution: the project's constitution file.
    """

    train: Records
    held_out: Records
    auxiliary: dict[str, Records]
    constitution: Path


def run_export(s: RunSession, source: ExportSource) -> dict[str, Any]:
    """Copy data and constitution into the run; returns the statistics of the examples."""

    def work() -> dict[str, Any]:
        data = s.run.data
        write_jsonl(data / "train.jsonl", source.train)
        write_jsonl(data / "eval.jsonl", source.held_out)
        for name, rows in source.auxiliary.items():
            write_jsonl(data / f"{name}.jsonl", rows)
        shutil.copyfile(source.constitution, data / "constitution.yaml")
        statistics = describe(data / "train.jsonl", data / "eval.jsonl", s.constitution, s.config)
        write_json(data / "statistics.json", statistics)
        return statistics

    result = s.run.perform("export", work, lambda: sorted(s.run.data.iterdir()))
    train, held_out = result["train"]["examples"], result["eval"]["examples"]
    say(f"  {train} to train on, {held_out} held out → {s.run.data}")
    return result
