"""What is wrong with a merged model or a GGUF file, by name.

The certificate's figures show that a file misbehaves; the audit looks at the file itself and says why. It finds the
known ways of breaking an export; a file without findings can still fail on its figures.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from noesis.core.config import Quantization
from noesis.core.console import command
from noesis.core.errors import ModelError
from noesis.core.i18n import N_, _
from noesis.llm.gguf.families import ModelConfig, permuted, read_config
from noesis.llm.gguf.header import REMAKE, read_header
from noesis.llm.gguf.rope import rope_tensors
from noesis.llm.tokenizer import load_tokenizer
from noesis.llm.weights.tensors import (
    StoredTensor,
    list_tensors,
    lora_update,
    read_adapter,
    read_as_trained,
    read_tensor,
)
from noesis.release.gguf.vocabulary import chat_template, pre_tokenizer, read_tokenizer, turn_end
from noesis.release.parity.certificate import Finding
from noesis.release.parity.llama_logits import LlamaModel


def open_gguf(file: Path) -> Any:
    """A GGUF file's metadata and tensors, as gguf.GGUFReader.

    Raises:
        ModelError: the file is missing, is not GGUF, or is cut short.
    """
    import gguf

    read_header(file)  # the reader believes what a file claims
    try:
        return gguf.GGUFReader(file)
    except FileNotFoundError:
        raise ModelError(
            _("{file} does not exist: make it with  {command}", file=file, command=command("gguf", "RUN"))
        ) from None
    except (ValueError, IndexError, KeyError, OverflowError, TypeError) as error:
        detail = " ".join(str(error).split())[:120]
        raise ModelError(
            _("{file} is not a complete GGUF file ({detail}); {remake}", file=file, detail=detail, remake=REMAKE)
        ) from None


def update_share(
    base: Path, adapter_folder: Path, merged: Path, quantization: Quantization | None, dtype: str
) -> dict[str, float]:
    """How many times the adapter's update is in the merged weights, for three of them.

    Once is right. Rounding to 16 bits swallows part of an update far smaller than its weight, so this explains bad
    figures but is no figure itself.

    Returns:
        weight name → the projection of (merged − base) on the update, as a multiple of the update.
    """
    adapter = read_adapter(adapter_folder)
    before, after = list_tensors(base), list_tensors(merged)
    names = sorted(adapter.targets)
    shares = {}
    for name in dict.fromkeys(names[i] for i in (0, len(names) // 2, len(names) - 1)):
        if name not in before or name not in after:
            shares[name] = 0.0
            continue
        update = lora_update(adapter, name).double()
        norm = float((update * update).sum())
        if norm:
            moved = read_tensor(after[name]).double() - read_as_trained(before[name], quantization, dtype).double()
            shares[name] = round(float((moved * update).sum()) / norm, 4)
    return shares


def audit_merge(shares: dict[str, float]) -> list[Finding]:
    """What `update_share` says about a merge whose figures are bad."""
    for name, times in shares.items():
        if not 0.9 < times < 1.1:
            missing = abs(times) < 0.1
            what = (
                N_("is not in the merged weights")
                if missing
                else N_("is in the merged weights {times:.2g} times", times=times)
            )
            return [Finding("merge", N_("the adapter {what} (seen in {name})", what=what, name=name))]
    return []


def audit_gguf(model: Path, file: Path) -> list[Finding]:
    """Where a GGUF file departs from what the model folder requires."""
    reader, config = open_gguf(file), read_config(model)
    arch = config.family.arch
    if (found := _field(reader, "general.architecture")) != arch:
        return [Finding("conversion", N_("it is written as {found}, the model is {arch}", found=found, arch=arch))]
    tensors = {tensor.name: tensor for tensor in reader.tensors}
    return [
        *_audit_pre_tokenizer(reader, model),
        *_audit_template(reader, model),
        *_audit_rope_factors(tensors, config),
        *_audit_row_order(tensors, list_tensors(model), config),
    ]


def audit_controls(model: LlamaModel, tokenizer: Any) -> list[Finding]:
    """Whether llama.cpp reads each of the model's control tokens as one, and stops where an answer ends."""
    ids = sorted(tokenizer.control_ids)
    names = dict(zip(ids, tokenizer.convert_ids_to_tokens(ids), strict=True))
    findings = []
    if split := [name for i, name in names.items() if model.tokenize(name) != [i]]:
        findings.append(Finding("tokenizer", N_("the control token {split!r} is not read as one", split=split[0])))
    end = turn_end(tokenizer)
    if end is not None and not model.ends_generation(end):
        findings.append(
            Finding("tokenizer", N_("llama.cpp would not stop at {names!r}, which ends an answer", names=names[end]))
        )
    return findings


def _field(reader: Any, key: str) -> Any:
    field = reader.fields.get(key)
    return field.contents() if field is not None else None


def _audit_pre_tokenizer(reader: Any, model: Path) -> list[Finding]:
    raw = read_tokenizer(model)
    if raw["model"].get("byte_fallback"):
        return []
    found, expected = _field(reader, "tokenizer.ggml.pre"), pre_tokenizer(raw, load_tokenizer(model), model)
    if found == expected:
        return []
    return [
        Finding(
            "tokenizer",
            N_("its pre-tokenizer is {found}, the model's is {expected}", found=found or "lost", expected=expected),
        )
    ]


def _audit_template(reader: Any, model: Path) -> list[Finding]:
    found = _field(reader, "tokenizer.chat_template")
    if found == chat_template(model):
        return []
    return [
        Finding(
            "template",
            N_("its chat template is not the one that the model has") if found else N_("its chat template is missing"),
        )
    ]


def _audit_rope_factors(tensors: dict[str, Any], config: ModelConfig) -> list[Finding]:
    import numpy as np

    expected = rope_tensors(config.rope)
    for name in sorted(expected.keys() | {found for found in tensors if found.startswith("rope_")}):
        if name not in expected:
            what = N_("it has rotary factors ({name}) that the model does not have", name=name)
        elif name not in tensors:
            what = N_("the rotary factors ({name}) of the model's scaling are missing", name=name)
        elif not np.allclose(tensors[name].data.reshape(-1), expected[name], rtol=1e-5):
            what = N_("the rotary factors ({name}) are wrong", name=name)
        else:
            continue
        return [Finding("conversion", what)]
    return []


def _audit_row_order(tensors: dict[str, Any], source: dict[str, StoredTensor], config: ModelConfig) -> list[Finding]:
    """Whether the rows of the first query and key are nearer to llama.cpp's order than to Hugging Face's."""
    import gguf

    if not config.family.permuted:
        return []
    for theirs, ours in (
        ("blk.0.attn_q.weight", "model.layers.0.self_attn.q_proj.weight"),
        ("blk.0.attn_k.weight", "model.layers.0.self_attn.k_proj.weight"),
    ):
        if theirs not in tensors or ours not in source:
            return [Finding("conversion", N_("{theirs} is missing", theirs=theirs))]
        tensor = tensors[theirs]
        weight = read_tensor(source[ours]).float().numpy()
        found = gguf.quants.dequantize(tensor.data, tensor.tensor_type).reshape(weight.shape)
        right, wrong = (float(((found - w) ** 2).sum()) for w in (permuted(ours, weight, config), weight))
        if wrong < right:
            return [
                Finding(
                    "conversion", N_("the rows of query and key are not in llama.cpp's order ({theirs})", theirs=theirs)
                )
            ]
    return []
