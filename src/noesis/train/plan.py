"""`noesis plan`: what will be trained, on which device, in which precision; tokens exactly; time and memory as expected.

Torch-free. Time comes from a FLOP count and a rate: on a processor measured for 0.15 s, on a card from its data sheet. LoRA on a frozen
base costs 4 FLOPs a token for each frozen weight (forward, and backward to the activations) and 6 for each adapter weight.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from noesis.config import Config
from noesis.constitution.conversation import Encoded
from noesis.device import Device, measure_cpu_flops
from noesis.errors import ModelError, TrainingError

# What a training step reaches of the rate that is known beforehand. The processor's was fitted to SmolLM2 on 2 cores (AMD EPYC
# with AVX512-bf16: 178 tokens/s at rank 64 where numpy reached 165 GFLOP/s in single precision).
CPU_EFFICIENCY = {True: 0.70, False: 0.35}  # with and without bfloat16 in hardware
GPU_EFFICIENCY = 0.30
GPU_BF16_FLOPS = {"H200": 790e12, "H100": 790e12, "A100": 312e12, "L40S": 181e12, "A10": 70e12, "L4": 60e12, "T4": 30e12, "4090": 165e12}
START_SECONDS = 25.0  # imports, loading and quantising the base, the first step's warm-up
RUNTIME_BYTES = 1.6e9  # Python, torch, transformers, and what the allocator keeps


@dataclass(frozen=True)
class Shape:
    """A Llama-like model's size, from its config.json."""

    layers: int
    hidden: int
    intermediate: int
    heads: int
    kv_heads: int
    head_dim: int
    vocabulary: int
    tied: bool

    def linear(self) -> dict[str, tuple[int, int]]:
        """(inputs, outputs) of each projection of one layer."""
        q, kv = self.heads * self.head_dim, self.kv_heads * self.head_dim
        h, i = self.hidden, self.intermediate
        return {"q_proj": (h, q), "k_proj": (h, kv), "v_proj": (h, kv), "o_proj": (q, h), "gate_proj": (h, i), "up_proj": (h, i), "down_proj": (i, h)}

    @property
    def linear_weights(self) -> int:
        return self.layers * sum(a * b for a, b in self.linear().values())

    @property
    def embedding_weights(self) -> int:
        return self.vocabulary * self.hidden

    def adapter_weights(self, r: int, modules: tuple[str, ...]) -> int:
        return self.layers * sum(r * (a + b) for name, (a, b) in self.linear().items() if name in modules)


@dataclass(frozen=True)
class Plan:
    """What a run will do and what it is expected to take."""

    model: str
    parameters: int
    adapter_parameters: int
    r: int
    precision: str
    device: dict[str, Any]
    rows: int
    tokens_per_epoch: int
    trained_tokens_per_epoch: int
    longest_row: int
    epochs: int
    micro_batch: int  # rows at a time
    accumulation: int  # micro-batches in a step of the optimizer
    steps: int
    tokens_per_s: float
    seconds: float
    memory_bytes: float

    def as_json(self) -> dict[str, Any]:
        return asdict(self)


def read_shape(folder: Path) -> Shape:
    """The shape of the model in `folder`.

    Raises:
        ModelError: config.json is missing or describes no Llama-like model.
    """
    try:
        raw = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        heads, hidden = int(raw["num_attention_heads"]), int(raw["hidden_size"])
        return Shape(
            layers=int(raw["num_hidden_layers"]),
            hidden=hidden,
            intermediate=int(raw["intermediate_size"]),
            heads=heads,
            kv_heads=int(raw.get("num_key_value_heads") or heads),
            head_dim=int(raw.get("head_dim") or hidden // heads),
            vocabulary=int(raw["vocab_size"]),
            tied=bool(raw.get("tie_word_embeddings", False)),
        )
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ModelError(f"{folder / 'config.json'} does not describe a Llama-like model: {error!r}") from None


def make_plan(config: Config, model: str, shape: Shape, rows: list[Encoded], device: Device) -> Plan:
    """The plan of one run.

    Raises:
        TrainingError: it does not fit into the device's memory; the message says what would.
    """
    per_step = config.training.per_device_train_batch_size * config.training.gradient_accumulation_steps
    # On a processor one row at a time wastes nothing on padding and is as fast; the optimizer's step is the same.
    micro = 1 if device.kind == "cpu" else config.training.per_device_train_batch_size
    accumulation = -(-per_step // micro)
    tokens = sum(len(row.input_ids) for row in rows)
    longest = max(len(row.input_ids) for row in rows)
    adapter = shape.adapter_weights(config.lora.r, config.lora.target_modules)
    rate = tokens_per_second(shape, adapter, device)
    steps_per_epoch = -(-len(rows) // per_step)
    plan = Plan(
        model=model,
        parameters=shape.linear_weights + shape.embedding_weights * (1 if shape.tied else 2),
        adapter_parameters=adapter,
        r=config.lora.r,
        precision=precision(config, device),
        device=device.as_json(),
        rows=len(rows),
        tokens_per_epoch=tokens,
        trained_tokens_per_epoch=sum(row.trained for row in rows),
        longest_row=longest,
        epochs=config.training.num_train_epochs,
        micro_batch=micro,
        accumulation=accumulation,
        steps=steps_per_epoch * config.training.num_train_epochs,
        tokens_per_s=round(rate, 1),
        seconds=round(START_SECONDS + tokens * config.training.num_train_epochs / rate, 1),
        memory_bytes=round(memory_bytes(config, shape, adapter, micro * longest)),
    )
    if plan.memory_bytes > device.memory_bytes:
        raise TrainingError(
            f"not enough memory: the plan needs {plan.memory_bytes / 1e9:.1f} GB and {device.name} has {device.memory_bytes / 1e9:.1f} GB free; "
            "in training_config.yaml set per_device_train_batch_size: 1 and gradient_accumulation_steps: 8, lower max_length, or choose a smaller --model"
        )
    return plan


def precision(config: Config, device: Device) -> str:
    """How the frozen base is stored and computed, in words."""
    store = config.lora.quantization.bnb_4bit_quant_type if config.lora.quantization.load_in_4bit else "unquantised"
    return f"{store} base, {compute_dtype(config, device)} arithmetic, float32 adapter"


def compute_dtype(config: Config, device: Device) -> str:
    """The arithmetic's type: as configured, but float32 where bfloat16 would only be emulated."""
    wanted = config.lora.quantization.bnb_4bit_compute_dtype
    return "float32" if device.kind == "cpu" and (wanted == "float16" or not device.bf16) else wanted


def tokens_per_second(shape: Shape, adapter: int, device: Device) -> float:
    """Expected training rate, tokens of the whole row (prompt and answer) a second."""
    flops_per_token = 4 * (shape.linear_weights + shape.embedding_weights) + 6 * adapter
    if device.kind == "cpu":
        return measure_cpu_flops() * CPU_EFFICIENCY[device.bf16] / flops_per_token
    known = next((rate for name, rate in GPU_BF16_FLOPS.items() if name in device.name), 50e12)
    return known * GPU_EFFICIENCY / flops_per_token


def memory_bytes(config: Config, shape: Shape, adapter: int, tokens: int) -> float:
    """Expected peak, bytes: base, adapter with gradients and Adam's two moments, activations of `tokens` tokens, runtime."""
    base = shape.linear_weights * (0.52 if config.lora.quantization.load_in_4bit else 2) + shape.embedding_weights * (2 if shape.tied else 4)
    # Kept for the backward pass, per token and layer: about 14 vectors of the hidden and 6 of the intermediate width in bfloat16, and
    # the adapter's float32 copies of its inputs (7 projections).
    activations = tokens * shape.layers * (2 * (14 * shape.hidden + 6 * shape.intermediate) + 4 * (6 * shape.hidden + shape.intermediate))
    scores = shape.layers * shape.heads * tokens**2 * 10 if tokens <= 1024 else 0  # plain attention keeps its matrices
    logits = min(tokens, 1024) * shape.vocabulary * 4 * 2
    return RUNTIME_BYTES + base + adapter * 16 + activations + scores + logits


def choose_for_demo(config: Config, shape: Shape, rows: list[Encoded], device: Device) -> tuple[int, int]:
    """(rank, epochs) for `noesis demo`: the largest rank whose single epoch fits the time, then as many epochs as fit."""
    demo = config.training.demo
    budget = demo.train_minutes * 60
    tokens = sum(len(row.input_ids) for row in rows)

    def seconds(r: int, epochs: int) -> float:
        return START_SECONDS + tokens * epochs / tokens_per_second(shape, shape.adapter_weights(r, config.lora.target_modules), device)

    r = next((r for r in demo.r if seconds(r, 1) <= budget), min(demo.r))
    epochs = max((e for e in range(1, demo.max_epochs + 1) if seconds(r, e) <= budget), default=1)
    return r, epochs
