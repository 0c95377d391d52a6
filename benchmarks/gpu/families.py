"""Models of the usual families, in their real sizes, with random weights, on one GPU: how fast they train and answer,
how much memory they take, and what the plan had said.

    python benchmarks/gpu/families.py train qwen2.5-1.5b          # words: bf16, nf4, fp8, plain, step8, measure
    python benchmarks/gpu/families.py answers qwen2.5-1.5b 64     # 64 conversations at once, 256 tokens each
    python benchmarks/gpu/families.py real smollm2 124            # 124 real prompts, as the Tribunal asks them
    python benchmarks/gpu/families.py list

`plain` trains on transformers' layers, as a model of an unknown family would. $MODELS (default /dev/shm/families) takes
the weights. Training is timed after its first eight steps, on the 192 sequences of gpu/throughput.py; tokens are
counted without padding. Each mode prints a RESULT line.
"""

from __future__ import annotations

import os
import random
import shutil
import sys
import time
from pathlib import Path
from typing import Any

from random_llama import RANK, ROOT, WORK, report, sequences

MODELS = Path(os.environ.get("MODELS", "/dev/shm/families"))


def _sizes(layers: int, hidden: int, intermediate: int, heads: int, kv: int, vocabulary: int) -> dict[str, Any]:
    return {
        "num_hidden_layers": layers,
        "hidden_size": hidden,
        "intermediate_size": intermediate,
        "num_attention_heads": heads,
        "num_key_value_heads": kv,
        "vocab_size": vocabulary,
        "max_position_embeddings": 32768,
    }


SHAPES: dict[str, dict[str, Any]] = {
    "smollm2-135m": {"model_type": "llama", "tie_word_embeddings": True, **_sizes(30, 576, 1536, 9, 3, 49152)},
    "qwen2.5-1.5b": {"model_type": "qwen2", "tie_word_embeddings": True, **_sizes(28, 1536, 8960, 12, 2, 151936)},
    "qwen2.5-7b": {"model_type": "qwen2", "tie_word_embeddings": False, **_sizes(28, 3584, 18944, 28, 4, 152064)},
    "qwen3-8b": {
        "model_type": "qwen3",
        "tie_word_embeddings": False,
        "head_dim": 128,
        **_sizes(36, 4096, 12288, 32, 8, 151936),
    },
    "gemma-3-4b": {
        "model_type": "gemma3_text",
        "head_dim": 256,
        "sliding_window": 1024,
        "query_pre_attn_scalar": 256,
        **_sizes(34, 2560, 10240, 8, 4, 262208),
    },
    "gemma-2-2b": {
        "model_type": "gemma2",
        "head_dim": 256,
        "query_pre_attn_scalar": 256,
        **_sizes(26, 2304, 9216, 8, 4, 256000),
    },
    "phi-3-mini": {"model_type": "phi3", "tie_word_embeddings": False, **_sizes(32, 3072, 8192, 32, 32, 32064)},
    "llama-3.1-8b": {
        "model_type": "llama",
        "tie_word_embeddings": False,
        "head_dim": 128,
        **_sizes(32, 4096, 14336, 32, 8, 128256),
    },
}


def make(name: str) -> Path:
    """The model's folder, written if it is not there."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    from noesis.core.libraries import quiet_libraries
    from noesis.llm.hub import find_model

    quiet_libraries()
    folder = MODELS / name
    if not (folder / "config.json").is_file():
        shape = dict(SHAPES[name])
        config = AutoConfig.for_model(shape.pop("model_type"), **shape, pad_token_id=0, bos_token_id=1, eos_token_id=2)
        torch.manual_seed(0)
        with torch.device("cuda"):
            model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
        model.save_pretrained(folder)
        for file in find_model("smollm2").path.glob("*token*"):  # for the trainer
            shutil.copy(file, folder)
        del model
        torch.cuda.empty_cache()
    return folder


def train(name: str, *words: str) -> None:
    """One epoch as the plan chose, beside the plan's own figures."""
    from noesis.core.config import load_config
    from noesis.core.device import detect
    from noesis.core.project import Project
    from noesis.llm.token_rows import TokenRow
    from noesis.planning.draft import draft_plan
    from noesis.planning.model_shapes import read_shape
    from noesis.run.metrics import read_metrics
    from noesis.training import trainer
    from noesis.training.backends import build_model
    from noesis.training.job import TrainingSet, TrainJob, count_workload
    from noesis.training.measure import measure_row

    folder, device = make(name), detect()
    precision = next((word for word in words if word in ("bf16", "nf4", "fp8")), "bf16")
    per_step = 8 if "step8" in words else 48
    overrides = {
        "lora.r": RANK,
        "lora.lora_alpha": 2 * RANK,
        "lora.lora_dropout": 0.0,
        "training.num_train_epochs": 1,
        "training.precision": precision,
        "training.per_device_train_batch_size": per_step,
        "training.gradient_accumulation_steps": 1,
        "training.lr_scheduler_type": "constant",
        "lora.quantization.load_in_4bit": precision == "nf4",
    }
    config = load_config(Project(ROOT), overrides)
    vocabulary = SHAPES[name]["vocab_size"]
    rows = [TokenRow([i % vocabulary for i in ids], [i % vocabulary for i in ids]) for ids in sequences()] * 2
    shape = read_shape(folder)
    plan = draft_plan(config, str(folder), shape, count_workload(rows), device)
    if "plain" in words:
        build_model.engine_refusal = lambda job: "asked for"
    measured = None
    if "measure" in words:  # as `noesis plan --measure` does
        began = time.time()
        row = measure_row(folder, config, plan, device)
        measured = {
            "tok_s": round(row.tokens / row.seconds),
            "row": row.tokens,
            "took_s": round(time.time() - began, 1),
        }
    shutil.rmtree(WORK, ignore_errors=True)
    began = time.time()
    job = TrainJob(folder, TrainingSet(rows), config, plan, device, WORK / "checkpoints", WORK / "metrics.jsonl")
    result = trainer.train(job)
    wall = time.time() - began
    lines = read_metrics(WORK / "metrics.jsonl")
    clock = [line["tokens"] / line["tokens_per_s"] for line in lines]
    warm = min(8, len(lines) // 2)
    rate = (lines[-1]["tokens"] - lines[warm - 1]["tokens"]) / (clock[-1] - clock[warm - 1])
    flops = 4 * (shape.linear_weights + shape.embedding_weights) + 6 * plan.adapter_parameters
    report(
        mode=" ".join(("train", name, *words)),
        tok_s=round(rate),
        planned_tok_s=round(plan.tokens_per_s),
        measured_before=measured,
        peak_gib=round(max(line["peak_memory_bytes"] for line in lines) / 2**30, 2),
        planned_gib=round(plan.memory_bytes / 2**30, 2),
        model_tflops=round(rate * flops / 1e12),
        setup=(result.smaller_plan or plan).setup.to_json(),
        out_of_memory=result.smaller_plan is not None,
        first_steps_s=round(clock[warm - 1], 2),
        wall_s=round(wall, 1),
        train_s=result.seconds,
        loss=[round(lines[i]["loss"], 4) for i in (0, -1)],
    )


def answers(name: str, rows: int = 64, tokens: int = 256) -> None:
    """Decoding on the device, prompts of 30 to 300 random tokens; nothing ends early."""
    import torch

    from noesis.llm.causal_model import load_causal_model
    from noesis.llm.generation.sampling import sampling_noise
    from noesis.llm.generation.static_decoder import decode_statically

    model = load_causal_model(make(name), dtype=torch.bfloat16).cuda().eval()
    draw = random.Random(0)
    prompts = [[draw.randrange(10, 30000) for _ in range(draw.randrange(30, 300))] for _ in range(rows)]
    for attempt in ("first", "second"):
        torch.cuda.synchronize()
        began = time.perf_counter()
        noise = sampling_noise(list(range(rows)), tokens)
        found = decode_statically(model, prompts, max_tokens=tokens, temperature=0.8, noise=noise, stops=[2])
        seconds = time.perf_counter() - began
        report(
            mode=f"answers {name} {rows}, {attempt}",
            seconds=round(seconds, 2),
            answers_s=round(rows / seconds, 2),
            tok_s=round(sum(map(len, found)) / seconds),
            peak_gib=round(torch.cuda.max_memory_allocated() / 2**30, 2),
        )


def real(name: str, count: int = 124) -> None:
    """Prompts of the project's examples, answered by a real model, at most 256 tokens each."""
    import torch

    from noesis.constitution.dialogue import opening_messages
    from noesis.constitution.document import load_constitution
    from noesis.core.project import Project
    from noesis.dataset.load import read_hand_written
    from noesis.llm.causal_model import load_causal_model
    from noesis.llm.generation.batch import generate_batch
    from noesis.llm.hub import find_model
    from noesis.llm.tokenizer import load_tokenizer

    project, folder = Project(ROOT), find_model(name).path
    constitution, tokenizer = load_constitution(project.constitution), load_tokenizer(folder)
    examples = read_hand_written(project, "en")[:count]
    conversations = [opening_messages(constitution, "en", example.prompt) for example in examples]
    model = load_causal_model(folder, dtype=torch.bfloat16).cuda().eval()
    for attempt in ("first", "second"):
        began = time.perf_counter()
        texts = generate_batch(model, tokenizer, conversations, max_tokens=256)
        seconds = time.perf_counter() - began
        tokens = sum(len(tokenizer(text)["input_ids"]) for text in texts)
        report(
            mode=f"real {name} {len(texts)}, {attempt}",
            seconds=round(seconds, 2),
            answers_s=round(len(texts) / seconds, 2),
            tok_s=round(tokens / seconds),
            sample=texts[0][:200],
        )


def main() -> None:
    mode, *words = sys.argv[1:] or ["help"]
    if mode == "train":
        train(*words)
    elif mode == "answers":
        answers(words[0], *map(int, words[1:]))
    elif mode == "real":
        real(words[0], *map(int, words[1:]))
    elif mode == "list":
        print("\n".join(SHAPES))
    else:
        raise SystemExit(__doc__)


if __name__ == "__main__":
    main()
