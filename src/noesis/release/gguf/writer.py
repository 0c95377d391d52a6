"""`noesis gguf RUN`: safetensors → GGUF for llama.cpp with the `gguf` package, tensor by tensor. No compiler, no
llama.cpp checkout.

The architectures of families.py; anything else is refused by name. Which tensor gets which type follows
llama.cpp's own converter and quantiser (MIT). The header is planned from the input files' headers and written first;
then the weights stream through, a few rows at a time.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from noesis.core.config import Quantization
from noesis.core.console import Progress
from noesis.core.errors import MissingExtra, ModelError
from noesis.core.files import new_file, require_space
from noesis.core.i18n import _
from noesis.llm.gguf.families import (
    ModelConfig,
    gguf_name,
    is_permuted,
    name_map,
    permuted,
    read_config,
    write_hyperparameters,
)
from noesis.llm.gguf.rope import rope_tensors
from noesis.llm.weights.tensors import (
    StoredTensor,
    list_tensors,
    read_adapter,
    read_as_trained,
    read_tensor,
    require_matching_base,
    was_quantised,
)
from noesis.release.gguf.quantize import BITS, KINDS, quantise, row_bytes, storage_type
from noesis.release.gguf.vocabulary import write_vocabulary
from noesis.release.provenance import Provenance, read_provenance, write_metadata

CHUNK = 1 << 24  # numbers of a large tensor that are converted at a time: 64 MiB in float32
FILE_TYPES = {"f32": "ALL_F32", "f16": "MOSTLY_F16", "q8_0": "MOSTLY_Q8_0", "q4_k_m": "MOSTLY_Q4_K_M"}


@dataclass(frozen=True)
class GgufTensor:
    """One tensor of the file to be written."""

    name: str  # llama.cpp's
    shape: tuple[int, ...]  # as Hugging Face has it
    type: Any  # gguf.GGMLQuantizationType
    source: StoredTensor | None  # None: the rotary factors, which are computed

    @property
    def size(self) -> int:
        """Bytes."""
        return math.prod(self.shape[:-1]) * row_bytes(self.type, self.shape[-1])


def write_gguf(
    model: Path,
    target: Path,
    kind: str,
    *,
    name: str,
    licence: str,
    quantization: Quantization | None = None,
    dtype: str = "bfloat16",
    provenance: Provenance | None = None,
) -> None:
    """Write a model folder to `target`, whole or not at all.

    Args:
        kind: `f32`, `f16`, `q8_0` or `q4_k_m`.
        licence: used where the provenance names none.
        quantization, dtype: how training stored the base, to write its dequantised weights instead of the originals.
        provenance: default: the model's noesis.json, if it has one.

    Raises:
        ModelError: an unsupported architecture or tokenizer, a missing shard, a damaged file.
        NoesisError: the disk has no room for it.
    """
    gguf = _gguf_package()
    if kind not in KINDS:
        raise ModelError(_("{kind!r} is not a kind of GGUF; choose from {kinds}", kind=kind, kinds=", ".join(KINDS)))
    config, tensors = read_config(model), list_tensors(model)
    weights = sum(tensor.numbers for tensor in tensors.values())
    require_space(target.parent, weights * BITS[kind] / 8, target.name)
    planned = plan_gguf(tensors, config, kind)
    with _writing(target, config) as writer:
        writer.add_type("model")
        writer.add_name(name)
        writer.add_file_type(gguf.LlamaFileType[FILE_TYPES[kind]])
        writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
        write_metadata(writer, provenance or read_provenance(model), default_licence=licence)
        write_hyperparameters(writer, config)
        write_vocabulary(writer, model, config.shape.vocabulary)
        _write_header(writer, planned)
        with Progress(target.name, len(planned), _("tensors")) as progress:
            for tensor in planned:
                _write_tensor(writer, tensor, _rows(tensor, config, quantization, dtype))
                progress.advance(1)


def plan_gguf(tensors: dict[str, StoredTensor], config: ModelConfig, kind: str) -> list[GgufTensor]:
    """The tensors of the file in order, with the type of each.

    Raises:
        ModelError: a tensor that has no place in the file, or a missing one.
    """
    import gguf

    sources = {name: t for name, t in tensors.items() if not (name == "lm_head.weight" and config.shape.tied)}
    has_output = "lm_head.weight" in sources
    if "model.embed_tokens.weight" not in sources or not (has_output or config.shape.tied):
        raise ModelError(_("the model lacks its embedding or its output layer: fetch it again"))
    if (rows := sources["model.embed_tokens.weight"].shape[0]) != config.shape.vocabulary:
        raise ModelError(
            _(
                "config.json has a vocab_size of {vocabulary:,}, and the embedding has {rows:,} rows: "
                "put that number there if tokens were added, or fetch the model again",
                vocabulary=config.shape.vocabulary,
                rows=rows,
            )
        )
    for i in range(config.shape.layers):
        if f"model.layers.{i}.mlp.down_proj.weight" not in sources:
            raise ModelError(
                _(
                    "layer {i} of {layers} is missing from the model's files: fetch it again",
                    i=i,
                    layers=config.shape.layers,
                )
            )
    planned, names = [], name_map(config)
    for name, factors in rope_tensors(config.rope).items():
        planned.append(GgufTensor(name, factors.shape, gguf.GGMLQuantizationType.F32, None))
    for name, source in sources.items():
        own = gguf_name(names, name, config)
        stored = storage_type(kind, own, source.shape, layers=config.shape.layers, has_output=has_output)
        planned.append(GgufTensor(own, source.shape, stored, source))
    return planned


def write_adapter_gguf(
    adapter_folder: Path, base: Path, target: Path, *, licence: str = "", provenance: Provenance | None = None
) -> None:
    """Write the LoRA adapter alone, in F32, to be loaded on a GGUF of its base.

    `lora_b` of query and key is reordered like the weight it belongs to.

    Raises:
        ModelError: an adapter of another base, or of a kind that llama.cpp does not support.
        NoesisError: the disk has no room for it.
    """
    from safetensors import safe_open

    _gguf_package()
    config, adapter = read_config(base), read_adapter(adapter_folder)
    require_matching_base(adapter, list_tensors(base), base)
    require_space(target.parent, adapter.file.stat().st_size * 1.01, target.name)
    names = name_map(config)
    with _writing(target, config) as writer:
        writer.add_type("adapter")
        writer.add_string("adapter.type", "lora")
        # llama.cpp scales by alpha / rank, so an rsLoRA scale is expressed through alpha.
        writer.add_float32("adapter.lora.alpha", adapter.scale * adapter.r)
        write_metadata(writer, provenance or Provenance(), default_licence=licence)
        with safe_open(adapter.file, framework="pt") as f:
            for weight, (a, b) in adapter.targets.items():
                name = gguf_name(names, weight, config)
                writer.add_tensor(f"{name}.lora_a", f.get_tensor(a).float().numpy())
                writer.add_tensor(f"{name}.lora_b", permuted(weight, f.get_tensor(b).float().numpy(), config))
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()


@contextmanager
def _writing(target: Path, config: ModelConfig) -> Iterator[Any]:
    """A GGUFWriter whose file gets its name when the block ends well, and is removed otherwise."""
    with new_file(target) as part:
        writer = _gguf_package().GGUFWriter(part, config.family.arch)
        try:
            yield writer
        finally:
            writer.close()


def _write_header(writer: Any, planned: list[GgufTensor]) -> None:
    """Header, metadata and the list of tensors, up to where their data begins."""
    import numpy as np

    for tensor in planned:
        writer.add_tensor_info(tensor.name, tensor.shape, np.dtype(np.float32), tensor.size, raw_dtype=tensor.type)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    file = writer.fout[0]
    writer.write_padding(file, file.tell())


def _write_tensor(writer: Any, tensor: GgufTensor, chunks: Iterator[Any]) -> None:
    """Write a tensor's data, quantised chunk by chunk."""
    file, written = writer.fout[0], 0
    for rows in chunks:
        data = quantise(rows, tensor.type)
        data.tofile(file)
        written += data.nbytes
    if written != tensor.size:
        raise ValueError(
            _("{name}: {written} bytes written, {size} planned", name=tensor.name, written=written, size=tensor.size)
        )
    writer.write_padding(file, tensor.size)


def _rows(tensor: GgufTensor, config: ModelConfig, quantization: Quantization | None, dtype: str) -> Iterator[Any]:
    """A tensor as float32 arrays of some rows each; in one piece where any row depends on the whole."""
    source = tensor.source
    if source is None:
        yield rope_tensors(config.rope)[tensor.name]
        return
    if len(source.shape) != 2 or was_quantised(source, quantization) or is_permuted(source.name, config):
        whole = permuted(source.name, read_as_trained(source, quantization, dtype).float().numpy(), config)
        yield whole + 1 if config.described.plus_one and source.name.endswith("norm.weight") else whole
        return
    step = max(1, CHUNK // source.shape[1])
    for start in range(0, source.shape[0], step):
        yield read_tensor(source, slice(start, start + step)).float().numpy()


def _gguf_package() -> Any:
    try:
        import gguf
    except ImportError:
        raise MissingExtra("gguf", "gguf") from None
    return gguf
