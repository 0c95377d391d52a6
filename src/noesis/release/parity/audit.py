"""What in a merged model or a GGUF file is wrong, by name: for the day on which the figures say that something is.

The certificate's figures show that a file behaves otherwise; these look at the file itself and say why. They find the known ways of
breaking an export; a file with none of them can still fail the figures.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from noesis.core.config import Quantization
from noesis.core.errors import ModelError
from noesis.llm.tokenizer import load_tokenizer
from noesis.llm.weights import StoredTensor, list_tensors, lora_update, read_adapter, read_as_trained, read_tensor
from noesis.release.gguf.families import family_of, permuted, read_config, rope_factors
from noesis.release.gguf.vocabulary import chat_template, pre_tokenizer, read_tokenizer

Finding = tuple[str, str]  # (stage, what is wrong): the stage is merge, tokenizer, template or conversion


def open_gguf(file: Path) -> Any:
    """A GGUF file's metadata and tensors.

    Raises:
        ModelError: it is none, or cut short.
    """
    import gguf

    try:
        return gguf.GGUFReader(file)
    except FileNotFoundError:
        raise ModelError(f"{file} does not exist: make it with  noesis gguf RUN") from None
    except (ValueError, IndexError, KeyError, OverflowError, TypeError) as error:
        raise ModelError(
            f"{file} is no whole GGUF file ({' '.join(str(error).split())[:120]}): make it anew with  noesis gguf RUN --again"
        ) from None


def require_gguf(file: Path) -> None:
    """A quick look at a file's first bytes, before anything costly is done with it.

    Raises:
        ModelError: it is missing, or no GGUF file.
    """
    try:
        with open(file, "rb") as f:
            magic = f.read(4)
    except FileNotFoundError:
        raise ModelError(f"{file} does not exist: make it with  noesis gguf RUN") from None
    if magic != b"GGUF":
        raise ModelError(
            f"{file} is no GGUF file (it begins with {magic!r}): make it anew with  noesis gguf RUN --again"
        )


def update_share(
    base: Path, adapter_folder: Path, merged: Path, quantization: Quantization | None, dtype: str
) -> dict[str, float]:
    """How often the adapter's update is in the merged weights, by weight, for a few of them. Once is right; rounding to 16 bits swallows
    a part of updates far smaller than the weights, so this explains figures and is no figure itself.
    """
    adapter = read_adapter(adapter_folder)
    before, after = list_tensors(base), list_tensors(merged)
    names = sorted(adapter.targets)
    found = {}
    for name in dict.fromkeys(names[i] for i in (0, len(names) // 2, len(names) - 1)):
        if name not in before or name not in after:
            found[name] = 0.0
            continue
        change = lora_update(adapter, name).double()
        size = float((change * change).sum())
        if size:
            moved = read_tensor(after[name]).double() - read_as_trained(before[name], quantization, dtype).double()
            found[name] = round(float((moved * change).sum()) / size, 4)
    return found


def audit_merge(kept: dict[str, float]) -> list[Finding]:
    """What `update_kept` says of a merge whose figures are bad."""
    for name, times in kept.items():
        if not 0.9 < times < 1.1:
            words = (
                "is not in the merged weights" if abs(times) < 0.1 else f"is in the merged weights {times:.2g} times"
            )
            return [("merge", f"the adapter {words} (seen in {name})")]
    return []


def audit_gguf(model: Path, file: Path) -> list[Finding]:
    """What of a GGUF file is not as the model folder says it should be."""
    reader, config = open_gguf(file), read_config(model)
    arch = family_of(config).arch
    if (found := _field(reader, "general.architecture")) != arch:
        return [("conversion", f"it is written as {found}, the model is {arch}")]
    raw = read_tokenizer(model)
    findings = []
    if not raw["model"].get("byte_fallback"):
        own, pre = pre_tokenizer(raw, load_tokenizer(model).backend, model), _field(reader, "tokenizer.ggml.pre")
        if pre != own:
            findings.append(("tokenizer", f"its pre-tokenizer is {pre or 'lost'}, the model's is {own}"))
    if (template := _field(reader, "tokenizer.chat_template")) != chat_template(model):
        findings.append(
            ("template", f"its chat template is {'another one than the model has' if template else 'missing'}")
        )
    arrays = {tensor.name: tensor for tensor in reader.tensors}
    findings += _factors(arrays, config) + _order(arrays, list_tensors(model), config)
    return findings


def _field(reader: Any, key: str) -> Any:
    field = reader.fields.get(key)
    return field.contents() if field is not None else None


def _factors(arrays: dict[str, Any], config: dict[str, Any]) -> list[Finding]:
    import numpy as np

    wanted, found = rope_factors(config), arrays.get("rope_freqs.weight")
    if wanted is None:
        return (
            []
            if found is None
            else [("conversion", "it has rotary factors (rope_freqs.weight) that the model has not")]
        )
    if found is None:
        return [("conversion", "the rotary factors (rope_freqs.weight) of the model's scaling are missing")]
    return (
        []
        if np.allclose(found.data.reshape(-1), wanted, rtol=1e-5)
        else [("conversion", "the rotary factors (rope_freqs.weight) are wrong")]
    )


def _order(arrays: dict[str, Any], found: dict[str, StoredTensor], config: dict[str, Any]) -> list[Finding]:
    """The rows of the first query and key, against the order that llama.cpp wants and the one that Hugging Face has."""
    import gguf

    if not family_of(config).permuted:
        return []
    for theirs, ours in (
        ("blk.0.attn_q.weight", "model.layers.0.self_attn.q_proj.weight"),
        ("blk.0.attn_k.weight", "model.layers.0.self_attn.k_proj.weight"),
    ):
        if theirs not in arrays or ours not in found:
            return [("conversion", f"{theirs} is missing")]
        stored = arrays[theirs]
        weight = read_tensor(found[ours]).float().numpy()
        inside = gguf.quants.dequantize(stored.data, stored.tensor_type).reshape(weight.shape)
        right, wrong = (float(((inside - w) ** 2).sum()) for w in (permuted(ours, weight, config), weight))
        if wrong < right:
            return [("conversion", f"the rows of query and key are not in llama.cpp's order ({theirs})")]
    return []
