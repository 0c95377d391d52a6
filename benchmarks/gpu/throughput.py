"""Tokens/s, peak memory and time to the saved adapter of LoRA training on a Llama-3.1-shaped model with random weights,
beside other tools.

    python benchmarks/gpu/throughput.py make
        # the model into $MODEL (default /dev/shm/llama8b), and the card's own rates
    python benchmarks/gpu/throughput.py noesis fp8
        # also bf16, nf4; words after it: drop (LoRA dropout 0.05), step8, cards=2, flash4,
        # sharded (the base spread over the cards), none, selective or full (what is recomputed), short (a quarter of
        # the sequences)
    LLAMA=70b LAYERS=80 python benchmarks/gpu/throughput.py make   # the 70B's shape, or the first of its layers
    python benchmarks/gpu/throughput.py start
        # the project's 124 examples, 3 epochs: process start to saved adapter
    python benchmarks/gpu/throughput.py trl                   # TRL's SFTTrainer, NF4, gradient checkpointing, batch 8
    python benchmarks/gpu/throughput.py unsloth nf4 gc
        # or: unsloth nf4, unsloth bf16; packed, batch 4 of 2048; in its own environment

LLAMA (8b or 70b) and LAYERS (default: all) choose the shape. Every mode trains on the same 192 sequences (log-normal
lengths, median 520, clipped to 64..2048); padding is never counted. Each prints a RESULT line with loss and gradient
norm beside the speed. $TOKENIZER: a folder with the tokenizer's files.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import time
from dataclasses import replace
from typing import Any

from random_llama import FLOPS, MODEL, MODULES, RANK, ROOT, WORK, lengths, make, report, sequences


def noesis(precision: str, *words: str) -> None:
    """The project's own training path; full rows: a step is 96 sequences, packed into rows of 8192 tokens (step8: the
    default 8 sequences)."""
    from noesis.core.config import load_config
    from noesis.core.device import detect
    from noesis.core.project import Project
    from noesis.llm.token_rows import TokenRow
    from noesis.planning.draft import draft_plan
    from noesis.planning.model_shapes import read_shape
    from noesis.planning.setup import Setup
    from noesis.run.metrics import read_metrics
    from noesis.training.job import TrainingSet, TrainJob, count_workload
    from noesis.training.trainer import train

    cards = next((int(w.removeprefix("cards=")) for w in words if w.startswith("cards=")), 1)
    recompute = next((w for w in words if w in ("none", "selective", "full")), "full" if precision == "nf4" else "none")
    short = "short" in words
    per_step = 8 if "step8" in words else 24 if short else 96
    device = detect()
    overrides = {
        "lora.r": RANK,
        "lora.lora_alpha": 2 * RANK,
        "lora.lora_dropout": 0.05 if "drop" in words else 0.0,
        "training.num_train_epochs": 1,
        "training.precision": precision,
        "training.learning_rate": 1e-4,
        "training.per_device_train_batch_size": per_step,
        "training.gradient_accumulation_steps": 1,
        "lora.quantization.load_in_4bit": precision == "nf4",
        "training.lr_scheduler_type": "constant",
    }
    config = load_config(Project(ROOT), overrides)
    rows = [TokenRow(ids, ids) for ids in sequences()] * 2
    rows = rows[: len(rows) // 4] if short else rows
    plan = draft_plan(config, str(MODEL), read_shape(MODEL), count_workload(rows), replace(device, gpus=cards))
    optimizer = "adamw_8bit" if (precision, recompute) == ("nf4", "full") else "adamw"
    attention = "flash4" if "flash4" in words else "flash2"
    setup = Setup("noesis", precision, "bfloat16", recompute, True, 8192, per_step, 1, optimizer, cards, attention)  # type: ignore[arg-type]
    planned = {"tok_s": round(plan.tokens_per_s), "gib": round(plan.memory_bytes / 2**30, 2)}
    planned |= {"recompute": plan.setup.gradient_checkpointing, "row": plan.setup.pack_length, "sharded": plan.sharded}
    if "planned" in words:
        setup = plan.setup
    plan = replace(plan, setup=setup, sharded="sharded" in words, fallbacks=())
    shutil.rmtree(WORK, ignore_errors=True)
    job = TrainJob(MODEL, TrainingSet(rows), config, plan, device, WORK / "checkpoints", WORK / "metrics.jsonl")
    result = train(job)
    lines = read_metrics(WORK / "metrics.jsonl")
    clock = [line["tokens"] / line["tokens_per_s"] for line in lines]
    warm = 8 if "step8" in words else 1  # steps that are not timed
    rate = (lines[-1]["tokens"] - lines[warm - 1]["tokens"]) / (clock[-1] - clock[warm - 1])
    report(
        mode=" ".join(("noesis", precision, *words)),
        tok_s=round(rate),
        recompute=setup.gradient_checkpointing,
        optimizer=setup.optimizer,
        cards=cards,
        planned=planned,
        sequences_per_step=per_step,
        steps_timed=len(lines) - warm,
        peak_gib=round(max(line["peak_memory_bytes"] for line in lines) / 2**30, 2),
        model_tflops=round(rate * FLOPS / 1e12 / cards),
        first_steps_s=round(clock[warm - 1], 2),
        train_s=result.seconds,
        loss=[round(lines[i]["loss"], 4) for i in (0, warm, -1)],
        grad_norm=[round(lines[i]["grad_norm"], 4) for i in (0, warm, -1)],
    )


def start() -> None:
    """Wall time of a fresh process that trains the 124 examples for 3 epochs as configured, and of its first step."""
    for attempt in ("first", "second"):  # the second finds the compiled kernels
        began = time.time()
        shutil.rmtree(WORK, ignore_errors=True)
        done = subprocess.run(
            [sys.executable, __file__, "start-child", str(began)], check=True, capture_output=True, text=True
        )
        wall = time.time() - began
        child = json.loads(
            next(line for line in done.stdout.splitlines() if line.startswith("CHILD")).removeprefix("CHILD ")
        )
        report(mode=f"start, {attempt} process", wall_s=round(wall, 1), **child)


def start_child(began: float) -> None:
    from noesis.constitution.document import load_constitution
    from noesis.core.config import load_config
    from noesis.core.device import detect
    from noesis.core.project import Project
    from noesis.dataset.encode import training_rows
    from noesis.dataset.load import read_hand_written
    from noesis.llm.row_encoder import open_encoder
    from noesis.planning.draft import draft_plan
    from noesis.planning.model_shapes import read_shape
    from noesis.run.metrics import read_metrics
    from noesis.training.job import TrainingSet, TrainJob, count_workload
    from noesis.training.trainer import train

    project = Project(ROOT)
    config = load_config(project, {"training.precision": "fp8", "lora.quantization.load_in_4bit": False})
    examples = read_hand_written(project, "pt")
    rows = training_rows(
        examples, open_encoder(MODEL), load_constitution(project.constitution), include_critique=False, max_length=2048
    )
    device = detect()
    plan = draft_plan(config, str(MODEL), read_shape(MODEL), count_workload(rows), device)
    setup = replace(
        plan.setup,
        gradient_checkpointing="none",
        packing=True,
        pack_length=8192,
        gpus=1,
        optimizer="adamw",
    )
    ready = time.time() - began
    plan = replace(plan, setup=setup)
    job = TrainJob(MODEL, TrainingSet(rows), config, plan, device, WORK / "checkpoints", WORK / "metrics.jsonl")
    result = train(job)
    lines = read_metrics(WORK / "metrics.jsonl")
    saved = sorted(p.name for p in (WORK / "checkpoints").iterdir())
    child = {
        "rows": len(rows),
        "tokens": result.tokens,
        "steps": result.steps,
        "planned_after_s": round(ready, 1),
        "train_s": result.seconds,
    }
    child |= {
        "tok_s_in_training": result.tokens_per_s,
        "loss": [lines[0]["loss"], lines[-1]["loss"]],
        "saved": saved,
    }
    print("CHILD", json.dumps(child), flush=True)


def other_tool(tool: str, *words: str) -> None:
    """TRL as it comes, or Unsloth, one warm-up epoch and one timed."""
    if tool == "unsloth":
        from unsloth import FastLanguageModel
    import torch
    from datasets import Dataset
    from transformers import AutoModelForCausalLM, AutoTokenizer, BitsAndBytesConfig, TrainerCallback
    from trl import SFTConfig, SFTTrainer

    four_bits, recompute = tool == "trl" or "nf4" in words, tool == "trl" or "gc" in words
    if tool == "unsloth":
        model, tokenizer = FastLanguageModel.from_pretrained(
            str(MODEL), max_seq_length=2048, dtype=torch.bfloat16, load_in_4bit=four_bits
        )
        model = FastLanguageModel.get_peft_model(
            model,
            r=RANK,
            lora_alpha=2 * RANK,
            lora_dropout=0,
            target_modules=MODULES,
            bias="none",
            random_state=0,
            use_gradient_checkpointing="unsloth" if recompute else False,
        )
    else:
        from peft import LoraConfig, get_peft_model, prepare_model_for_kbit_training

        tokenizer = AutoTokenizer.from_pretrained(MODEL)
        stored = BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_use_double_quant=True,
            bnb_4bit_compute_dtype=torch.bfloat16,
        )
        model = AutoModelForCausalLM.from_pretrained(
            MODEL, dtype=torch.bfloat16, quantization_config=stored, device_map={"": 0}
        )
        model = prepare_model_for_kbit_training(model, use_gradient_checkpointing=True)
        model = get_peft_model(
            model,
            LoraConfig(r=RANK, lora_alpha=2 * RANK, lora_dropout=0.0, target_modules=MODULES, task_type="CAUSAL_LM"),
        )
    ids = sequences()
    data = Dataset.from_dict({"input_ids": ids, "labels": ids, "attention_mask": [[1] * len(s) for s in ids]})
    batch = 8 if tool == "trl" else 4
    settings: dict[str, Any] = (
        {"packing": True} if tool == "unsloth" else {"dataset_kwargs": {"skip_prepare_dataset": True}}
    )
    arguments = SFTConfig(
        output_dir=str(WORK / tool),
        num_train_epochs=2,
        per_device_train_batch_size=batch,
        gradient_accumulation_steps=8 // batch,
        learning_rate=1e-4,
        bf16=True,
        optim="adamw_8bit",
        logging_steps=1,
        save_strategy="no",
        report_to="none",
        max_length=2048,
        gradient_checkpointing=recompute,
        dataset_num_proc=1,
        **settings,
    )
    times: list[float] = []

    class Clock(TrainerCallback):  # type: ignore[misc]
        def on_epoch_begin(self, *_: Any, **__: Any) -> None:
            torch.cuda.synchronize()
            times.append(time.time())

        on_epoch_end = on_epoch_begin

    trainer = SFTTrainer(
        model=model, processing_class=tokenizer, train_dataset=data, args=arguments, callbacks=[Clock()]
    )
    trainer.train()
    seconds, tokens = times[3] - times[2], sum(lengths())
    logs = [line for line in trainer.state.log_history if "loss" in line]
    report(
        mode=" ".join((tool, *words)),
        tok_s=round(tokens / seconds),
        rows=len(trainer.train_dataset),
        peak_gib=round(torch.cuda.max_memory_allocated() / 2**30, 2),
        first_epoch_s=round(times[1] - times[0], 1),
        model_tflops=round(tokens / seconds * FLOPS / 1e12),
        loss=[logs[0]["loss"], logs[-1]["loss"]],
        grad_norm=[logs[0].get("grad_norm"), logs[-1].get("grad_norm")],
    )


def main() -> None:
    mode, *words = sys.argv[1:]
    if mode == "make":
        make()
    elif mode == "noesis":
        noesis(*words)
    elif mode == "start":
        start()
    elif mode == "start-child":
        start_child(float(words[0]))
    elif mode in ("trl", "unsloth"):
        other_tool(mode, *words)
    else:
        raise SystemExit(__doc__)


if __name__ == "__main__":
    main()
