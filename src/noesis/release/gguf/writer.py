"""`noesis gguf RUN`: safetensors → GGUF for llama.cpp, with the `gguf` package, tensor by tensor. No compiler, no llama.cpp checkout.

Llama, Mistral, Qwen2 and Gemma-2 (families.py); the rest is refused by name. Which tensor is stored how follows llama.cpp's own converter
and quantiser (MIT). The header is written first from the files' headers, then the weights stream through, some rows at a time.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from noesis.core.config import Quantization
from noesis.core.console import Progress
from noesis.core.errors import MissingExtra, ModelError
from noesis.core.files import require_space, sync_file, sync_folder
from noesis.llm.weights import (
    AdapterFile,
    StoredTensor,
    list_tensors,
    read_adapter,
    read_as_trained,
    read_tensor,
    require_matching_base,
    was_quantised,
)
from noesis.release.gguf.families import (
    family_of,
    gguf_name,
    is_permuted,
    name_map,
    permuted,
    read_config,
    rope_factors,
    tied,
    write_hyperparameters,
)
from noesis.release.gguf.quantize import BITS, KINDS, quantise, row_bytes, storage_type
from noesis.release.gguf.vocabulary import write_vocabulary

AT_ONCE = 1 << 24  # numbers of a large tensor that are converted at a time: 64 MiB in float32
FILE_TYPES = {"f32": "ALL_F32", "f16": "MOSTLY_F16", "q8_0": "MOSTLY_Q8_0", "q4_k_m": "MOSTLY_Q4_K_M"}


@dataclass(frozen=True)
class GgufTensor:
    """One tensor of the file to be."""

    name: str  # llama.cpp's
    shape: tuple[int, ...]
    type: Any  # GGMLQuantizationType
    source: StoredTensor | None  # None: the rotary factors, which are computed

    @property
    def size(self) -> int:
        """Bytes."""
        rows = 1
        for n in self.shape[:-1]:
            rows *= n
        return rows * row_bytes(self.type, self.shape[-1])


def write_gguf(
    model: Path,
    target: Path,
    kind: str,
    *,
    name: str,
    licence: str,
    quantization: Quantization | None = None,
    dtype: str = "bfloat16",
    about: dict[str, Any] | None = None,
) -> None:
    """Write `target` from the model folder, whole or not at all.

    Args:
        kind: `f32`, `f16`, `q8_0` or `q4_k_m`.
        quantization, dtype: give the base's training storage to write its dequantised weights instead of the originals.
        about: what the model was made of; default: its noesis.json, if it has one.

    Raises:
        ModelError: an architecture or tokenizer that is not supported, a missing shard, a damaged file.
        NoesisError: the disk has no room for it.
    """
    gguf = _package()
    if kind not in KINDS:
        raise ModelError(f"no kind {kind!r} of GGUF; choose from {', '.join(KINDS)}")
    config = read_config(model)
    found = list_tensors(model)
    require_space(
        target.parent,
        sum(s.size / (4 if s.dtype == "F32" else 2) for s in found.values()) * BITS[kind] / 8,
        target.name,
    )
    entries = plan_gguf(found, config, kind)
    part = target.with_name(f".{target.name}.part")
    writer = gguf.GGUFWriter(part, family_of(config).arch)
    try:
        writer.add_type("model")
        writer.add_name(name)
        writer.add_file_type(gguf.LlamaFileType[FILE_TYPES[kind]])
        writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
        write_lineage(writer, licence, read_lineage(model) if about is None else about)
        write_hyperparameters(writer, config)
        write_vocabulary(writer, model, config)
        _write(writer, entries, config, quantization, dtype, target.name)
        sync_file(part)
        part.replace(target)
    except BaseException:
        writer.close()
        part.unlink(missing_ok=True)
        raise
    sync_folder(target.parent)


def plan_gguf(found: dict[str, StoredTensor], config: dict[str, Any], kind: str) -> list[GgufTensor]:
    """The tensors of the file in order, with the type of each.

    Raises:
        ModelError: a tensor that has no place in it, or one that the model must have and has not.
    """
    import gguf

    names, layers = name_map(config), int(config["num_hidden_layers"])
    kept = {name: stored for name, stored in found.items() if not (name == "lm_head.weight" and tied(config))}
    if "model.embed_tokens.weight" not in kept or ("lm_head.weight" not in kept and not tied(config)):
        raise ModelError("the model has no embedding or no output layer: fetch it again")
    missing = [i for i in range(layers) if f"model.layers.{i}.mlp.down_proj.weight" not in kept]
    if missing:
        raise ModelError(f"layer {missing[0]} of {layers} is missing from the model's files: fetch it again")
    entries = []
    factors = rope_factors(config)
    if factors is not None:
        entries.append(GgufTensor("rope_freqs.weight", factors.shape, gguf.GGMLQuantizationType.F32, None))
    for name, stored in kept.items():
        own = gguf_name(names, name, config)
        entries.append(
            GgufTensor(
                own,
                stored.shape,
                storage_type(kind, own, stored.shape, layers=layers, has_output="lm_head.weight" in kept),
                stored,
            )
        )
    return entries


def write_adapter_gguf(
    adapter_folder: Path, base: Path, target: Path, *, licence: str = "", about: dict[str, Any] | None = None
) -> None:
    """The LoRA adapter alone, for a GGUF of its base. F32; `lora_b` of query and key is reordered like the weight it belongs to.

    Raises:
        ModelError: an adapter of another base, or of a kind that llama.cpp does not know.
    """
    from safetensors import safe_open

    gguf = _package()
    config = read_config(base)
    adapter: AdapterFile = read_adapter(adapter_folder)
    require_matching_base(adapter, list_tensors(base), base)
    names = name_map(config)
    require_space(target.parent, (adapter_folder / "adapter_model.safetensors").stat().st_size * 1.01, target.name)
    part = target.with_name(f".{target.name}.part")
    writer = gguf.GGUFWriter(part, family_of(config).arch)
    try:
        writer.add_type("adapter")
        writer.add_string("adapter.type", "lora")
        # llama.cpp scales by alpha / rank, so an rsLoRA scale is carried by its alpha.
        writer.add_float32("adapter.lora.alpha", adapter.scale * adapter.r)
        write_lineage(writer, licence, about or {})
        with safe_open(adapter_folder / "adapter_model.safetensors", framework="pt") as f:
            for weight, (a, b) in adapter.targets.items():
                name = gguf_name(names, weight, config)
                writer.add_tensor(f"{name}.lora_a", f.get_tensor(a).float().numpy())
                writer.add_tensor(f"{name}.lora_b", permuted(weight, f.get_tensor(b).float().numpy(), config))
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        sync_file(part)
        part.replace(target)
    except BaseException:
        writer.close()
        part.unlink(missing_ok=True)
        raise
    sync_folder(target.parent)


def read_lineage(model: Path) -> dict[str, Any]:
    """What a merged model says it was made of; nothing for other folders. It is only shown, never acted upon."""
    file = model / "noesis.json"
    if not file.is_file():
        return {}
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except ValueError:
        raise ModelError(f"{file} is damaged: merge again, or remove it") from None
    return found if isinstance(found, dict) else {}


def write_lineage(writer: Any, licence: str, about: dict[str, Any]) -> None:
    """Licence, base, data, constitution and system prompt as metadata."""
    writer.add_license(str(about.get("licence") or licence))
    if base := about.get("base"):
        writer.add_base_model_count(1)
        writer.add_base_model_name(0, str(base))
        writer.add_base_model_version(0, str(about.get("base_revision", "")))
        if "/" in str(base) and not str(base).startswith(("/", ".", "~")):
            writer.add_base_model_repo_url(0, f"https://huggingface.co/{base}")
    for key, value in about.items():
        if isinstance(value, str) and value:
            writer.add_string(f"noesis.{key}", value)


def _write(
    writer: Any,
    entries: list[GgufTensor],
    config: dict[str, Any],
    quantization: Quantization | None,
    dtype: str,
    what: str,
) -> None:
    """Header, metadata, and the tensors as they come."""
    import numpy as np

    for entry in entries:
        writer.add_tensor_info(entry.name, entry.shape, np.dtype(np.float32), entry.size, raw_dtype=entry.type)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    out = writer.fout[0]
    writer.write_padding(out, out.tell())
    with Progress(what, len(entries), "tensors") as progress:
        for entry in entries:
            written = 0
            for rows in _rows(entry, config, quantization, dtype):
                piece = quantise(rows, entry.type)
                piece.tofile(out)
                written += piece.nbytes
            if written != entry.size:
                raise ValueError(f"{entry.name}: {written} bytes for {entry.size}")
            writer.write_padding(out, entry.size)
            progress.advance(1)
    writer.close()


def _rows(entry: GgufTensor, config: dict[str, Any], quantization: Quantization | None, dtype: str) -> Iterator[Any]:
    """A tensor as float32 arrays, some rows at a time; whole where all of it is needed to compute any."""
    stored = entry.source
    if stored is None:
        yield rope_factors(config)
        return
    if len(stored.shape) != 2 or was_quantised(stored, quantization) or is_permuted(stored.name, config):
        whole = permuted(stored.name, read_as_trained(stored, quantization, dtype).float().numpy(), config)
        yield whole + 1 if family_of(config).plus_one and stored.name.endswith("norm.weight") else whole
        return
    step = max(1, AT_ONCE // stored.shape[1])
    for start in range(0, stored.shape[0], step):
        yield read_tensor(stored, slice(start, start + step)).float().numpy()


def _package() -> Any:
    try:
        import gguf
    except ImportError:
        raise MissingExtra("gguf", "gguf") from None
    return gguf
