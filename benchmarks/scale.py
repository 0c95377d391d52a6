"""What 124, 6,000 and 300,000 examples and a 70B base cost in time and USD on 1 to 64 GPUs, by the planner's own
functions.

    python benchmarks/scale.py [--write]       the tables of docs/scale.md and docs/scale.pt-BR.md
                                               --write puts them between the marks there

The planner was fitted to runs on one and two H200 (docs/decisions/0011). Beyond two GPUs it is a model, beyond one
machine's eight it is a bound.
"""

from __future__ import annotations

import os
import re
import sys
from functools import cache
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
PAGES = {"en": ROOT / "docs" / "scale.md", "pt": ROOT / "docs" / "scale.pt-BR.md"}
EPOCHS = {124: 3, 6_000: 3, 300_000: 1}  # of 300,000 one pass is what one pays for
STEP = {124: 8, 6_000: 64, 300_000: 64}  # sequences of a step; 64 GPUs can share 64
GPU_COUNTS = (1, 2, 4, 8, 16, 32, 64)
ONE_MACHINE = 8
MODELS = {"8B": "meta-llama/Llama-3.1-8B-Instruct", "70B": "meta-llama/Llama-3.1-70B-Instruct"}

WORDS = {
    "en": {
        "on": "### {model} on {gpu}s",
        "gpus": "{gpu}s",
        "column": "{n:,} examples, {epochs} epochs",
        "column1": "{n:,} examples, 1 epoch",
        "indivisible": "a step of {step} can't be shared",
        "too large": "does not fit",
        "usd": "{usd} USD",
        "selective": "selective",
        "full": "full",
        "spread": "spread",
        "holds": "### Which GPUs hold a 70B (6,000 examples, 3 epochs)",
        "alone": "alone",
        "needed": "no: {gib:.0f} GiB needed",
        "judging": "### Answers and judging over shards (8B answers, Qwen2.5-7B judges, two answers of each model to "
        "each prompt)",
        "prompts": "prompts",
        "merge": "Merging and GGUF of the 8B, on {cores} cores: {cost}, whatever the number of examples.",
    },
    "pt": {
        "on": "### {model} em {gpu}",
        "gpus": "{gpu}",
        "column": "{n:,} exemplos, {epochs} épocas",
        "column1": "{n:,} exemplos, 1 época",
        "indivisible": "um passo de {step} não se divide",
        "too large": "não cabe",
        "usd": "US$ {usd}",
        "selective": "em parte recalculado",
        "full": "tudo recalculado",
        "spread": "distribuído",
        "holds": "### Em quais GPUs cabe um 70B (6,000 exemplos, 3 épocas)",
        "alone": "sozinha",
        "needed": "não: precisa de {gib:.0f} GiB",
        "judging": "### Respostas e julgamento em shards (o 8B responde, o Qwen2.5-7B julga, duas respostas de cada "
        "modelo por prompt)",
        "prompts": "prompts",
        "merge": "Merge e GGUF do 8B, em {cores} núcleos: {cost}, seja qual for o número de exemplos.",
    },
}


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


@cache
def cheapest(examples: int, model: str, device: Device) -> tuple[SetupOption, float]:
    """The planner's choice on these GPUs, and its price."""
    config, work = config_of(examples, model), work_of(examples, model)
    option = fastest_fit(enumerate_setups(PlanningTask(config, known(model).shape, work, device, rented=True)))
    return option, usd_for(device, option.seconds, device.gpus, train_machine(device.gpus))


def table(model: str, gpu: str, w: dict[str, str]) -> list[str]:
    """Time and USD of training: a column for each number of examples, a row for each number of GPUs."""
    head = [w["column" if EPOCHS[n] > 1 else "column1"].format(n=n, epochs=EPOCHS[n]) for n in EPOCHS]
    lines = [row_of(w["gpus"].format(gpu=gpu), *head), "|---" * (len(EPOCHS) + 1) + "|"]
    for count in GPU_COUNTS:
        cells = []
        for n in EPOCHS:
            if STEP[n] % count:
                cells.append(w["indivisible"].format(step=STEP[n]))
                continue
            option, usd = cheapest(n, model, rented_gpu(gpu, count))
            cells.append(f"{cost(option.seconds, usd, w)} ({setup(option, w)})" if option.fits else w["too large"])
        lines.append(row_of(f"{count} †" if count > ONE_MACHINE else str(count), *cells))
    return lines


def row_of(*cells: str) -> str:
    return "| " + " | ".join(cells) + " |"


def cost(seconds: float, usd: float, w: dict[str, str], digits: int = 2) -> str:
    return f"{duration(seconds)}, {w['usd'].format(usd=f'{usd:,.{digits}f}')}"


def setup(option: SetupOption, w: dict[str, str]) -> str:
    kept = option.setup.gradient_checkpointing
    return (
        option.setup.precision
        + ("" if kept == "none" else f", {w[kept]}")
        + (f", {w['spread']}" if option.sharded else "")
    )


def fits(model: str, w: dict[str, str]) -> list[str]:
    """Which GPUs hold a model, one and several of them."""
    lines = [row_of("GPU", w["alone"], "2", "4", "8"), "|---|---|---|---|---|"]
    for gpu in ("A10", "L40S", "A100-80GB", "H100", "H200", "B200"):
        row = []
        for count in (1, 2, 4, 8):
            option, usd = cheapest(6_000, model, rented_gpu(gpu, count))
            row.append(
                f"{setup(option, w)}: {cost(option.seconds, usd, w, digits=0)}"
                if option.fits
                else w["needed"].format(gib=option.needed_bytes / 2**30)
            )
        lines.append(row_of(f"{gpu} ({gpu_of(rented_gpu(gpu)).memory_bytes / 2**30:.0f} GiB)", *row))
    return lines


def judged(w: dict[str, str]) -> list[str]:
    """Answering and judging N prompts on A10s, in as many shards; merging needs no GPU."""
    model = MODELS["8B"]
    config = config_of(124, model)
    plan = draft_plan(config, model, known(model).shape, work_of(124, model), rented_gpu("L40S"), rented=True)
    shards_of = (1, 4, 16, 64)
    head = ["1 A10", *(f"{shards} {w['gpus'].format(gpu='A10')}" for shards in shards_of[1:])]
    lines = [row_of(w["prompts"], *head), "|---" * (len(head) + 1) + "|"]
    fixed = trial_seconds(config, plan, 0) + CONTAINER_SECONDS  # both models' loading, which every shard does
    for prompts in (124, 6_000, 300_000):
        cells = []
        for shards in shards_of:
            each = fixed + (trial_seconds(config, plan, prompts) - trial_seconds(config, plan, 0)) / shards
            cells.append(cost(each, shards * usd_for(rented_gpu("A10"), each, 1, JUDGE_MACHINE), w))
        lines.append(row_of(f"{prompts:,}", *cells))
    merge = next(s for s in plan.stages if s.name == "merge and gguf")
    return [*lines, "", w["merge"].format(cores=MERGE_MACHINE.cores, cost=cost(merge.seconds, merge.usd, w))]


def page(language: str) -> str:
    """All tables in a language."""
    w = WORDS[language]
    parts = [
        w["on"].format(model="Llama-3.1-8B", gpu="H100"),
        *table(MODELS["8B"], "H100", w),
        w["on"].format(model="Llama-3.1-8B", gpu="L40S"),
        *table(MODELS["8B"], "L40S", w),
        w["on"].format(model="Llama-3.1-70B", gpu="H200"),
        *table(MODELS["70B"], "H200", w),
        w["holds"],
        *fits(MODELS["70B"], w),
        w["judging"],
        *judged(w),
    ]
    text = "\n".join(("\n" + part + "\n") if part.startswith("###") else part for part in parts).strip() + "\n"
    return portuguese_numbers(text) if language == "pt" else text


def portuguese_numbers(text: str) -> str:
    """1,234.50 as 1.234,50; names of models keep their point."""
    number = r"(?<![\w.-])\d+(?:,\d{3})*(?:\.\d+)?(?![\w-])"
    return re.sub(number, lambda m: m[0].translate(str.maketrans(",.", ".,")), text)


def write(file: Path, made: str) -> None:
    """Put the tables between the page's marks."""
    text = file.read_text(encoding="utf-8")
    text = re.sub(r"(<!-- scale -->\n).*?(<!-- /scale -->)", lambda m: m[1] + made + m[2], text, flags=re.DOTALL)
    file.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    for language, file in PAGES.items():
        if "--write" in sys.argv:
            write(file, page(language))
        else:
            print(page(language))
