"""Kill a run at every kind of moment, start it again with the same call, and compare it with an uninterrupted one.

python benchmarks/faults.py --kills 240              (Linux; needs strace: apt install strace)
python benchmarks/faults.py --kills 24 --seed 7 --only train,merge      (shorter; what CI does)

Each attempt is a process forked from this one, whose imports it shares: a fresh interpreter would take 15 s to import
what an attempt of 2 s needs. A point is chosen at random by stage and then by moment: a system call of that stage
(SIGKILL by strace before the n-th write, fsync, rename, …, Python's or a library's), or a moment inside a training step
(before the n-th micro-batch, in its backward pass, in the optimizer's update). A run is killed repeatedly, a few times
a stage, until it ends; then its adapters, merged model and GGUF files must have the hashes of the reference run, and
metrics.jsonl the same line for each step. Where strace is missing, Python's own calls (open, rename, remove, mkdir,
rmdir, fsync) and the moments of training take the place of system calls.
"""

from __future__ import annotations

import argparse
import collections
import hashlib
import json
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from parts.kill_points import MISSED, STAGES, STRACE, attempt, choose_point, counts

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))  # helpers/

OVERRIDES: dict[str, Any] = {
    "lora.r": 4,
    "lora.lora_alpha": 8,
    "lora.lora_dropout": 0.1,
    "training.num_train_epochs": 2,
    "training.learning_rate": 1e-2,
    "training.data.language": "en",
    "training.save_every": "1 step",
    "training.tribunal.answers": 1,
    "training.tribunal.max_new_tokens": 4,
    "max_examples": 20,
}


def products(path: Path) -> dict[str, str]:
    """Hashes of what a run is for, and its metrics without the clock's figures."""
    files = [
        *path.glob("data/*"),
        *path.glob("checkpoints/epoch_*/*"),
        *path.glob("merged/*/*.safetensors"),
        *path.glob("gguf/*.gguf"),
    ]
    found = {str(f.relative_to(path)): hashlib.sha256(f.read_bytes()).hexdigest() for f in sorted(files)}
    for line in (path / "metrics.jsonl").read_text(encoding="utf-8").splitlines():
        value = json.loads(line)
        key = f"step {value['step']}"
        found[key] = json.dumps([key in found, *(value[k] for k in ("epoch", "loss", "lr", "grad_norm", "tokens"))])
    return found


def sound(path: Path) -> list[str]:
    """What `noesis verify` finds wrong."""
    from noesis.pipeline.verify.check_run import verify
    from noesis.run.directory import load_run

    return [f"{found.what}: {found.wrong}" for found in verify(load_run(path)) if found.wrong]


def matrix(
    project: Any,
    config: Any,
    place: Path,
    *,
    kills: int,
    rng: random.Random,
    per_run: dict[str, int],
    what: str,
    only: tuple[str, ...],
) -> dict[str, Any]:
    """`kills` kills, over as many runs as it takes."""
    reference, log = place / f"{what}-reference", place / f"{what}.strace"
    code, events = attempt(project, config, reference, None, only, log)
    if code != 0:
        raise SystemExit(f"error: the reference run ended with {code}; see {reference}.log")
    seen, expected = counts(log, events), products(reference)
    tally: dict[str, Any] = {
        "kills": collections.Counter(),
        "calls": collections.Counter(),
        "runs": 0,
        "survived": 0,
        "identical": 0,
        "lost": [],
    }
    began = time.monotonic()
    while sum(tally["kills"].values()) < kills:
        path = place / f"{what}-{tally['runs']}"
        mine = 0
        points = [choose_point(rng, seen, stage) for stage in only for _ in range(per_run[stage])]
        for point in [*points, None]:
            code, events = attempt(project, config, path, point, only)
            if code == -signal.SIGKILL and point is not None:
                tally["kills"][point.stage] += 1
                tally["calls"][point.what] += 1
                mine += 1
            elif code not in (0, MISSED):
                tally["lost"].append(f"{path.name}: exit {code} after {point}; see its log")
                break
        else:
            same = products(path) == expected
            wrong = sound(path)
            tally["survived"] += mine
            tally["identical"] += mine if same else 0
            tally["lost"] += [f"{path.name}: {line}" for line in wrong] + (
                [] if same else [f"{path.name}: differs from the reference"]
            )
            if same and not wrong:
                shutil.rmtree(path)
                path.with_name(f"{path.name}.log").unlink()
        tally["runs"] += 1
        done = sum(tally["kills"].values())
        print(
            f"  {what}: {done} kills in {tally['runs']} runs, {tally['identical']} identical, "
            f"{time.monotonic() - began:.0f} s",
            flush=True,
        )
    return tally


def warm() -> None:
    """Import what the stages use, so that forked processes need not; in one thread, since no other survives a fork."""
    import torch

    torch.set_num_threads(1)
    import bitsandbytes  # noqa: F401
    import datasets  # noqa: F401
    import gguf  # noqa: F401
    import peft  # noqa: F401
    import transformers

    from noesis.pipeline import registry
    from noesis.training import trainer
    from noesis.training.backends import sft_trainer
    from noesis.training.state import resumable

    _ = (
        registry,
        resumable,
        sft_trainer,
        trainer,
        transformers.LlamaForCausalLM,
        transformers.Trainer,
    )  # some load when they are named


def tiny_project(place: Path) -> tuple[Any, Path]:
    """This checkout's project with a few of its rows, and a Llama of 2 layers."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    from helpers.project import SHAPE, make_tokenizer_files, small_project_in

    model = place / "tiny-llama"
    make_tokenizer_files(model)
    torch.manual_seed(0)
    config = LlamaConfig(
        **SHAPE, max_position_embeddings=2048, bos_token_id=1, eos_token_id=2, pad_token_id=2, initializer_range=0.2
    )
    LlamaForCausalLM(config).to(torch.bfloat16).save_pretrained(model)
    return small_project_in(place / "project"), model


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=240)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--keep", type=Path, help="work here and keep what goes wrong")
    parser.add_argument("--only", default=",".join(STAGES), help="kill in these stages only")
    arguments = parser.parse_args()
    only = tuple(stage for stage in STAGES if stage in arguments.only.split(","))
    os.environ |= {
        "OMP_NUM_THREADS": "1",
        "HF_HUB_OFFLINE": "1",
        "TOKENIZERS_PARALLELISM": "false",
        "CUDA_VISIBLE_DEVICES": "",
    }
    os.environ["HF_DEACTIVATE_ASYNC_LOAD"] = "1"  # transformers, too, would read weights in threads
    place = Path(arguments.keep or tempfile.mkdtemp(prefix="noesis-faults-"))
    place.mkdir(parents=True, exist_ok=True)
    os.environ["NOESIS_CACHE"] = str(place / "cache")
    warm()
    from noesis.core.config import load_config

    project, model = tiny_project(place)
    rng = random.Random(arguments.seed)
    per_run = {"export": 1, "plan": 1, "train": 6, "judge": 1, "merge": 2, "gguf": 2, "report": 1}
    tallies = {}
    for what, packing in (("not packed", False), ("packed", True)):
        config = load_config(project, OVERRIDES | {"training.model": str(model), "training.packing": packing})
        tallies[what] = matrix(
            project,
            config,
            place,
            kills=arguments.kills // 2,
            rng=rng,
            per_run=per_run,
            what=what.replace(" ", "-"),
            only=only,
        )
    kills: collections.Counter[str] = sum((t["kills"] for t in tallies.values()), collections.Counter())
    calls: collections.Counter[str] = sum((t["calls"] for t in tallies.values()), collections.Counter())
    lost = [line for t in tallies.values() for line in t["lost"]]
    print(
        "\nkilled by     "
        + ("strace, before a system call" if STRACE else "itself, before a call of Python (strace is not installed)")
    )
    print("by stage      " + ", ".join(f"{stage} {kills[stage]}" for stage in STAGES))
    print("by moment     " + ", ".join(f"{name} {count}" for name, count in calls.most_common()))
    print(f"tried         {sum(kills.values())} kills in {sum(t['runs'] for t in tallies.values())} runs")
    print(f"survived      {sum(t['survived'] for t in tallies.values())}")
    print(f"identical     {sum(t['identical'] for t in tallies.values())}")
    for line in lost:
        print(f"LOST          {line}")
    if not lost and arguments.keep is None:
        shutil.rmtree(place)
    return 1 if lost else 0


if __name__ == "__main__":
    sys.exit(main())
