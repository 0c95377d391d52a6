"""The tensors of a release, one at a time: base weights as the adapter was trained against them, plus the adapter's update.

An adapter trained on an NF4 base was fitted to the dequantised NF4 weights, not to the originals; so those are what it is merged into.
A file is opened for each tensor anew and closed again: what was read does not stay mapped, and memory is that of one tensor.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from noesis.core.config import Quantization
from noesis.core.errors import ModelError

PREFIX = "base_model.model."
UNSUPPORTED = (
    "use_dora",
    "modules_to_save",
    "rank_pattern",
    "alpha_pattern",
    "layers_to_transform",
    "lora_bias",
    "fan_in_fan_out",
)
TORCH = {"F32": "float32", "F16": "float16", "BF16": "bfloat16"}  # safetensors' names of the types that weights come in


@dataclass(frozen=True)
class StoredTensor:
    """Where one tensor of a model lies."""

    file: Path
    name: str
    dtype: str  # safetensors' name: BF16, F16, F32
    shape: tuple[int, ...]

    @property
    def size(self) -> int:
        """Bytes."""
        numbers = 1
        for n in self.shape:
            numbers *= n
        return numbers * (4 if self.dtype == "F32" else 2)


@dataclass(frozen=True)
class AdapterFile:
    """A LoRA adapter on disk, checked."""

    path: Path
    r: int
    scale: float  # lora_alpha / r, or / sqrt(r) for rsLoRA
    alpha: float
    targets: dict[str, tuple[str, str]]  # base weight's name → names of its A (r, in) and B (out, r)
    shapes: dict[str, tuple[int, ...]]  # of each of its tensors


def read_adapter(folder: Path) -> AdapterFile:
    """Read an adapter's plan without its tensors.

    Raises:
        ModelError: no safetensors, a kind of adapter that can't be merged here, or an A without its B.
    """
    from safetensors import SafetensorError, safe_open

    try:
        settings = json.loads((folder / "adapter_config.json").read_text(encoding="utf-8"))
        with safe_open(folder / "adapter_model.safetensors", framework="pt") as f:
            shapes = {name: tuple(f.get_slice(name).get_shape()) for name in f.keys()}  # noqa: SIM118  (not a dict)
    except FileNotFoundError as error:
        raise ModelError(f"{folder} is no adapter: {error.filename} is missing (only safetensors are read)") from None
    except (ValueError, SafetensorError) as error:
        raise ModelError(f"{folder} is damaged: {error}") from None
    if settings.get("peft_type") != "LORA":
        raise ModelError(f"{folder} is an adapter of type {settings.get('peft_type')!r}; only LORA can be merged")
    for key in UNSUPPORTED:
        if settings.get(key):
            raise ModelError(
                f"{folder}: adapters with {key} can't be merged here; merge it with peft's merge_and_unload()"
            )
    r, alpha = int(settings["r"]), float(settings["lora_alpha"])
    targets = {}
    for name in sorted(shapes):
        if name.endswith(".lora_A.weight"):
            b = name.replace(".lora_A.", ".lora_B.")
            if b not in shapes:
                raise ModelError(f"{folder}: {name} has no {b}")
            targets[name.removeprefix(PREFIX).replace(".lora_A.weight", ".weight")] = (name, b)
    unused = shapes.keys() - {n for pair in targets.values() for n in pair}
    if unused:
        raise ModelError(f"{folder}: the tensor {min(unused)!r} is no part of a LoRA pair; it would be lost in a merge")
    return AdapterFile(folder, r, alpha / (r**0.5 if settings.get("use_rslora") else r), alpha, targets, shapes)


def require_matching_base(adapter: AdapterFile, base: dict[str, StoredTensor], place: Path) -> None:
    """Every pair of the adapter has one weight of the base, of its shape.

    Raises:
        ModelError: naming the first that has not; it is of another base.
    """
    for weight, (a, b) in adapter.targets.items():
        if weight not in base:
            raise ModelError(
                f"the adapter has an update for {weight!r}, which {place} does not have: it was trained on another base"
            )
        shape, found = base[weight].shape, (adapter.shapes[b], adapter.shapes[a])
        if len(shape) != 2 or found != ((shape[0], adapter.r), (adapter.r, shape[1])):
            raise ModelError(
                f"{weight}: the adapter's {found[0]} × {found[1]} of rank {adapter.r} does not fit the base's {shape}: it was trained on another base"
            )


def weight_files(base: Path) -> list[Path]:
    """The safetensors files of a model folder, every one that its index names.

    Raises:
        ModelError: one is missing.
    """
    index = base / "model.safetensors.index.json"
    if index.is_file():
        try:
            named = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
        except (ValueError, KeyError, AttributeError, TypeError):
            raise ModelError(f"{index} is damaged: fetch the model again") from None
        if any(Path(name).name != name for name in named):
            raise ModelError(
                f"{index} names a file outside its folder: {next(n for n in named if Path(n).name != n)!r}"
            )
        why = f"{index.name} names it"
    else:
        named = sorted(f.name for f in base.glob("*.safetensors") if f.name != "adapter_model.safetensors")
        if not named:
            if (base / "adapter_model.safetensors").is_file():
                raise ModelError(f"{base} holds an adapter, not a model: merge it first, or give --adapter")
            raise ModelError(f"{base} holds no .safetensors file")
        numbered = re.fullmatch(r"(.+)-\d{5}-of-(\d{5})\.safetensors", named[0])
        if numbered:
            named = [
                f"{numbered.group(1)}-{i + 1:05d}-of-{numbered.group(2)}.safetensors"
                for i in range(min(int(numbered.group(2)), 10_000))
            ]
        why = "the others' names count it"
    for name in named:
        if not (base / name).is_file():
            raise ModelError(f"{base / name} is missing, though {why}: fetch the model again")
    return [base / name for name in named]


def list_tensors(model: Path) -> dict[str, StoredTensor]:
    """Every tensor of a model folder, from the files' headers alone, in the files' order.

    Raises:
        ModelError: a file is cut short or foreign, a tensor is there twice, or of a type that no weight comes in.
    """
    from safetensors import SafetensorError, safe_open

    found: dict[str, StoredTensor] = {}
    for file in weight_files(model):
        try:
            with safe_open(file, framework="pt") as f:
                for name in f.keys():  # noqa: SIM118  (not a dict)
                    part = f.get_slice(name)
                    if name in found:
                        raise ModelError(
                            f"{name!r} is in {found[name].file.name} and in {file.name}: fetch the model again"
                        )
                    if part.get_dtype() not in TORCH:
                        raise ModelError(
                            f"{file.name}: {name!r} is stored as {part.get_dtype()}: only {', '.join(TORCH)} can be released"
                        )
                    found[name] = StoredTensor(file, name, part.get_dtype(), tuple(part.get_shape()))
        except SafetensorError as error:
            raise ModelError(f"{file} is damaged or cut short ({error}): fetch the model again") from None
    return found


def read_tensor(stored: StoredTensor, rows: slice | None = None) -> Any:
    """The tensor as it is stored, or some of its rows."""
    from safetensors import safe_open

    with safe_open(stored.file, framework="pt") as f:
        return f.get_tensor(stored.name) if rows is None else f.get_slice(stored.name)[rows]


def was_quantised(stored: StoredTensor, quantization: Quantization | None) -> bool:
    """Whether training held this tensor in 4 bits: bitsandbytes replaces the decoder's linear layers; embeddings, norms and the output stay."""
    if quantization is None or not quantization.load_in_4bit:
        return False
    return len(stored.shape) == 2 and ".layers." in stored.name and stored.name.endswith("_proj.weight")


def read_as_trained(stored: StoredTensor, quantization: Quantization | None, dtype: str) -> Any:
    """The weight as training multiplied with it: dequantised where it was quantised, in the type it was used in."""
    weight = read_tensor(stored)
    return (
        round_trip(weight, quantization, dtype)
        if quantization is not None and was_quantised(stored, quantization)
        else weight
    )


def lora_update(adapter: AdapterFile, weight: str) -> Any:
    """The adapter's update of a weight: scale · B A, float32 (out, in)."""
    from safetensors import safe_open

    a, b = adapter.targets[weight]
    with safe_open(adapter.path / "adapter_model.safetensors", framework="pt") as f:
        return (f.get_tensor(b).float() @ f.get_tensor(a).float()).mul_(adapter.scale)


def iter_trained_weights(
    base: Path, quantization: Quantization | None, dtype: str, adapter: AdapterFile | None, *, exact: bool = False
) -> Iterator[tuple[str, Any]]:
    """(name, tensor) of the base as trained against, with the adapter's updates added in float32.

    Args:
        quantization: how the base was stored in training; None or unquantised: weights as they are.
        dtype: the type in which the dequantised weights were used (`bfloat16`, `float32`).
        exact: not rounded to the type that the files are stored in.
    """
    found = list_tensors(base)
    if adapter:
        require_matching_base(adapter, found, base)
    for name, stored in found.items():
        weight = read_as_trained(stored, quantization, dtype)
        if adapter and name in adapter.targets:
            weight = weight.float() + lora_update(adapter, name)
        yield name, weight if exact else cast_to(weight, stored.dtype)


def cast_to(weight: Any, dtype: str) -> Any:
    """`weight` in a stored type, its numbers one after another."""
    import torch

    return weight.to(getattr(torch, TORCH[dtype])).contiguous()


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
