"""What three seeds cost beside one, on a GPU: `python benchmarks/gpu/seeds.py [--model PATH]`.

Trains the 124 English examples as `noesis train` would (or `--rows N` rows of random tokens), by one seed and by
several in the same passes, each in a process of its own: its whole time, the model's loading included, is what a user
pays for. It prints a line of JSON each, the ratio, and how far each seed's losses are from those of that seed alone
(`--alone`). On a processor it shows the same with a small model, in the same passes as well.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

from random_llama import MODEL

ROOT = Path(__file__).resolve().parents[2]


def rows_of(options: argparse.Namespace) -> list[Any]:
    """The English examples' rows, or random tokens of log-normal lengths."""
    import random

    from noesis.constitution.document import load_constitution
    from noesis.core.project import Project
    from noesis.dataset.encode import training_rows
    from noesis.dataset.load import read_hand_written
    from noesis.llm.row_encoder import open_encoder
    from noesis.llm.token_rows import TokenRow

    if options.rows:
        draw = random.Random(0)
        lengths = [min(2048, max(64, int(draw.lognormvariate(6.25, 0.5)))) for _ in range(options.rows)]
        drawn = [[draw.randrange(3, 400) for _ in range(n)] for n in lengths]
        return [TokenRow(ids, [-100] * (len(ids) // 3) + ids[len(ids) // 3 :]) for ids in drawn]
    project = Project(ROOT)
    constitution = load_constitution(project.constitution)
    examples, encoder = read_hand_written(project, "en"), open_encoder(options.model)
    return training_rows(examples, encoder, constitution, include_critique=False, max_length=2048)


def train(options: argparse.Namespace) -> None:
    """One training, in this process; prints its figures."""
    from noesis.core.config import load_config
    from noesis.core.device import detect
    from noesis.core.project import Project
    from noesis.planning.by_method import sft_plan
    from noesis.planning.model_shapes import read_shape
    from noesis.run.metrics import read_metrics
    from noesis.training.job import OtherSeed, TrainingSet, TrainJob, count_workload
    from noesis.training.trainer import train as train_adapters

    started = time.monotonic()
    changes: dict[str, Any] = {
        "training.seeds": len(options.only),
        "training.seed": options.only[0],
        "training.num_train_epochs": options.epochs,
        "training.precision": options.precision,
        "lora.r": options.r,
        "lora.lora_alpha": 2 * options.r,
    }
    if options.precision != "auto":
        changes["lora.quantization.load_in_4bit"] = options.precision == "nf4"
    config = load_config(Project(ROOT), changes)
    device = replace(detect(), gpus=min(detect().gpus, 1))
    rows = rows_of(options)
    plan = sft_plan(config, str(options.model), read_shape(options.model), count_workload(rows), device)
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        first, *others = options.only
        seeds = tuple(OtherSeed(seed, place / str(seed), place / str(seed) / "metrics.jsonl") for seed in others)
        one = config.with_settings(training={"seeds": 1})
        job = TrainJob(
            options.model, TrainingSet(rows), one, replace(plan, seeds=1), device, place, place / "metrics.jsonl",
            others=seeds,
        )  # fmt: skip
        result = train_adapters(job)
        losses = {first: place / "metrics.jsonl"} | {seed.seed: seed.metrics for seed in seeds}
        found = {seed: [line["loss"] for line in read_metrics(file)] for seed, file in losses.items()}
    figures = {
        "seeds": options.only,
        "device": device.name,
        "precision": plan.setup.precision,
        "rows": len(rows),
        "tokens": result.tokens,
        "steps": result.steps,
        "training_seconds": result.seconds,
        "tokens_per_s": round(result.tokens_per_s * len(options.only), 1),
        "peak_gib": round(result.peak_memory_bytes / 2**30, 2),
        "seconds": round(time.monotonic() - started, 2),
        "losses": found,
    }
    print(json.dumps(figures), flush=True)


def measured(options: argparse.Namespace, seeds: list[int]) -> dict[str, Any]:
    """The figures of a training in a process of its own, and its whole time."""
    given = [f"--{name}={getattr(options, name)}" for name in ("model", "rows", "epochs", "precision", "r")]
    started = time.monotonic()
    done = subprocess.run(
        [sys.executable, __file__, *given, "--only", ",".join(map(str, seeds))],
        check=False,
        stdout=subprocess.PIPE,
        text=True,
    )
    if done.returncode:
        raise SystemExit(done.returncode)
    line = next(line for line in reversed(done.stdout.splitlines()) if line.startswith("{"))
    found: dict[str, Any] = json.loads(line) | {"process_seconds": round(time.monotonic() - started, 2)}
    print(json.dumps({name: value for name, value in found.items() if name != "losses"}), flush=True)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--model",
        type=Path,
        default=MODEL,
        help="folder with safetensors; default: the random 8B that throughput.py makes",
    )
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--rows", type=int, default=0, help="random rows in place of the examples")
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--precision", default="auto")
    parser.add_argument("--r", type=int, default=64)
    parser.add_argument("--alone", action="store_true", help="train each seed alone as well, and compare the losses")
    parser.add_argument("--only", type=lambda s: [int(x) for x in s.split(",")], help="train these, in this process")
    options = parser.parse_args()
    if options.only:
        train(options)
        return
    seeds = list(range(42, 42 + options.seeds))
    measured(options, seeds[:1])  # compiles and caches the kernels, so that neither of the next two does
    one, several = measured(options, seeds[:1]), measured(options, seeds)
    ratio = several["process_seconds"] / one["process_seconds"]
    of_training = several["training_seconds"] / one["training_seconds"]
    print(f"{len(seeds)} seeds cost {ratio:.2f} times one ({of_training:.2f} times in training alone)")
    for seed in seeds if options.alone else []:
        alone = one if seed == seeds[0] else measured(options, [seed])
        pairs = zip(several["losses"][str(seed)], alone["losses"][str(seed)], strict=True)
        worst = max(abs(a - b) / b for a, b in pairs)
        print(f"seed {seed}: losses within {worst:.1e} of those alone, relative")


if __name__ == "__main__":
    main()
