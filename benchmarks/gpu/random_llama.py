"""A model of Llama-3.1's shape with random weights, the sequences that the benchmarks here train on, RESULT lines."""

from __future__ import annotations

import json
import math
import os
import random
import shutil
import time
from concurrent.futures import ThreadPoolExecutor
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

MODEL = Path(os.environ.get("MODEL", "/dev/shm/llama8b"))
ROOT = Path(__file__).resolve().parents[2]
WORK = Path(os.environ.get("WORK", "/dev/shm/work"))
VOCABULARY, RANK = 128256, 64
MODULES = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
SIZES = {"8b": (4096, 14336, 32, 32), "70b": (8192, 28672, 80, 64)}  # hidden, intermediate, layers, heads
HIDDEN, INTERMEDIATE, ALL_LAYERS, HEADS = SIZES[os.environ.get("LLAMA", "8b")]
LAYERS, KEYS = int(os.environ.get("LAYERS", ALL_LAYERS)), 8 * 128
SHAPE = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": HIDDEN,
    "intermediate_size": INTERMEDIATE,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": HEADS,
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
PROJECTIONS = {  # rows, columns
    "self_attn.q_proj": (HIDDEN, HIDDEN),
    "self_attn.k_proj": (KEYS, HIDDEN),
    "self_attn.v_proj": (KEYS, HIDDEN),
    "self_attn.o_proj": (HIDDEN, HIDDEN),
    "mlp.gate_proj": (INTERMEDIATE, HIDDEN),
    "mlp.up_proj": (INTERMEDIATE, HIDDEN),
    "mlp.down_proj": (HIDDEN, INTERMEDIATE),
}
LINEAR = LAYERS * sum(rows * columns for rows, columns in PROJECTIONS.values())
ADAPTER = LAYERS * RANK * sum(rows + columns for rows, columns in PROJECTIONS.values())
FLOPS = (
    4 * (LINEAR + VOCABULARY * HIDDEN) + 6 * ADAPTER
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
    """Random weights of standard deviation 0.02, a file a layer; SmolLM2's tokenizer if none is named."""
    import torch
    from safetensors.torch import save_file

    from noesis.llm.hub import find_base

    MODEL.mkdir(parents=True, exist_ok=True)
    (MODEL / "config.json").write_text(json.dumps(SHAPE))
    given = os.environ.get("TOKENIZER")
    for file in (Path(given) if given else find_base("smollm2").path).iterdir():
        if file.name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
            shutil.copy(file, MODEL)
    ones, index = torch.ones(HIDDEN, dtype=torch.bfloat16), {}

    def write(i: int) -> None:
        """One file: a layer, or after the last layer what stands around them."""
        device = f"cuda:{i % torch.cuda.device_count()}"
        generator = torch.Generator(device).manual_seed(i)

        def weight(rows: int, columns: int) -> Any:
            drawn = torch.randn(rows, columns, device=device, dtype=torch.bfloat16, generator=generator)
            return (drawn * 0.02).cpu()

        layer = f"model.layers.{i}."
        if i < LAYERS:
            tensors = {f"{layer}{name}.weight": weight(*size) for name, size in PROJECTIONS.items()}
            tensors |= {f"{layer}{n}.weight": ones.clone() for n in ("input_layernorm", "post_attention_layernorm")}
        else:
            tensors = {f"{n}.weight": weight(VOCABULARY, HIDDEN) for n in ("model.embed_tokens", "lm_head")}
            tensors["model.norm.weight"] = ones.clone()
        name = f"model-{i:05}.safetensors"
        save_file(tensors, MODEL / name, metadata={"format": "pt"})
        index.update(dict.fromkeys(tensors, name))

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(write, range(LAYERS + 1)))
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
