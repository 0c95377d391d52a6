"""Does leaving examples out do what their influence says? `python benchmarks/influence.py RUN [--seeds 3]`.

RUN is trained by `sft`, judged, and `noesis influence RUN` has been run. It is read, not written: for each seed the
same training is made again on all examples, without the ten that help most, without the ten that help least, and
without ten drawn at random; then the held-out pairs' preference, margin and loss. If the influence means something, the
margin falls most without the most helpful ones, and least without the least helpful. A line of JSON each goes into
WORK/influence.jsonl, which a cut command goes on from; then the table.
"""

from __future__ import annotations

import argparse
import json
import random
import shutil
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

from parts.preference_table import read

ROOT = Path(__file__).resolve().parents[1]


def parts_of(s: Any, found: Any, seed: int) -> dict[str, set[tuple[str, str]]]:
    """What is left out in each training: (id, language) of examples."""
    names = [(e.id, e.language) for e in found.examples]
    drawn = random.Random(seed).sample(names, k=min(10, len(names) - 1))
    helpful, harmful = ({(e.id, e.language) for e in side} for side in (found.helpful(), found.harmful()))
    return {"all": set(), "without the helpful": helpful, "without the harmful": harmful, "without random": set(drawn)}


def measured(s: Any, without: set[tuple[str, str]], seed: int, place: Path) -> dict[str, Any]:
    """Train by the run's settings and measure the last epoch's adapter on the held-out pairs."""
    from noesis.dataset.encode import answer_rows, training_rows
    from noesis.planning.by_method import sft_plan
    from noesis.planning.model_shapes import read_shape
    from noesis.planning.plan import with_planned_storage
    from noesis.training.base_model import load_base, with_adapter
    from noesis.training.job import TrainingSet, TrainJob, count_workload
    from noesis.training.likelihood import log_likelihoods
    from noesis.training.trainer import train
    from noesis.tribunal.heldout import margins

    shutil.rmtree(place, ignore_errors=True)
    t = s.config.training
    config = s.as_trained.with_settings(training={"seed": seed, "seeds": 1})
    examples = [e for e in s.dataset.train if (e.id, e.language) not in without]
    critique = t.constitutional_ai.include_critique
    rows = training_rows(examples, s.encoder, s.constitution, include_critique=critique, max_length=t.max_length)
    plan = sft_plan(config, t.model, read_shape(s.model.path), count_workload(rows), s.device, gpus=1)
    config = with_planned_storage(config, plan)
    train(TrainJob(s.model.path, TrainingSet(rows), config, plan, s.device, place, place / "metrics.jsonl"))
    both = {
        which: answer_rows(s.dataset.held_out, which, s.encoder, s.constitution) for which in ("revised", "initial")
    }
    longest = max(len(row.input_ids) for part in both.values() for row in part)
    base = load_base(s.model.path, config, s.device, longest=longest)
    model = with_adapter(base, place / f"epoch_{plan.epochs - 1}")
    scores = {
        which: log_likelihoods(model, part, config, s.device, adapter=True, what="score")
        for which, part in both.items()
    }
    found = margins(scores)
    tokens = sum(n for _, n in scores["revised"])
    shutil.rmtree(place, ignore_errors=True)
    return {
        "examples": len(examples),
        "preferred": sum(margin > 0 for margin in found),
        "pairs": len(found),
        "margin": fmean(found),
        "loss": -sum(total for total, _ in scores["revised"]) / tokens,
    }


def table(lines: list[dict[str, Any]]) -> None:
    print("| trained on | examples | seeds | prefers | margin | held-out loss |\n|---|---|---|---|---|---|")
    for part in dict.fromkeys(line["part"] for line in lines):
        found = [line for line in lines if line["part"] == part]
        cells = []
        for figure in ("preferred", "margin", "loss"):
            values = [line[figure] for line in found]
            cells.append(f"{fmean(values):.4f}" + (f" ± {stdev(values):.4f}" if len(values) > 1 else ""))
        print(f"| {part} | {found[0]['examples']} | {len(found)} | {' | '.join(cells)} |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--work", type=Path, default=ROOT / "runs" / ".influence")
    options = parser.parse_args()
    from noesis.pipeline.session import reopen_run
    from noesis.pipeline.stages.influence.figures import stored_influence

    s = reopen_run(options.run)
    found = stored_influence(s.run)
    if found is None:
        raise SystemExit(f"{options.run} has no influence measured, or another adapter since: noesis influence RUN")
    options.work.mkdir(parents=True, exist_ok=True)
    file = options.work / "influence.jsonl"
    known = {(line["adapter"], line["part"], line["seed"]) for line in read(file)}
    first, adapter = s.config.training.seed, s.run.identity.config_sha256
    for seed in range(first, first + options.seeds):
        for part, without in parts_of(s, found, seed).items():
            if (adapter, part, seed) in known:
                continue
            line = {"adapter": adapter, "part": part, "seed": seed, "device": s.device.name}
            line |= measured(s, without, seed, options.work / "training")
            with open(file, "a", encoding="utf-8") as f:
                f.write(json.dumps(line) + "\n")
            print("DONE", json.dumps(line), flush=True)
    table([line for line in read(file) if line["adapter"] == adapter])


if __name__ == "__main__":
    main()
