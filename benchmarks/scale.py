"""What 124, 6,000 and 300,000 examples and a 70B base cost in time and USD on 1 to 64 GPUs, by the planner's own
functions.

    python benchmarks/scale.py [--write]       the tables of docs/scale.md; --write puts them between its marks

The planner was fitted to runs on one and two H200 (docs/decisions/0011). Beyond two GPUs it is a model, beyond one
machine's eight it is a bound: this software trains in one machine.
"""

from __future__ import annotations

import os
import re
import sys
from pathlib import Path

os.environ["HF_HOME"] = os.environ["HF_HUB_CACHE"] = "/nonexistent"  # the same table with and without Llama's tokenizer

from noesis.cloud.quote import trial_seconds
from noesis.constitution.document import load_constitution
from noesis.core.config import Config, load_config
from noesis.core.console import duration
from noesis.core.device import Device
from noesis.core.project import Project
from noesis.dataset.load import read_examples
from noesis.pipeline.training_set import estimate_workload
from noesis.planning.draft import draft_plan
from noesis.planning.gpus import gpu_of, rented_gpu
from noesis.planning.model_shapes import Known, known_model
from noesis.planning.pricing import JUDGE_MACHINE, MERGE_MACHINE, train_machine, usd_for
from noesis.planning.search import PlanningTask, SetupOption, enumerate_setups, fastest_fit
from noesis.planning.speed import CONTAINER_SECONDS
from noesis.planning.workload import Workload

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "scale.md"
EPOCHS = {124: 3, 6_000: 3, 300_000: 1}  # of 300,000 one pass is what one pays for
STEP = {124: 8, 6_000: 64, 300_000: 64}  # sequences of a step; 64 GPUs can share 64
GPU_COUNTS = (1, 2, 4, 8, 16, 32, 64)
ONE_MACHINE = 8
MODELS = {"8B": "meta-llama/Llama-3.1-8B-Instruct", "70B": "meta-llama/Llama-3.1-70B-Instruct"}


def known(model: str) -> Known:
    """The entry of `model` in models.yaml, which all models of this file have."""
    found = known_model(model)
    if found is None:
        raise KeyError(model)
    return found


def work_of(examples: int, model: str) -> Workload:
    """So many examples as long as the project's own."""
    project = Project(ROOT)
    constitution = load_constitution(project.constitution)
    own = [r for part in ("train", "eval") for r in read_examples(project.exports / f"{part}.jsonl", constitution)]
    once = estimate_workload(own, constitution, known(model).ratio, include_critique=False)
    times, rest = divmod(examples, len(once.lengths))
    return Workload(
        once.lengths * times + once.lengths[:rest],
        round(once.trained * examples / len(once.lengths)),
        once.relative_error,
    )


def config_of(examples: int, model: str) -> Config:
    return load_config(
        Project(ROOT),
        {
            "training.model": model,
            "training.num_train_epochs": EPOCHS[examples],
            "training.per_device_train_batch_size": 1,
            "training.gradient_accumulation_steps": STEP[examples],
        },
    )


def cheapest(examples: int, model: str, device: Device) -> tuple[SetupOption, float]:
    """The planner's choice on these GPUs, and its price."""
    config, work = config_of(examples, model), work_of(examples, model)
    option = fastest_fit(enumerate_setups(PlanningTask(config, known(model).shape, work, device, rented=True)))
    return option, usd_for(device, option.seconds, device.gpus, train_machine(device.gpus))


def table(model: str, gpu: str) -> list[str]:
    """Time and USD of training: a column for each number of examples, a row for each number of GPUs."""
    lines = [
        "| "
        + " | ".join((f"{gpu}s", *(f"{n:,} examples, {EPOCHS[n]} epoch{'s' if EPOCHS[n] > 1 else ''}" for n in EPOCHS)))
        + " |",
        "|---" * (len(EPOCHS) + 1) + "|",
    ]
    for count in GPU_COUNTS:
        cells = []
        for n in EPOCHS:
            if STEP[n] % count:
                cells.append(f"a step of {STEP[n]} can't be shared")
                continue
            option, usd = cheapest(n, model, rented_gpu(gpu, count))
            cells.append(
                f"{duration(option.seconds)}, {usd:,.2f} USD ({words(option)})" if option.fits else "does not fit"
            )
        mark = " †" if count > ONE_MACHINE else ""
        lines.append(f"| {count}{mark} | " + " | ".join(cells) + " |")
    return lines


def words(option: SetupOption) -> str:
    setup = option.setup
    return (
        setup.precision
        + ("" if setup.gradient_checkpointing == "none" else f", {setup.gradient_checkpointing}")
        + (", spread" if option.sharded else "")
    )


def fits(model: str) -> list[str]:
    """Which GPUs hold a model, one and several of them."""
    lines = ["| GPU | alone | 2 | 4 | 8 |", "|---|---|---|---|---|"]
    for gpu in ("A10", "L40S", "A100-80GB", "H100", "H200", "B200"):
        row = []
        for count in (1, 2, 4, 8):
            option, usd = cheapest(6_000, model, rented_gpu(gpu, count))
            row.append(
                f"{words(option)}: {duration(option.seconds)}, {usd:,.0f} USD"
                if option.fits
                else f"no: {option.needed_bytes / 2**30:.0f} GiB needed"
            )
        lines.append(f"| {gpu} ({gpu_of(rented_gpu(gpu)).memory_bytes / 2**30:.0f} GiB) | " + " | ".join(row) + " |")
    return lines


def judged() -> list[str]:
    """Answering and judging N prompts on A10s, in as many shards; merging needs no GPU."""
    model = MODELS["8B"]
    config = config_of(124, model)
    plan = draft_plan(config, model, known(model).shape, work_of(124, model), rented_gpu("L40S"), rented=True)
    lines = ["| prompts | 1 A10 | 4 A10s | 16 A10s | 64 A10s |", "|---|---|---|---|---|"]
    fixed = trial_seconds(config, plan, 0) + CONTAINER_SECONDS  # both models' loading, which every shard does
    for prompts in (124, 6_000, 300_000):
        cells = []
        for shards in (1, 4, 16, 64):
            each = fixed + (trial_seconds(config, plan, prompts) - trial_seconds(config, plan, 0)) / shards
            cells.append(f"{duration(each)}, {shards * usd_for(rented_gpu('A10'), each, 1, JUDGE_MACHINE):,.2f} USD")
        lines.append(f"| {prompts:,} | " + " | ".join(cells) + " |")
    merge = next(s for s in plan.stages if s.name == "merge and gguf")
    return [
        *lines,
        "",
        f"Merging and GGUF of the 8B, on {MERGE_MACHINE.cores} cores: {duration(merge.seconds)}, {merge.usd:.2f} "
        "USD, whatever the number of examples.",
    ]


def page() -> str:
    """All tables."""
    parts = [
        "### Llama-3.1-8B on H100s",
        *table(MODELS["8B"], "H100"),
        "### Llama-3.1-8B on L40Ss",
        *table(MODELS["8B"], "L40S"),
        "### Llama-3.1-70B on H200s",
        *table(MODELS["70B"], "H200"),
        "### Which GPUs hold a 70B (6,000 examples, 3 epochs)",
        *fits(MODELS["70B"]),
        "### Answers and judging over shards (8B answers, Qwen2.5-7B judges, two answers of each model to each prompt)",
        *judged(),
    ]
    return "\n".join(("\n" + part + "\n") if part.startswith("###") else part for part in parts).strip() + "\n"


if __name__ == "__main__":
    made = page()
    if "--write" in sys.argv:
        text = PAGE.read_text(encoding="utf-8")
        PAGE.write_text(
            re.sub(r"(<!-- scale -->\n).*?(<!-- /scale -->)", lambda m: m[1] + made + m[2], text, flags=re.DOTALL),
            encoding="utf-8",
        )
    else:
        print(made)
