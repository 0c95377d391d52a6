"""What llama.cpp needs to know about a model's architecture: its name, hyperparameters, and tensor layout.

Llama, Mistral, Qwen2 and Gemma-2; any other architecture is refused by name. Layouts follow llama.cpp's converter
(MIT).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from noesis.core.errors import ModelError
from noesis.llm.model_config import read_model_config

CONVERTER = "use llama.cpp's  python convert_hf_to_gguf.py"
GEMMA_27B_LAYERS = 46  # llama.cpp scales the queries of Gemma-2 27B by another rule
UNSUPPORTED_KEYS = ("attention_bias", "mlp_bias", "use_sliding_window")


@dataclass(frozen=True)
class Family:
    """How one Hugging Face architecture maps to one of llama.cpp's."""

    arch: str  # llama.cpp's name
    permuted: bool = False  # rows of query and key are reordered for llama.cpp's rotary embedding
    plus_one: bool = False  # norms are stored as w and used as 1 + w
    biases: bool = False  # query, key and value have a bias
    activation: tuple[str, ...] = ("silu",)


FAMILIES = {
    "LlamaForCausalLM": Family("llama", permuted=True),
    "MistralForCausalLM": Family("llama", permuted=True),
    "Qwen2ForCausalLM": Family("qwen2", biases=True),
    "Gemma2ForCausalLM": Family("gemma2", plus_one=True, activation=("gelu_pytorch_tanh",)),
}


@dataclass(frozen=True)
class RopeScaling:
    """Llama 3.1's frequency-dependent scaling of rotary embeddings."""

    factor: float
    low_freq_factor: float
    high_freq_factor: float
    original_context: float  # tokens


@dataclass(frozen=True)
class ModelConfig:
    """What a conversion needs from a model's config.json."""

    family: Family
    layers: int
    hidden: int
    intermediate: int
    heads: int
    kv_heads: int
    head_size: int
    context: int  # tokens
    vocabulary: int
    norm_epsilon: float
    rope_theta: float
    rope_scaling: RopeScaling | None
    tied: bool  # embedding and output layer are one tensor
    sliding_window: int | None  # tokens
    attention_softcap: float | None  # Gemma-2
    final_softcap: float | None


def read_config(model: Path) -> ModelConfig:
    """Read `config.json` of a model that can be converted.

    Raises:
        ModelError: not a model folder, an unsupported architecture, or a variant that llama.cpp computes differently.
    """
    raw = read_model_config(model)
    family = _family(raw, model)
    try:
        _require_gemma_query_scale(raw, family, model)
        return _parse(raw, family)
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        raise ModelError(
            f"{model / 'config.json'} lacks what a conversion needs, or has it in another form ({error!r}): "
            "fetch the model again"
        ) from None


def unsupported(model: Path, why: str) -> ModelError:
    """The error for a model that only llama.cpp's own converter can convert."""
    return ModelError(f"{why}: {CONVERTER} {model}")


def _family(raw: dict[str, Any], model: Path) -> Family:
    architecture = str((raw.get("architectures") or [""])[0])
    if not architecture:
        raise ModelError(f"{model / 'config.json'} names no architecture: fetch the model again, or choose another")
    family = FAMILIES.get(architecture)
    if family is None:
        raise unsupported(model, f"{architecture} can't be converted here ({', '.join(FAMILIES)} can)")
    for key in UNSUPPORTED_KEYS:
        if raw.get(key):
            raise unsupported(model, f"{architecture} with {key} can't be converted here")
    activation = raw.get("hidden_activation") or raw.get("hidden_act")
    if activation is not None and activation not in family.activation:
        raise unsupported(model, f"{architecture} with the activation {activation!r} can't be converted here")
    return family


def _parse(raw: dict[str, Any], family: Family) -> ModelConfig:
    heads, gemma = int(raw["num_attention_heads"]), family.arch == "gemma2"
    theta, scaling = _rope(raw)
    window = raw["sliding_window"] if gemma else raw.get("sliding_window") or 0
    return ModelConfig(
        family=family,
        layers=int(raw["num_hidden_layers"]),
        hidden=int(raw["hidden_size"]),
        intermediate=int(raw["intermediate_size"]),
        heads=heads,
        kv_heads=int(raw.get("num_key_value_heads") or heads),
        head_size=int(raw.get("head_dim") or int(raw["hidden_size"]) // heads),
        context=int(raw["max_position_embeddings"]),
        vocabulary=int(raw["vocab_size"]),
        norm_epsilon=float(raw["rms_norm_eps"]),
        rope_theta=theta,
        rope_scaling=scaling,
        tied=bool(raw.get("tie_word_embeddings", gemma)),  # Gemma's default
        sliding_window=int(window) or None,
        attention_softcap=float(raw["attn_logit_softcapping"]) if gemma else None,
        final_softcap=float(raw["final_logit_softcapping"]) if gemma else None,
    )


def _rope(raw: dict[str, Any]) -> tuple[float, RopeScaling | None]:
    """(theta, scaling) from transformers 5's `rope_parameters` or the older keys.

    Raises:
        ModelError: an unsupported kind of scaling.
    """
    found = dict(raw.get("rope_parameters") or raw.get("rope_scaling") or {})
    theta = float(found.get("rope_theta", raw.get("rope_theta", 10000.0)))
    kind = found.get("rope_type") or found.get("type") or "default"
    if kind not in ("default", "llama3") or float(found.get("partial_rotary_factor", 1.0)) != 1.0:
        raise ModelError(f"rotary scaling of type {kind!r} can't be converted here: {CONVERTER}")
    if kind == "default":
        return theta, None
    return theta, RopeScaling(
        factor=float(found["factor"]),
        low_freq_factor=float(found["low_freq_factor"]),
        high_freq_factor=float(found["high_freq_factor"]),
        original_context=float(found["original_max_position_embeddings"]),
    )


def _require_gemma_query_scale(raw: dict[str, Any], family: Family, model: Path) -> None:
    """llama.cpp derives the scale of Gemma-2's queries from other settings; refuse a model that has another one."""
    scalar = raw.get("query_pre_attn_scalar")
    if family.arch != "gemma2" or scalar is None:
        return
    per_head = int(raw["hidden_size"]) // int(raw["num_attention_heads"])
    large = int(raw["num_hidden_layers"]) == GEMMA_27B_LAYERS
    expected = per_head if large else int(raw.get("head_dim") or per_head)
    if int(scalar) != expected:
        raise unsupported(
            model,
            f"Gemma2ForCausalLM with query_pre_attn_scalar {scalar} can't be converted here "
            f"(llama.cpp computes with {expected})",
        )


def write_hyperparameters(writer: Any, config: ModelConfig) -> None:
    """Write the numbers from which llama.cpp builds the model."""
    arch, context = config.family.arch, config.context
    if arch == "llama" and config.sliding_window:
        context = min(context, config.sliding_window)  # llama.cpp lacks Mistral's window: the two differ beyond it
    writer.add_block_count(config.layers)
    writer.add_context_length(context)
    writer.add_embedding_length(config.hidden)
    writer.add_feed_forward_length(config.intermediate)
    writer.add_head_count(config.heads)
    writer.add_head_count_kv(config.kv_heads)
    writer.add_key_length(config.head_size)
    writer.add_value_length(config.head_size)
    writer.add_rope_freq_base(config.rope_theta)
    writer.add_layer_norm_rms_eps(config.norm_epsilon)
    if arch == "llama":
        writer.add_rope_dimension_count(config.head_size)
        writer.add_vocab_size(config.vocabulary)
    if arch == "gemma2":
        writer.add_attn_logit_softcapping(config.attention_softcap)
        writer.add_final_logit_softcapping(config.final_softcap)
        writer.add_sliding_window(config.sliding_window)


def rope_factors(config: ModelConfig) -> Any:
    """Llama 3.1's per-frequency divisors (`rope_freqs.weight`): float32 (head_size / 2,); None without scaling."""
    import numpy as np

    scaling = config.rope_scaling
    if scaling is None:
        return None
    factors = []
    for i in range(0, config.head_size, 2):
        wavelength = 2 * math.pi * config.rope_theta ** (i / config.head_size)
        if wavelength < scaling.original_context / scaling.high_freq_factor:
            factors.append(1.0)
        elif wavelength > scaling.original_context / scaling.low_freq_factor:
            factors.append(scaling.factor)
        else:
            low, high = scaling.low_freq_factor, scaling.high_freq_factor
            smooth = (scaling.original_context / wavelength - low) / (high - low)
            factors.append(1 / ((1 - smooth) / scaling.factor + smooth))
    return np.array(factors, dtype=np.float32)


def permuted(name: str, array: Any, config: ModelConfig) -> Any:
    """`array` with the rows of query and key in llama.cpp's order: it rotates adjacent pairs, Hugging Face halves.

    Args:
        name: Hugging Face's.
        array: (out, in), or an adapter's B (out, r). Tensors that are not reordered are returned as they are.
    """
    if not is_permuted(name, config):
        return array
    heads = config.heads if ".q_proj." in name else config.kv_heads
    rows, columns = array.shape
    return array.reshape(heads, 2, rows // heads // 2, columns).swapaxes(1, 2).reshape(rows, columns)


def is_permuted(name: str, config: ModelConfig) -> bool:
    """Whether llama.cpp has the rows of this tensor in another order."""
    return config.family.permuted and (".q_proj." in name or ".k_proj." in name)


def name_map(config: ModelConfig) -> Any:
    """The gguf package's map from Hugging Face's tensor names to llama.cpp's."""
    import gguf

    arch = {"llama": gguf.MODEL_ARCH.LLAMA, "qwen2": gguf.MODEL_ARCH.QWEN2, "gemma2": gguf.MODEL_ARCH.GEMMA2}
    return gguf.get_tensor_name_map(arch[config.family.arch], config.layers)


def gguf_name(names: Any, name: str, config: ModelConfig) -> str:
    """llama.cpp's name of a tensor.

    Raises:
        ModelError: it has none (an expert, a bias where the family has none).
    """
    found = names.get_name(name, try_suffixes=(".weight", ".bias"))
    if found is None or (name.endswith(".bias") and not config.family.biases):
        raise ModelError(f"the tensor {name!r} has no place in a GGUF of the {config.family.arch} family")
    return str(found)
