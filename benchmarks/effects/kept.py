"""What training broke in a finished run, and what it costs to find out: `python benchmarks/effects/kept.py RUN`.

Small tasks of data/tribunal/kept by the base and by the run's chosen adapter; the run is read, not written. Processor
seconds are those of this process, so that a busy neighbour changes the wall clock alone.
"""

from __future__ import annotations

import argparse
import json
import time
from dataclasses import replace
from pathlib import Path

from noesis.core.project import Project
from noesis.pipeline.session import reopen_run
from noesis.pipeline.stages.kept import figures_of, measure_items, show_kept

ROOT = Path(__file__).resolve().parents[2]


def main() -> None:
    """Measure, print what the stage judge prints, and the figures as one line of JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run", type=Path)
    parser.add_argument("--items", type=int, default=160)
    options = parser.parse_args()
    s = reopen_run(options.run)
    section = s.config.training.tribunal.model_copy(update={"kept_items": options.items})
    training = s.config.training.model_copy(update={"tribunal": section})
    s = replace(s, config=s.config.model_copy(update={"training": training}))
    started, cpu = time.monotonic(), time.process_time()
    found = figures_of(measure_items(s, s.run.adapter(), Project(ROOT)), [])
    show_kept(found)
    spent = {"seconds": round(time.monotonic() - started, 1), "cpu_seconds": round(time.process_time() - cpu, 1)}
    print(json.dumps(spent | (found.to_json() if found else {})))


if __name__ == "__main__":
    main()
