"""The tensors of a release, one at a time: base weights as the adapter was trained against them, plus the adapter's update.

An adapter trained on an NF4 base was fitted to the dequantised NF4 weights, not to the originals; so those are what it is merged into.
Everything is planned and checked first (each adapter tensor used exactly once, shapes, rank); then the sums are made in float32.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from noesis.config import Quantization
from noesis.errors import ModelError

PREFIX = "base_model.model."
UNSUPPORTED = ("use_dora", "modules_to_save", "rank_pattern", "alpha_pattern", "layers_to_transform", "lora_bias", "fan_in_fan_out")


@dataclass(frozen=True)
class AdapterFile:
    """A LoRA adapter on disk, checked."""

    path: Path
    r: int
    scale: float  # lora_alpha / r, or / sqrt(r) for rsLoRA
    alpha: float
    targets: dict[str, tuple[str, str]]  # base weight's name → names of its A (r, in) and B (out, r)


def read_adapter(folder: Path) -> AdapterFile:
    """Read an adapter's plan without its tensors.

    Raises:
        ModelError: no safetensors, a kind of adapter that can't be merged here, or an A without its B.
    """
    from safetensors import SafetensorError, safe_open

    try:
        settings = json.loads((folder / "adapter_config.json").read_text(encoding="utf-8"))
        with safe_open(folder / "adapter_model.safetensors", framework="pt") as f:
            names = set(f.keys())
    except FileNotFoundError as error:
        raise ModelError(f"{folder} is no adapter: {error.filename} is missing (only safetensors are read)") from None
    except (ValueError, SafetensorError) as error:
        raise ModelError(f"{folder} is damaged: {error}") from None
    if settings.get("peft_type") != "LORA":
        raise ModelError(f"{folder} is an adapter of type {settings.get('peft_type')!r}; only LORA can be merged")
    for key in UNSUPPORTED:
        if settings.get(key):
            raise ModelError(f"{folder}: adapters with {key} can't be merged here; merge it with peft's merge_and_unload()")
    r, alpha = int(settings["r"]), float(settings["lora_alpha"])
    targets = {}
    for name in sorted(names):
        if name.endswith(".lora_A.weight"):
            b = name.replace(".lora_A.", ".lora_B.")
            if b not in names:
                raise ModelError(f"{folder}: {name} has no {b}")
            targets[name.removeprefix(PREFIX).replace(".lora_A.weight", ".weight")] = (name, b)
    unused = names - {n for pair in targets.values() for n in pair}
    if unused:
        raise ModelError(f"{folder}: the tensor {sorted(unused)[0]!r} is no part of a LoRA pair; it would be lost in a merge")
    return AdapterFile(folder, r, alpha / (r**0.5 if settings.get("use_rslora") else r), alpha, targets)


def shards(base: Path) -> list[Path]:
    """The safetensors files of a model folder, every one that its index names.

    Raises:
        ModelError: one is missing.
    """
    index = base / "model.safetensors.index.json"
    if not index.is_file():
        files = sorted(base.glob("*.safetensors"))
        if not files:
            raise ModelError(f"{base} holds no .safetensors file")
        return files
    named = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
    for name in named:
        if not (base / name).is_file():
            raise ModelError(f"{base / name} is missing, though {index.name} names it: fetch the model again")
    return [base / name for name in named]


def tensors(file: Path, quantization: Quantization | None, dtype: str, adapter: AdapterFile | None) -> Iterator[tuple[str, Any, bool]]:
    """The tensors of one shard as they go into a release.

    Args:
        quantization: how the base was stored in training; None or unquantised: weights as they are.
        dtype: the type in which the dequantised weights were used (`bfloat16`, `float32`).
        adapter: added where it has a target.

    Yields:
        (name, tensor of the shard's own dtype and shape, whether the adapter was added).
    """
    from safetensors import safe_open

    deltas = safe_open(adapter.path / "adapter_model.safetensors", framework="pt") if adapter else None
    with safe_open(file, framework="pt") as f:
        for name in f.keys():  # noqa: SIM118  (not a dict)
            weight = f.get_tensor(name)
            stored = weight.dtype
            if quantization is not None and quantization.load_in_4bit and _is_quantised(name, weight):
                weight = round_trip(weight, quantization, dtype)
            pair = adapter.targets.get(name) if adapter else None
            if pair and deltas and adapter:
                a, b = deltas.get_tensor(pair[0]).float(), deltas.get_tensor(pair[1]).float()
                if a.shape != (adapter.r, weight.shape[1]) or b.shape != (weight.shape[0], adapter.r):
                    raise ModelError(
                        f"{name}: the adapter's {tuple(b.shape)} × {tuple(a.shape)} does not fit the base's {tuple(weight.shape)}; it is of another base"
                    )
                weight = weight.float() + adapter.scale * (b @ a)
            yield name, weight.to(stored).contiguous(), bool(pair)


def round_trip(weight: Any, quantization: Quantization, dtype: str) -> Any:
    """`weight` (out, in) through bitsandbytes' 4-bit storage and back, exactly as a forward pass in training sees it."""
    import torch
    from bitsandbytes.functional import dequantize_4bit, quantize_4bit

    stored, state = quantize_4bit(
        weight.to(getattr(torch, dtype)).contiguous(),
        blocksize=64,
        compress_statistics=quantization.bnb_4bit_use_double_quant,
        quant_type=quantization.bnb_4bit_quant_type,
    )
    return dequantize_4bit(stored, state)


def _is_quantised(name: str, weight: Any) -> bool:
    """bitsandbytes replaces the linear layers inside the decoder; embeddings, norms and the output layer stay."""
    return weight.ndim == 2 and ".layers." in name and name.endswith("_proj.weight")
