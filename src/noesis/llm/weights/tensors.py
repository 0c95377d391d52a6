"""Model weights from safetensors files, one tensor at a time: the base as the adapter was trained against it, plus the
adapter's update.

An adapter trained on an NF4 base was fitted to the dequantised NF4 weights, not to the originals, so those are what it
is merged into. A file is opened for each tensor and closed again, so nothing stays mapped and memory is that
of one tensor.
"""

from __future__ import annotations

import math
import re
from collections.abc import Container, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from noesis.core.config import Quantization
from noesis.core.errors import ModelError
from noesis.core.files import files_in
from noesis.core.i18n import _
from noesis.core.jsonl import read_json_file
from noesis.llm.model_config import check_adapter_settings
from noesis.llm.weights.rounding import TORCH_TYPES, cast_to, rounded_sum

ADAPTER_WEIGHTS, WHOLE, INDEX = "adapter_model.safetensors", "model.safetensors", "model.safetensors.index.json"
PEFT_PREFIX = "base_model.model."
UNSUPPORTED = (
    "use_dora",
    "modules_to_save",
    "rank_pattern",
    "alpha_pattern",
    "layers_to_transform",
    "lora_bias",
    "fan_in_fan_out",
    "exclude_modules",
    "layers_pattern",
    "layer_replication",
    "target_parameters",
    "trainable_token_indices",
    "use_qalora",
    "use_bdlora",
    "alora_invocation_tokens",
    "arrow_config",
    "kasa_config",
    "megatron_config",  # PEFT would import whatever module `megatron_core` names
    "monteclora_config",
    "velora_config",
)
# What older checkpoints also hold and no loader reads: it is computed from config.json.
BUFFERS = re.compile(
    r"(?:.{0,200}\.)?(?:rotary_emb\.(?:inv_freq|original_inv_freq|cos_cached|sin_cached)|rope\.freqs|position_ids"
    r"|(?:attn|attention)\.(?:masked_)?bias)"
)
MAX_SHARDS = 10_000
LONGEST_FILE_NAME = 200


@dataclass(frozen=True)
class StoredTensor:
    """Where one tensor of a model is stored."""

    file: Path
    name: str
    dtype: str  # safetensors' name: BF16, F16, F32
    shape: tuple[int, ...]

    @property
    def numbers(self) -> int:
        """How many numbers it has."""
        return math.prod(self.shape)

    @property
    def size(self) -> int:
        """Bytes."""
        return self.numbers * (4 if self.dtype == "F32" else 2)


@dataclass(frozen=True)
class AdapterFile:
    """A LoRA adapter on disk, checked."""

    path: Path
    r: int
    scale: float  # lora_alpha / r, or / sqrt(r) for rsLoRA
    targets: dict[str, tuple[str, str]]  # name of the base weight → names of its A (r, in) and B (out, r)
    shapes: dict[str, tuple[int, ...]]  # of each of the adapter's tensors

    @property
    def file(self) -> Path:
        """The file with its tensors."""
        return self.path / ADAPTER_WEIGHTS


def read_adapter(folder: Path) -> AdapterFile:
    """Read an adapter's settings and the names and shapes of its tensors.

    Raises:
        ModelError: no safetensors, an unsupported kind of adapter, or a LoRA A without its B.
    """
    settings, shapes = _read_adapter_files(folder)
    if settings.get("peft_type") != "LORA":
        raise ModelError(
            _(
                "{folder} is an adapter of type {kind!r}; only LORA can be merged",
                folder=folder,
                kind=settings.get("peft_type"),
            )
        )
    for key in UNSUPPORTED:
        if settings.get(key):
            raise ModelError(
                _(
                    "{folder}: adapters with {key} can't be merged here; merge it with peft's merge_and_unload()",
                    folder=folder,
                    key=key,
                )
            )
    r, alpha = settings["r"], float(settings["lora_alpha"])
    scale = alpha / (r**0.5 if settings.get("use_rslora") else r)
    return AdapterFile(folder, r, scale, _lora_pairs(folder, shapes), shapes)


def _read_adapter_files(folder: Path) -> tuple[dict[str, Any], dict[str, tuple[int, ...]]]:
    """(adapter_config.json, tensor name → shape)."""
    from safetensors import SafetensorError, safe_open

    if missing := [name for name in ("adapter_config.json", ADAPTER_WEIGHTS) if not (folder / name).is_file()]:
        other = (folder / "adapter_model.bin").is_file()
        raise ModelError(
            _(
                "{folder} is not an adapter: {missing} is missing (only safetensors are read",
                folder=folder,
                missing=missing[0],
            )
            + (_("; adapter_model.bin can run code: save it again with peft's save_pretrained)") if other else ")")
        )
    try:
        settings = check_adapter_settings(folder / "adapter_config.json")
        with safe_open(folder / ADAPTER_WEIGHTS, framework="pt") as f:
            shapes = {name: tuple(f.get_slice(name).get_shape()) for name in f.keys()}  # noqa: SIM118  (not a dict)
    except (ValueError, SafetensorError) as error:
        raise ModelError(
            _("{folder} is damaged: {error}; fetch the adapter again", folder=folder, error=error)
        ) from None
    return settings, shapes


def _lora_pairs(folder: Path, shapes: dict[str, tuple[int, ...]]) -> dict[str, tuple[str, str]]:
    """Name of the base weight → names of its A and B."""
    targets = {}
    for a in sorted(shapes):
        if a.endswith(".lora_A.weight"):
            b = a.replace(".lora_A.", ".lora_B.")
            if b not in shapes:
                raise ModelError(_("{folder}: {a} has no {b}", folder=folder, a=a, b=b))
            targets[a.removeprefix(PEFT_PREFIX).replace(".lora_A.weight", ".weight")] = (a, b)
    unused = shapes.keys() - {name for pair in targets.values() for name in pair}
    if unused:
        raise ModelError(
            _(
                "{folder}: the tensor {unused!r} is not part of a LoRA pair; it would be lost in a merge",
                folder=folder,
                unused=min(unused),
            )
        )
    return targets


def require_matching_base(adapter: AdapterFile, tensors: dict[str, StoredTensor], base: Path) -> None:
    """Check that every LoRA pair has a weight of the base, of the right shape.

    Args:
        tensors: the base's.

    Raises:
        ModelError: naming the first pair that has none; the adapter belongs to another base.
    """
    for weight, (a, b) in adapter.targets.items():
        if weight not in tensors:
            raise ModelError(
                _(
                    "the adapter has an update for {weight!r}, which {base} does not have: it was trained on "
                    "another base",
                    weight=weight,
                    base=base,
                )
            )
        shape, found = tensors[weight].shape, (adapter.shapes[b], adapter.shapes[a])
        if len(shape) != 2 or found != ((shape[0], adapter.r), (adapter.r, shape[1])):
            raise ModelError(
                _(
                    "{weight}: the adapter's {rows} × {columns} of rank {rank} does not fit the base's {shape}: "
                    "it was trained on another base",
                    weight=weight,
                    rows=found[0],
                    columns=found[1],
                    rank=adapter.r,
                    shape=shape,
                )
            )


def weight_files(model: Path) -> list[Path]:
    """The safetensors files of a model folder: model.safetensors, or those its index names, or those that are there.

    transformers looks in this order too: an index may be left from an earlier save.

    Raises:
        ModelError: one is missing, or there is none.
    """
    if (model / WHOLE).is_file():
        return [model / WHOLE]
    if (model / INDEX).is_file():
        names, why = _names_in_index(model / INDEX), _("{index} names it", index=INDEX)
    else:
        names, why = _names_in_folder(model), _("the other files' names imply it")
    for name in names:
        if not (model / name).is_file():
            raise ModelError(_("{model} is missing, though {why}: fetch the model again", model=model / name, why=why))
    return [model / name for name in names]


def _names_in_index(index: Path) -> list[str]:
    try:
        names = sorted({str(name) for name in read_json_file(index)["weight_map"].values()})
    except (ValueError, KeyError, AttributeError, TypeError):
        raise ModelError(_("{index} is damaged: fetch the model again", index=index)) from None
    if len(names) > MAX_SHARDS:
        raise ModelError(_("{index} names {names:,} files: it is damaged or hostile", index=index, names=len(names)))
    for name in names:
        if Path(name).name != name or len(name) > LONGEST_FILE_NAME:
            raise ModelError(
                _("{index} names a file outside its folder: {name!r}", index=index, name=name[:LONGEST_FILE_NAME])
            )
    return names


def _names_in_folder(model: Path) -> list[str]:
    names = [file.name for file in files_in(model, ".safetensors") if file.name != ADAPTER_WEIGHTS]
    if not names:
        if (model / ADAPTER_WEIGHTS).is_file():
            raise ModelError(_("{model} holds an adapter, not a model: merge it first, or give --adapter", model=model))
        raise ModelError(_("{model} has no .safetensors file", model=model))
    numbered = re.fullmatch(r"(.{1,200})-\d{5}-of-(\d{5})\.safetensors", names[0])
    if numbered is None:
        return names
    stem, count = numbered.group(1), numbered.group(2)
    return [f"{stem}-{i + 1:05d}-of-{count}.safetensors" for i in range(min(int(count), MAX_SHARDS))]


def list_tensors(model: Path) -> dict[str, StoredTensor]:
    """Every weight of a model folder, from the files' headers alone, in the files' order; buffers are left out.

    Raises:
        ModelError: a file is cut short or not safetensors, a tensor occurs twice or has an unsupported type.
    """
    from safetensors import SafetensorError, safe_open

    found: dict[str, StoredTensor] = {}
    for file in weight_files(model):
        try:
            with safe_open(file, framework="np") as f:  # numpy: the headers alone, without torch
                for name in f.keys():  # noqa: SIM118  (not a dict)
                    if BUFFERS.fullmatch(name):
                        continue
                    if name in found:
                        raise ModelError(
                            _(
                                "{name!r} is in {one} and in {other}: fetch the model again",
                                name=name,
                                one=found[name].file.name,
                                other=file.name,
                            )
                        )
                    header = f.get_slice(name)
                    found[name] = StoredTensor(file, name, header.get_dtype(), tuple(header.get_shape()))
        except SafetensorError as error:
            raise ModelError(
                _("{file} is damaged or cut short ({error}): fetch the model again", file=file, error=error)
            ) from None
    for name, tensor in found.items():
        if tensor.dtype not in TORCH_TYPES:
            raise ModelError(
                _(
                    "{file}: {name!r} is stored as {dtype}, and only {torch_types} are trained "
                    "and released: give the model that it was made of",
                    file=tensor.file,
                    name=name,
                    dtype=tensor.dtype,
                    torch_types=", ".join(TORCH_TYPES),
                )
            )
    return found


def read_tensor(tensor: StoredTensor, rows: slice | None = None) -> Any:
    """The tensor as it is stored, or some of its rows."""
    from safetensors import safe_open

    with safe_open(tensor.file, framework="pt") as f:
        return f.get_tensor(tensor.name) if rows is None else f.get_slice(tensor.name)[rows]


def was_quantised(tensor: StoredTensor, quantization: Quantization | None) -> bool:
    """Whether training stored this tensor in 4 bits.

    bitsandbytes replaces the decoder's linear layers; embeddings, norms and the output layer stay as they are.
    """
    if quantization is None or not quantization.load_in_4bit:
        return False
    return len(tensor.shape) == 2 and ".layers." in tensor.name and tensor.name.endswith("_proj.weight")


def read_as_trained(tensor: StoredTensor, quantization: Quantization | None, dtype: str) -> Any:
    """The weight that training multiplied with: dequantised to `dtype` where it was quantised."""
    weight = read_tensor(tensor)
    if quantization is not None and was_quantised(tensor, quantization):
        return round_trip(weight, quantization, dtype)
    return weight


def lora_update(adapter: AdapterFile, weight: str) -> Any:
    """The adapter's update of a weight: scale · B A, float32 (out, in)."""
    from safetensors import safe_open

    a, b = adapter.targets[weight]
    with safe_open(adapter.file, framework="pt") as f:
        return (f.get_tensor(b).float() @ f.get_tensor(a).float()).mul_(adapter.scale)


def iter_trained_weights(
    base: Path,
    quantization: Quantization | None,
    dtype: str,
    adapter: AdapterFile | None,
    *,
    exact: bool = False,
    only: Container[str] | None = None,
) -> Iterator[tuple[str, Any]]:
    """(name, tensor) of the base as it was trained against, with the adapter's updates added in float32.

    Args:
        quantization: how training stored the base; None or unquantised: weights as they are.
        dtype: in which training used the dequantised weights (`bfloat16`, `float32`).
        exact: do not round to the type in which the files are stored.
        only: names of the weights that are wanted; all where None.
    """
    found = list_tensors(base)
    if adapter:
        require_matching_base(adapter, found, base)
    for name, tensor in found.items():
        if only is not None and name not in only:
            continue
        weight = read_as_trained(tensor, quantization, dtype)
        update = lora_update(adapter, name) if adapter and name in adapter.targets else None
        if exact:
            yield name, weight if update is None else weight.float() + update
        elif update is None:
            yield name, cast_to(weight, tensor.dtype)
        else:
            yield name, rounded_sum(weight, update, tensor.dtype, name)


def round_trip(weight: Any, quantization: Quantization, dtype: str) -> Any:
    """`weight` (out, in) through bitsandbytes' 4-bit storage and back, just as a forward pass of training sees it."""
    import torch
    from bitsandbytes.functional import dequantize_4bit, quantize_4bit

    stored, state = quantize_4bit(
        weight.to(getattr(torch, dtype)).contiguous(),
        blocksize=64,
        compress_statistics=quantization.bnb_4bit_use_double_quant,
        quant_type=quantization.bnb_4bit_quant_type,
    )
    return dequantize_4bit(stored, state)
