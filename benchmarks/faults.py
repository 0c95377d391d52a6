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
import contextlib
import hashlib
import json
import os
import random
import re
import select
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from noesis.run.stages import STAGES as ALL_STAGES

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))

CALLS = (
    *(
        "write",
        "pwrite64",
        "writev",
        "copy_file_range",
        "sendfile",
        "ftruncate",
        "fsync",
        "fdatasync",
        "openat",
        "close",
    ),
    *("rename", "renameat", "renameat2", "unlink", "unlinkat", "rmdir", "mkdir", "mkdirat"),
)
MISSED = 7
SKIPPED = ("judge", "gguf", "report")  # no later stage needs them
STRACE = shutil.which("strace") is not None
PYTHON_CALLS = ("open", "os.rename", "os.remove", "os.mkdir", "os.rmdir")
MOMENTS = ("forward", "backward", "optimizer")
STAGES = tuple(name for name in ALL_STAGES if name != "trial")
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


@dataclass(frozen=True)
class Point:
    """Where to kill: before the n-th (from 1) call or moment `what` of `stage`."""

    stage: str
    what: str
    n: int


# --- one attempt, in a forked process


def child(
    project: Any, config: Any, path: Path, point: Point | None, gate: int, report: int, only: tuple[str, ...]
) -> None:
    """Run the pipeline up to the last stage of `only`; at the point's stage wait until strace is attached."""
    from noesis.pipeline.registry import REGISTRY, PipelineOptions
    from noesis.pipeline.start_run import from_sources, start_run
    from noesis.run.directory import Run
    from noesis.run.lock import locked

    plain = Run.perform
    current = ""

    def announce(stage: str) -> None:
        nonlocal current
        if point is not None and current == point.stage:
            os._exit(MISSED)  # the moment lay in a part that was done before; the next attempt goes on from here
        current = stage
        os.write(report, f"{stage}\n".encode())
        if point is not None and stage == point.stage:
            os.write(report, b"here\n")
            os.read(gate, 1)

    def perform(run: Any, stage: str, *args: Any, **kwargs: Any) -> Any:
        if stage != "export":
            announce(stage)
        return plain(run, stage, *args, **kwargs)

    Run.perform = perform  # type: ignore[method-assign]
    if point is None or point.what in MOMENTS or not STRACE:
        count_moments(point, report, lambda: current)
    announce("export")
    with locked(path):
        s = start_run(project, config, path, from_sources(project, config))
        for stage in STAGES[1:]:
            if any(STAGES.index(stage) <= STAGES.index(last) for last in only) and (
                stage not in SKIPPED or stage in only
            ):
                REGISTRY[stage].run(s, PipelineOptions())
    if point is not None and current == point.stage:
        os._exit(MISSED)


def count_moments(point: Point | None, report: int, stage: Any) -> None:
    """Kill at the n-th moment of training; without a point, report each."""
    import torch

    seen: collections.Counter[str] = collections.Counter()

    def moment(what: str) -> None:
        if what in MOMENTS and stage() != "train":
            return
        if point is not None and stage() != point.stage:
            return
        seen[what] += 1
        if point is None:
            os.write(report, f"moment {what} {stage()}\n".encode())
        elif point.what == what and seen[what] == point.n:
            os.kill(os.getpid(), signal.SIGKILL)

    if not STRACE:
        fsync = os.fsync
        os.fsync = lambda fd: (moment("fsync"), fsync(fd))[1]
        sys.addaudithook(lambda event, _: moment(event) if event in PYTHON_CALLS else None)
    from noesis.training.state.resumable import Resumable

    check, backward, step = Resumable.stop_if_asked, torch.Tensor.backward, torch.optim.AdamW.step

    def on_check(self: Any, **kwargs: Any) -> None:
        moment("forward")
        check(self, **kwargs)

    def on_backward(self: Any, *args: Any, **kwargs: Any) -> None:
        self.register_hook(lambda gradient: moment("backward"))
        backward(self, *args, **kwargs)

    def on_step(self: Any, *args: Any, **kwargs: Any) -> Any:
        parameters = [p for group in self.param_groups for p in group["params"] if p.grad is not None]
        for parameter in parameters[: len(parameters) // 2]:  # half of the update is in memory when the process dies
            parameter.data.add_(parameter.grad, alpha=0.0)
        moment("optimizer")
        return step(self, *args, **kwargs)

    Resumable.stop_if_asked, torch.Tensor.backward, torch.optim.AdamW.step = on_check, on_backward, on_step  # type: ignore[method-assign]


def attempt(
    project: Any, config: Any, path: Path, point: Point | None, only: tuple[str, ...], log: Path | None = None
) -> tuple[int, list[str]]:
    """Run until it ends or is killed; its exit code (negative: the signal), and the lines that it reported."""
    gate_r, gate_w = os.pipe()
    report_r, report_w = os.pipe()
    sys.stdout.flush()
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            os.close(gate_w), os.close(report_r)
            output = os.open(path.parent / f"{path.name}.log", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
            os.dup2(output, 1), os.dup2(output, 2)
            sys.stdout = sys.stderr = open(output, "w", encoding="utf-8", closefd=False)  # noqa: SIM115
            repair_torch_threads()
            if point is None:
                os.read(gate_r, 1)
            child(project, config, path, point, gate_r, report_w, only)
            code = 0
        except BaseException:
            traceback.print_exc()
        finally:
            with contextlib.suppress(Exception):
                sys.stdout.flush()
            os._exit(code)
    os.close(gate_r), os.close(report_w)
    tracer = None
    lines: list[str] = []
    if point is None:
        if log is not None and STRACE:
            tracer = trace(pid, ["-e", "trace=" + known_calls(), "-o", str(log)])
        os.write(gate_w, b"x")
    for line in reading(report_r):
        lines.append(line)
        if line == "here" and point is not None:
            if STRACE and point.what not in MOMENTS:
                tracer = trace(
                    pid,
                    [
                        "-e",
                        f"trace={point.what}",
                        "-e",
                        f"inject={point.what}:signal=KILL:when={point.n}",
                        "-o",
                        "/dev/null",
                    ],
                )
            os.write(gate_w, b"x")
    _, status = os.waitpid(pid, 0)
    if tracer is not None:
        tracer.wait()
    os.close(gate_w), os.close(report_r)
    return os.waitstatus_to_exitcode(status), lines


def reading(fd: int) -> Iterator[str]:
    """Lines from a pipe until its other end is closed."""
    rest = b""
    while True:
        select.select([fd], [], [])
        chunk = os.read(fd, 65536)
        if not chunk:
            return
        *whole, rest = (rest + chunk).split(b"\n")
        yield from (line.decode() for line in whole)


def trace(pid: int, options: list[str]) -> subprocess.Popen[bytes]:
    """strace on the main thread of `pid`; returns once it is attached."""
    process = subprocess.Popen(["strace", "-p", str(pid), *options], stderr=subprocess.PIPE)
    assert process.stderr is not None
    if b"attached" not in process.stderr.readline():
        raise SystemExit(
            "error: strace could not attach: run as the same user, with ptrace allowed "
            "(kernel.yama.ptrace_scope 0 or 1)"
        )
    return process


def known_calls() -> str:
    return ",".join(f"?{name}" for name in CALLS)


# --- points and results


def counts(log: Path, events: list[str]) -> dict[str, collections.Counter[str]]:
    """Of each stage, how many calls and moments there are in a run that nothing happens to."""
    found: dict[str, collections.Counter[str]] = {stage: collections.Counter() for stage in STAGES}
    stage = "export"
    for line in log.read_text(encoding="utf-8", errors="replace").splitlines() if log.is_file() else ():
        if marker := re.match(r'write\(\d+, "(\w+)\\n", ', line):
            stage = marker[1] if marker[1] in STAGES else stage
        elif (call := re.match(r"(\w+)\(", line)) and not line.startswith("write(") | ("moment" in line):
            found[stage][call[1]] += 1
        elif call and "moment" not in line:
            found[stage]["write"] += 1
    for line in events:
        if line.startswith("moment "):
            found[line.split()[2]][line.split()[1]] += 1
    return found


def choose_point(rng: random.Random, seen: dict[str, collections.Counter[str]], stage: str) -> Point:
    """A kind of moment of the stage, rare kinds as often as frequent ones, then which of them."""
    kinds = sorted(kind for kind, count in seen[stage].items() if count)
    weights = [
        3 if kind in ("fsync", "rename", *MOMENTS) else 2 if kind in ("write", "pwrite64") else 1 for kind in kinds
    ]
    kind = rng.choices(kinds, weights)[0]
    among = seen[stage][kind]
    if stage == "train" and rng.random() < 0.7:  # killed several times a run: mostly by steps of a third of it
        among = -(-among // 3)
    return Point(stage, kind, rng.randint(1, among))


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
    from noesis.pipeline.verify import verify
    from noesis.run.directory import load_run

    return [f"{what}: {wrong}" for what, wrong in verify(load_run(path)) if wrong]


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


def repair_torch_threads() -> None:
    """To be called first in a forked process, in its only thread.

    A fork leaves torch's thread pool to be made again, by the first use of it. If two threads use it first at the same
    time (the engine's readers of weights), one of them finds none and raises "Invalid thread pool!", which is a fault
    of the fork and not of the run.
    """
    import torch

    torch.set_num_threads(1)


def warm() -> None:
    """Import what the stages use, so that forked processes need not; in one thread, since no other survives a fork."""
    import torch

    torch.set_num_threads(1)
    import bitsandbytes  # noqa: F401
    import datasets  # noqa: F401
    import gguf  # noqa: F401
    import peft  # noqa: F401
    import transformers
    import trl

    from noesis.pipeline import registry
    from noesis.training import trainer
    from noesis.training.backends import engine_trainer, transformers_sft
    from noesis.training.state import resumable

    _ = (
        registry,
        resumable,
        engine_trainer,
        transformers_sft,
        trainer,
        transformers.LlamaForCausalLM,
        trl.SFTTrainer,
        trl.SFTConfig,
    )  # some load when they are named


def tiny_project(place: Path) -> tuple[Any, Path]:
    """This checkout's project with a few of its rows, and a Llama of 2 layers."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    from helpers.project import ROOT, SHAPE, make_tokenizer_files
    from noesis.core.project import Project

    shutil.copytree(ROOT / "data", place / "project" / "data")
    for folder in (place / "project" / "data" / "training").glob("philosophical*"):
        for file in folder.glob("*.jsonl"):
            file.write_text("\n".join(file.read_text(encoding="utf-8").splitlines()[:2]) + "\n", encoding="utf-8")
    model = place / "tiny-llama"
    make_tokenizer_files(model)
    torch.manual_seed(0)
    config = LlamaConfig(
        **SHAPE, max_position_embeddings=2048, bos_token_id=1, eos_token_id=2, pad_token_id=2, initializer_range=0.2
    )
    LlamaForCausalLM(config).to(torch.bfloat16).save_pretrained(model)
    return Project(place / "project"), model


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
