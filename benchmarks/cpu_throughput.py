"""Training on a CPU: this project's engine against plain TRL with its defaults, in turns.

python benchmarks/cpu_throughput.py [--rounds 2]

The same eight examples in every step (so the losses can be compared step by step), SmolLM2, LoRA of rank 64 on all
projections, no dropout, the same learning rate. TRL: NF4 by bitsandbytes, batch 2 × 4, its own gradient checkpointing,
padding, attention and loss. Rates count the tokens of the rows, without padding; the first step of each process is
warm-up.
"""

from __future__ import annotations

import argparse
import itertools
import json
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
EXAMPLES, STEPS, RATE = 8, 4, 2e-4


def prepared() -> tuple[Path, list[Any], Any]:
    """(model folder, token rows, configuration)."""
    from noesis.constitution.document import load_constitution
    from noesis.core.config import load_config
    from noesis.core.project import Project
    from noesis.dataset.encode import training_rows
    from noesis.dataset.load import read_hand_written
    from noesis.llm.hub import find_model
    from noesis.llm.row_encoder import open_encoder

    project = Project(ROOT)
    constant = {
        "training.num_train_epochs": STEPS,
        "training.learning_rate": RATE,
        "training.lr_scheduler_type": "constant",
        "lora.lora_dropout": 0.0,
    }
    config = load_config(project, constant)
    model = find_model("smollm2")
    rows = training_rows(
        read_hand_written(project, "en")[::15][:EXAMPLES],
        open_encoder(model.path),
        load_constitution(project.constitution),
        include_critique=False,
        max_length=2048,
    )
    return model.path, rows, config


def ours() -> dict[str, Any]:
    """By the project's own trainer, as `noesis train` calls it."""
    from noesis.core.device import detect
    from noesis.planning.draft import make_plan
    from noesis.planning.model_shapes import read_shape
    from noesis.run.metrics import read_metrics
    from noesis.training.job import TrainingSet, TrainJob, count_workload
    from noesis.training.trainer import train

    folder, rows, config = prepared()
    plan = make_plan(config, "smollm2", read_shape(folder), count_workload(rows), detect())
    with tempfile.TemporaryDirectory() as out:
        checkpoints, metrics = Path(out) / "checkpoints", Path(out) / "metrics.jsonl"
        result = train(TrainJob(folder, TrainingSet(rows), config, plan, detect(), checkpoints, metrics))
        lines = read_metrics(metrics)
    ends = [line["tokens"] / line["tokens_per_s"] for line in lines]
    seconds = [b - a for a, b in itertools.pairwise(ends)]
    return report(rows, seconds, lines, result.peak_memory_bytes, plan.precision)


def plain_trl() -> dict[str, Any]:
    """SFTTrainer as its documentation shows it, with a 4-bit base."""
    import torch
    from datasets import Dataset
    from peft import LoraConfig
    from transformers import AutoModelForCausalLM, AutoTokenizer, BitsAndBytesConfig, TrainerCallback
    from trl import SFTConfig, SFTTrainer

    from noesis.core.device import detect
    from noesis.training.recorder import peak_memory

    folder, rows, config = prepared()
    times: list[float] = []
    lines: list[dict[str, float]] = []

    class Clock(TrainerCallback):  # type: ignore[misc]
        def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **_: Any) -> None:
            if logs and "loss" in logs:
                times.append(time.monotonic())
                lines.append({"loss": float(logs["loss"]), "grad_norm": float(logs["grad_norm"])})

    nf4 = BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=torch.bfloat16,
    )
    with tempfile.TemporaryDirectory() as out:
        trainer = SFTTrainer(
            model=AutoModelForCausalLM.from_pretrained(folder, quantization_config=nf4, dtype=torch.bfloat16),
            args=SFTConfig(
                output_dir=out,
                num_train_epochs=STEPS,
                learning_rate=RATE,
                lr_scheduler_type="constant",
                per_device_train_batch_size=2,
                gradient_accumulation_steps=EXAMPLES // 2,
                logging_steps=1,
                save_strategy="no",
                report_to=[],
                disable_tqdm=True,
                use_cpu=True,
                bf16=detect().bf16,
                max_length=None,
                dataloader_pin_memory=False,
            ),
            train_dataset=Dataset.from_list([{"input_ids": row.input_ids, "labels": row.labels} for row in rows]),
            processing_class=AutoTokenizer.from_pretrained(folder),
            peft_config=LoraConfig(
                r=config.lora.r,
                lora_alpha=config.lora.lora_alpha,
                target_modules=list(config.lora.target_modules),
                task_type="CAUSAL_LM",
            ),
            callbacks=[Clock()],
        )
        trainer.train()
    return report(rows, [b - a for a, b in itertools.pairwise(times)], lines, peak_memory(detect()), "nf4")


def report(
    rows: list[Any], seconds: list[float], lines: list[dict[str, Any]], peak: int, precision: str
) -> dict[str, Any]:
    """Figures of one process."""
    tokens = sum(len(row.input_ids) for row in rows)
    return {
        "tokens_a_step": tokens,
        "tokens_per_s": round(tokens / statistics.median(seconds), 1),
        "seconds_a_step": [round(s, 2) for s in seconds],
        "losses": [round(line["loss"], 4) for line in lines],
        "grad_norms": [round(line["grad_norm"], 4) for line in lines],
        "peak_gb": round(peak / 1e9, 2),
        "precision": precision,
    }


def main() -> None:
    """Both in turns, each in a process of its own."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--one", choices=["noesis", "trl"])
    arguments = parser.parse_args()
    if arguments.one:
        print("RESULT " + json.dumps(ours() if arguments.one == "noesis" else plain_trl()))
        return
    print(f"{platform.machine()}, Python {platform.python_version()}", flush=True)
    rates: dict[str, list[float]] = {"noesis": [], "trl": []}
    for _ in range(arguments.rounds):
        for name in rates:
            done = subprocess.run(
                [sys.executable, __file__, "--one", name], check=False, capture_output=True, text=True
            )
            found = [line for line in done.stdout.splitlines() if line.startswith("RESULT ")]
            if not found:
                raise SystemExit(done.stdout[-1500:] + done.stderr[-1500:])
            result = json.loads(found[0].removeprefix("RESULT "))
            rates[name].append(result["tokens_per_s"])
            print(name, json.dumps(result), flush=True)
    ours_, theirs = (statistics.median(rates[name]) for name in rates)
    print(f"noesis {ours_:.0f} tokens/s, plain TRL {theirs:.0f} tokens/s: {ours_ / theirs:.2f} times")


if __name__ == "__main__":
    main()
