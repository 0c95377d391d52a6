"""What llama.cpp must be told of each family of models: its name, its numbers, and how its tensors are laid out there.

Llama, Mistral, Qwen2 and Gemma-2; every other architecture is refused by its name. The layouts follow llama.cpp's converter (MIT).
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from noesis.core.errors import ModelError


@dataclass(frozen=True)
class Family:
    """How one architecture of Hugging Face becomes one of llama.cpp."""

    arch: str  # llama.cpp's name
    permuted: bool = False  # rows of query and key are reordered for llama.cpp's rotary embedding
    plus_one: bool = False  # norms are stored as w, used as 1 + w
    biases: bool = False  # query, key and value have one
    activation: tuple[str, ...] = ("silu",)


FAMILIES = {
    "LlamaForCausalLM": Family("llama", permuted=True),
    "MistralForCausalLM": Family("llama", permuted=True),
    "Qwen2ForCausalLM": Family("qwen2", biases=True),
    "Gemma2ForCausalLM": Family("gemma2", plus_one=True, activation=("gelu_pytorch_tanh",)),
}


def read_config(model: Path) -> dict[str, Any]:
    """`config.json` of a model that can be converted.

    Raises:
        ModelError: no model folder, an architecture that is not supported, or a variant of one that llama.cpp computes otherwise.
    """
    try:
        config = dict(json.loads((model / "config.json").read_text(encoding="utf-8")))
    except (OSError, ValueError) as error:
        raise ModelError(f"{model} is no model folder: {error}") from None
    architecture = str((config.get("architectures") or ["?"])[0])
    family = FAMILIES.get(architecture)
    if family is None:
        raise unsupported(model, f"{architecture} can't be converted here ({', '.join(FAMILIES)} can)")
    for key in ("attention_bias", "mlp_bias", "use_sliding_window"):
        if config.get(key):
            raise unsupported(model, f"{architecture} with {key} can't be converted here")
    activation = config.get("hidden_activation") or config.get("hidden_act")
    if activation is not None and activation not in family.activation:
        raise unsupported(model, f"{architecture} with the activation {activation!r} can't be converted here")
    if family.arch == "gemma2" and (scalar := config.get("query_pre_attn_scalar")) is not None:
        large = int(config["num_hidden_layers"]) == 46  # the 27B, whose queries llama.cpp scales by another rule
        expected = int(config["hidden_size"]) // int(config["num_attention_heads"]) if large else head_size(config)
        if int(scalar) != expected:
            raise unsupported(
                model,
                f"{architecture} with query_pre_attn_scalar {scalar} can't be converted here (llama.cpp computes with {expected})",
            )
    rope(config)
    return config


def unsupported(model: Path, why: str) -> ModelError:
    """The error for what only llama.cpp's own converter can do."""
    return ModelError(f"{why}: use llama.cpp's  python convert_hf_to_gguf.py {model}")


def family_of(config: dict[str, Any]) -> Family:
    """The family of a configuration that `read_config` accepted."""
    return FAMILIES[config["architectures"][0]]


def head_size(config: dict[str, Any]) -> int:
    """Numbers of one attention head."""
    return int(config.get("head_dim") or int(config["hidden_size"]) // int(config["num_attention_heads"]))


def heads_of(config: dict[str, Any]) -> tuple[int, int]:
    """(query heads, key and value heads)."""
    heads = int(config["num_attention_heads"])
    return heads, int(config.get("num_key_value_heads") or heads)


def tied(config: dict[str, Any]) -> bool:
    """Whether embedding and output are one tensor; Gemma's default is yes."""
    return bool(config.get("tie_word_embeddings", family_of(config).arch == "gemma2"))


def write_hyperparameters(writer: Any, config: dict[str, Any]) -> None:
    """Write the numbers that llama.cpp builds the model from."""
    heads, kv_heads = heads_of(config)
    head_dim, context = head_size(config), int(config["max_position_embeddings"])
    arch, window = family_of(config).arch, config.get("sliding_window")
    if arch == "llama" and window:  # Mistral's window is not in llama.cpp: beyond it the two would differ
        context = min(context, int(window))
    writer.add_block_count(int(config["num_hidden_layers"]))
    writer.add_context_length(context)
    writer.add_embedding_length(int(config["hidden_size"]))
    writer.add_feed_forward_length(int(config["intermediate_size"]))
    writer.add_head_count(heads)
    writer.add_head_count_kv(kv_heads)
    writer.add_key_length(head_dim)
    writer.add_value_length(head_dim)
    writer.add_rope_freq_base(float(rope(config)["rope_theta"]))
    writer.add_layer_norm_rms_eps(float(config["rms_norm_eps"]))
    if arch == "llama":
        writer.add_rope_dimension_count(head_dim)
        writer.add_vocab_size(int(config["vocab_size"]))
    if arch == "gemma2":
        writer.add_attn_logit_softcapping(float(config["attn_logit_softcapping"]))
        writer.add_final_logit_softcapping(float(config["final_logit_softcapping"]))
        writer.add_sliding_window(int(config["sliding_window"]))


def rope(config: dict[str, Any]) -> dict[str, Any]:
    """Rotary settings, from transformers 5's `rope_parameters` or the older keys.

    Raises:
        ModelError: a kind of scaling that is not known here.
    """
    found = dict(config.get("rope_parameters") or config.get("rope_scaling") or {})
    found.setdefault("rope_theta", config.get("rope_theta", 10000.0))
    kind = found.get("rope_type") or found.get("type") or "default"
    if kind not in ("default", "llama3") or float(found.get("partial_rotary_factor", 1.0)) != 1.0:
        raise ModelError(
            f"rotary scaling of type {kind!r} can't be converted here: use llama.cpp's  python convert_hf_to_gguf.py"
        )
    found["rope_type"] = kind
    return found


def rope_factors(config: dict[str, Any]) -> Any:
    """Llama-3.1's per-frequency divisors (`rope_freqs.weight`, float32, half a head), None where the model has none."""
    import numpy as np

    settings = rope(config)
    if settings["rope_type"] == "default":
        return None
    factor, low, high = (
        float(settings["factor"]),
        float(settings["low_freq_factor"]),
        float(settings["high_freq_factor"]),
    )
    old = float(settings["original_max_position_embeddings"])
    factors, dim = [], head_size(config)
    for i in range(0, dim, 2):
        wavelength = 2 * math.pi * float(settings["rope_theta"]) ** (i / dim)
        if wavelength < old / high:
            factors.append(1.0)
        elif wavelength > old / low:
            factors.append(factor)
        else:
            smooth = (old / wavelength - low) / (high - low)
            factors.append(1 / ((1 - smooth) / factor + smooth))
    return np.array(factors, dtype=np.float32)


def permuted(name: str, array: Any, config: dict[str, Any]) -> Any:
    """llama.cpp rotates neighbouring pairs, Hugging Face halves: reorder the rows of q and k, head by head.

    Args:
        array: (out, in), or an adapter's B (out, r); other tensors and families come back as they are.
    """
    if not is_permuted(name, config):
        return array
    heads, kv_heads = heads_of(config)
    count = heads if ".q_proj." in name else kv_heads
    rows, columns = array.shape
    return array.reshape(count, 2, rows // count // 2, columns).swapaxes(1, 2).reshape(rows, columns)


def is_permuted(name: str, config: dict[str, Any]) -> bool:
    """Whether the rows of this tensor are reordered."""
    return family_of(config).permuted and (".q_proj." in name or ".k_proj." in name)


def name_map(config: dict[str, Any]) -> Any:
    """llama.cpp's names of this architecture's tensors."""
    import gguf

    arch = {"llama": gguf.MODEL_ARCH.LLAMA, "qwen2": gguf.MODEL_ARCH.QWEN2, "gemma2": gguf.MODEL_ARCH.GEMMA2}[
        family_of(config).arch
    ]
    return gguf.get_tensor_name_map(arch, int(config["num_hidden_layers"]))


def gguf_name(names: Any, name: str, config: dict[str, Any]) -> str:
    """llama.cpp's name of a tensor.

    Raises:
        ModelError: it has no place there (a bias where the family has none, an expert).
    """
    found = names.get_name(name, try_suffixes=(".weight", ".bias"))
    if found is None or (name.endswith(".bias") and not family_of(config).biases):
        raise ModelError(f"the tensor {name!r} has no place in a GGUF of the {family_of(config).arch} family")
    return str(found)
