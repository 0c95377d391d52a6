"""Tokens/s, peak memory and time to the saved adapter of LoRA training on a Llama-3.1-8B-shaped model with random
weights, beside other tools.

    python benchmarks/gpu/throughput.py make
        # the model into $MODEL (default /dev/shm/llama8b), and the card's own rates
    python benchmarks/gpu/throughput.py noesis fp8
        # also bf16, nf4; words after it: drop (LoRA dropout 0.05), step8, cards=2
    python benchmarks/gpu/throughput.py start
        # the project's 124 examples, 3 epochs: process start to saved adapter
    python benchmarks/gpu/throughput.py trl                   # TRL's SFTTrainer, NF4, gradient checkpointing, batch 8
    python benchmarks/gpu/throughput.py unsloth nf4 gc
        # or: unsloth nf4, unsloth bf16; packed, batch 4 of 2048; in its own environment

Every mode trains on the same 192 sequences (log-normal lengths, median 520, clipped to 64..2048); padding is never
counted. Each prints a RESULT line with loss and gradient norm beside the speed. $TOKENIZER: a folder with tokenizer
files, needed by `start` and the other tools.
"""

from __future__ import annotations

import json
import math
import os
import random
import shutil
import subprocess
import sys
import time
from dataclasses import replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

MODEL = Path(os.environ.get("MODEL", "/dev/shm/llama8b"))
ROOT = Path(__file__).resolve().parents[2]
WORK = Path(os.environ.get("WORK", "/dev/shm/work"))
VOCABULARY, RANK = 128256, 64
MODULES = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
SHAPE = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "head_dim": 128,
    "vocab_size": VOCABULARY,
    "max_position_embeddings": 131072,
    "rms_norm_eps": 1e-5,
    "tie_word_embeddings": False,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 2,
    "hidden_act": "silu",
    "dtype": "bfloat16",
    "rope_parameters": {
        "rope_type": "llama3",
        "rope_theta": 500000.0,
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
    },
}
LINEAR = 32 * (2 * 4096 * 4096 + 2 * 4096 * 1024 + 3 * 4096 * 14336)
ADAPTER = 32 * RANK * (2 * (4096 + 4096) + 2 * (4096 + 1024) + 3 * (4096 + 14336))
FLOPS = (
    4 * (LINEAR + VOCABULARY * 4096) + 6 * ADAPTER
)  # a token, LoRA on a frozen base, attention's own products left out


def lengths() -> list[int]:
    """Tokens of the 192 sequences."""
    draw = random.Random(0)
    return [max(64, min(2048, int(draw.lognormvariate(math.log(520), 0.55)))) for _ in range(192)]


def sequences() -> list[list[int]]:
    draw = random.Random(1)
    return [[draw.randrange(10, 49000) for _ in range(n)] for n in lengths()]


def report(**values: Any) -> None:
    """Print one RESULT line with the versions that gave it."""
    import torch

    values["card"] = torch.cuda.get_device_name() if torch.cuda.is_available() else "none"
    values["versions"] = {}
    for name in ("torch", "transformers", "trl", "peft", "bitsandbytes", "triton", "unsloth"):
        try:
            values["versions"][name] = version(name)
        except PackageNotFoundError:
            continue
    print("RESULT", json.dumps(values), flush=True)


def make() -> None:
    """Random weights of standard deviation 0.02, a file a layer."""
    import torch
    from safetensors.torch import save_file

    MODEL.mkdir(parents=True, exist_ok=True)
    (MODEL / "config.json").write_text(json.dumps(SHAPE))
    if "TOKENIZER" in os.environ:
        for file in Path(os.environ["TOKENIZER"]).iterdir():
            if file.name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
                shutil.copy(file, MODEL)
    torch.manual_seed(0)

    def weight(rows: int, columns: int) -> Any:
        return (torch.randn(rows, columns, device="cuda", dtype=torch.bfloat16) * 0.02).cpu()

    index = {}
    ones = torch.ones(4096, dtype=torch.bfloat16)
    for i in range(33):
        layer = f"model.layers.{i}."
        if i < 32:
            tensors = {
                layer + "input_layernorm.weight": ones.clone(),
                layer + "post_attention_layernorm.weight": ones.clone(),
            }
            for name, rows, columns in (
                ("self_attn.q_proj", 4096, 4096),
                ("self_attn.k_proj", 1024, 4096),
                ("self_attn.v_proj", 1024, 4096),
                ("self_attn.o_proj", 4096, 4096),
                ("mlp.gate_proj", 14336, 4096),
                ("mlp.up_proj", 14336, 4096),
                ("mlp.down_proj", 4096, 14336),
            ):
                tensors[f"{layer}{name}.weight"] = weight(rows, columns)
        else:
            tensors = {
                "model.embed_tokens.weight": weight(VOCABULARY, 4096),
                "lm_head.weight": weight(VOCABULARY, 4096),
                "model.norm.weight": ones.clone(),
            }
        name = f"model-{i:05}.safetensors"
        save_file(tensors, MODEL / name, metadata={"format": "pt"})
        index |= dict.fromkeys(tensors, name)
    (MODEL / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": index}))
    a, b = (torch.randn(8192, 8192, device="cuda", dtype=torch.bfloat16) for _ in range(2))
    rates = {}
    scale, other = torch.ones(8192, 1, device="cuda"), torch.ones(1, 8192, device="cuda")
    a8, b8 = a.to(torch.float8_e4m3fn), b.to(torch.float8_e4m3fn)
    for name, product in (
        ("bf16", lambda: a @ b),
        ("fp8_row_scales", lambda: torch._scaled_mm(a8, b8.T, scale, other, out_dtype=torch.bfloat16)),
        (
            "fp8_row_scales_fast_accumulation",
            lambda: torch._scaled_mm(a8, b8.T, scale, other, out_dtype=torch.bfloat16, use_fast_accum=True),
        ),
    ):
        for _ in range(3):
            product()
        torch.cuda.synchronize()
        began = time.perf_counter()
        for _ in range(20):
            product()
        torch.cuda.synchronize()
        rates[name] = round(20 * 2 * 8192**3 / (time.perf_counter() - began) / 1e12)
    report(mode="matmul_tflops", **rates)


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
    per_step = 8 if "step8" in words else 96
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
    plan = draft_plan(config, str(MODEL), read_shape(MODEL), count_workload(rows), device)
    optimizer = "adamw_8bit" if (precision, recompute) == ("nf4", "full") else "adamw"
    setup = Setup("noesis", precision, "bfloat16", recompute, True, 8192, per_step, 1, optimizer, cards)  # type: ignore[arg-type]
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
        recompute=recompute,
        optimizer=optimizer,
        cards=cards,
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
