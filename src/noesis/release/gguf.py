"""`noesis gguf RUN`: safetensors → GGUF for llama.cpp, with the `gguf` package, tensor by tensor. No compiler, no llama.cpp checkout.

The Llama family for now; other architectures are refused by name. Which tensor is stored how follows llama.cpp's own converter (MIT):
matrices in the chosen type, vectors in F32, the query and key rows reordered for its rotary embedding.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from noesis.config import Quantization
from noesis.constitution.tokenizer import load_tokenizer
from noesis.errors import MissingExtra, ModelError
from noesis.files import require_space, sync_folder
from noesis.release.weights import AdapterFile, read_adapter, shards, tensors

ARCHITECTURES = ("LlamaForCausalLM",)


def write_gguf(model: Path, target: Path, kind: str, *, name: str, licence: str, quantization: Quantization | None = None, dtype: str = "bfloat16") -> None:
    """Write `target` from the model folder, whole or not at all.

    Args:
        kind: `f32`, `f16` or `q8_0`.
        quantization, dtype: give the base's training storage to write its dequantised weights instead of the originals.

    Raises:
        ModelError: an architecture or tokenizer that is not supported.
    """
    try:
        import gguf
    except ImportError:
        raise MissingExtra("gguf", "gguf") from None
    config = _config(model)
    part = target.with_name(f".{target.name}.part")
    weights = sum(f.stat().st_size for f in shards(model)) / 2  # stored in 16 bits
    require_space(target.parent, weights * {"f32": 4, "f16": 2, "q8_0": 1.07}[kind], target.name)
    writer = gguf.GGUFWriter(part, "llama")
    try:
        _hyperparameters(writer, config, kind, name, licence)
        _vocabulary(writer, model, config)
        names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, int(config["num_hidden_layers"]))
        for tensor_name, array, stored in _arrays(model, config, kind, names, quantization, dtype):
            writer.add_tensor(tensor_name, array, raw_dtype=stored)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        part.replace(target)
    except BaseException:
        writer.close()
        part.unlink(missing_ok=True)
        raise
    sync_folder(target.parent)


def write_adapter_gguf(adapter_folder: Path, base: Path, target: Path) -> None:
    """The LoRA adapter alone, for a GGUF of its base. F32; `lora_b` of query and key is reordered like the weight it belongs to."""
    import gguf
    from safetensors import safe_open

    config = _config(base)
    adapter: AdapterFile = read_adapter(adapter_folder)
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, int(config["num_hidden_layers"]))
    part = target.with_name(f".{target.name}.part")
    target.parent.mkdir(parents=True, exist_ok=True)
    writer = gguf.GGUFWriter(part, "llama")
    writer.add_type("adapter")
    writer.add_string("adapter.type", "lora")
    # llama.cpp scales by alpha / rank, so an rsLoRA scale is carried by its alpha.
    writer.add_float32("adapter.lora.alpha", adapter.scale * adapter.r)
    with safe_open(adapter_folder / "adapter_model.safetensors", framework="pt") as f:
        for weight, (a, b) in adapter.targets.items():
            name = _mapped(names, weight)
            writer.add_tensor(f"{name}.lora_a", f.get_tensor(a).float().numpy())
            writer.add_tensor(f"{name}.lora_b", _permuted(weight, f.get_tensor(b).float().numpy(), config))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    part.replace(target)


def _config(model: Path) -> dict[str, Any]:
    try:
        config = dict(json.loads((model / "config.json").read_text(encoding="utf-8")))
    except (OSError, ValueError) as error:
        raise ModelError(f"{model} is no model folder: {error}") from None
    architecture = (config.get("architectures") or ["?"])[0]
    if architecture not in ARCHITECTURES:
        raise ModelError(f"{architecture} can't be converted here yet ({', '.join(ARCHITECTURES)} can): use llama.cpp's  python convert_hf_to_gguf.py {model}")
    for key in ("attention_bias", "mlp_bias"):
        if config.get(key):
            raise ModelError(f"a Llama model with {key} can't be converted here: use llama.cpp's  python convert_hf_to_gguf.py {model}")
    return config


def _hyperparameters(writer: Any, config: dict[str, Any], kind: str, name: str, licence: str) -> None:
    import gguf

    heads, hidden = int(config["num_attention_heads"]), int(config["hidden_size"])
    head_dim = int(config.get("head_dim") or hidden // heads)
    file_type = {"f32": gguf.LlamaFileType.ALL_F32, "f16": gguf.LlamaFileType.MOSTLY_F16, "q8_0": gguf.LlamaFileType.MOSTLY_Q8_0}[kind]
    writer.add_type("model")
    writer.add_name(name)
    writer.add_license(licence)
    writer.add_file_type(file_type)
    writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
    writer.add_block_count(int(config["num_hidden_layers"]))
    writer.add_context_length(int(config["max_position_embeddings"]))
    writer.add_embedding_length(hidden)
    writer.add_feed_forward_length(int(config["intermediate_size"]))
    writer.add_head_count(heads)
    writer.add_head_count_kv(int(config.get("num_key_value_heads") or heads))
    writer.add_key_length(head_dim)
    writer.add_value_length(head_dim)
    writer.add_rope_dimension_count(head_dim)
    writer.add_rope_freq_base(float(_rope(config)["rope_theta"]))
    writer.add_layer_norm_rms_eps(float(config["rms_norm_eps"]))
    writer.add_vocab_size(int(config["vocab_size"]))


def _rope(config: dict[str, Any]) -> dict[str, Any]:
    """Rotary settings, from transformers 5's `rope_parameters` or the older keys."""
    rope = dict(config.get("rope_parameters") or config.get("rope_scaling") or {})
    rope.setdefault("rope_theta", config.get("rope_theta", 10000.0))
    kind = rope.get("rope_type") or rope.get("type") or "default"
    if kind not in ("default", "llama3"):
        raise ModelError(f"rotary scaling of type {kind!r} can't be converted here: use llama.cpp's convert_hf_to_gguf.py")
    rope["rope_type"] = kind
    return rope


def _rope_factors(config: dict[str, Any]) -> Any:
    """Llama-3.1's per-frequency divisors (`rope_freqs.weight`), None where the model has none."""
    import numpy as np

    rope = _rope(config)
    if rope["rope_type"] == "default":
        return None
    heads, hidden = int(config["num_attention_heads"]), int(config["hidden_size"])
    dim = int(config.get("head_dim") or hidden // heads)
    factor, low, high = float(rope["factor"]), float(rope["low_freq_factor"]), float(rope["high_freq_factor"])
    old = float(rope["original_max_position_embeddings"])
    factors = []
    for i in range(0, dim, 2):
        wavelength = 2 * math.pi * float(rope["rope_theta"]) ** (i / dim)
        if wavelength < old / high:
            factors.append(1.0)
        elif wavelength > old / low:
            factors.append(factor)
        else:
            smooth = (old / wavelength - low) / (high - low)
            factors.append(1 / ((1 - smooth) / factor + smooth))
    return np.array(factors, dtype=np.float32)


def _vocabulary(writer: Any, model: Path, config: dict[str, Any]) -> None:
    import gguf

    raw = json.loads((model / "tokenizer.json").read_text(encoding="utf-8"))
    if raw["model"]["type"] != "BPE" or raw["model"].get("byte_fallback"):
        raise ModelError(f"a {raw['model']['type']} tokenizer can't be converted here yet: use llama.cpp's  python convert_hf_to_gguf.py {model}")
    size = int(config["vocab_size"])
    added = {int(t["id"]): t for t in raw["added_tokens"]}
    by_id = {int(i): text for text, i in raw["model"]["vocab"].items()} | {i: t["content"] for i, t in added.items()}
    texts, kinds = [], []
    for i in range(size):
        texts.append(by_id.get(i, f"[PAD{i}]"))
        if i not in by_id:
            kinds.append(gguf.TokenType.UNUSED)
        elif i in added:
            kinds.append(gguf.TokenType.CONTROL if added[i].get("special") else gguf.TokenType.USER_DEFINED)
        else:
            kinds.append(gguf.TokenType.NORMAL)
    merges = [m if isinstance(m, str) else " ".join(part.replace(" ", "Ġ") for part in m) for m in raw["model"]["merges"]]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(pre_tokenizer(raw))
    writer.add_token_list(texts)
    writer.add_token_types(kinds)
    writer.add_token_merges(merges)
    tokenizer = load_tokenizer(model)
    for role, key in (("bos", "bos_token"), ("eos", "eos_token"), ("unk", "unk_token"), ("pad", "pad_token")):
        token = tokenizer.special.get(key)
        token_id = tokenizer.backend.token_to_id(token) if token else None
        if token_id is not None:
            {"bos": writer.add_bos_token_id, "eos": writer.add_eos_token_id, "unk": writer.add_unk_token_id, "pad": writer.add_pad_token_id}[role](token_id)
    bos = tokenizer.special.get("bos_token")
    writer.add_add_bos_token(bool(bos) and tokenizer.backend.encode("a").ids[:1] == [tokenizer.backend.token_to_id(bos)])
    writer.add_add_space_prefix(False)
    template = (model / "chat_template.jinja").read_text(encoding="utf-8") if (model / "chat_template.jinja").is_file() else None
    writer.add_chat_template(template or json.loads((model / "tokenizer_config.json").read_text(encoding="utf-8"))["chat_template"])


def pre_tokenizer(raw: dict[str, Any]) -> str:
    """llama.cpp's name of the way in which `tokenizer.json` cuts text before BPE; parity compares the token ids that follow.

    Raises:
        ModelError: a way that is not known here.
    """
    steps = raw.get("pre_tokenizer") or {}
    steps = steps.get("pretokenizers", [steps])
    kinds = [step.get("type") for step in steps]
    if kinds == ["Digits", "ByteLevel"] and steps[0].get("individual_digits") and steps[1].get("use_regex", True):
        return "smollm"
    if kinds == ["ByteLevel"] and steps[0].get("use_regex", True):
        return "gpt-2"
    if kinds == ["Split", "ByteLevel"]:
        pattern = str(steps[0].get("pattern", {}).get("Regex", ""))
        if r"\p{N}{1,3}" in pattern and r"(?i:'s|'t|'re|'ve|'m|'ll|'d)" in pattern:
            return "llama-bpe"
    raise ModelError(f"this tokenizer's pre-tokenizer ({', '.join(map(str, kinds))}) is not known here: use llama.cpp's convert_hf_to_gguf.py")


def _arrays(model: Path, config: dict[str, Any], kind: str, names: Any, quantization: Quantization | None, dtype: str) -> Iterator[tuple[str, Any, Any]]:
    """(GGUF name, array, storage type) of each tensor."""
    import gguf

    matrix = {"f32": gguf.GGMLQuantizationType.F32, "f16": gguf.GGMLQuantizationType.F16, "q8_0": gguf.GGMLQuantizationType.Q8_0}[kind]
    factors = _rope_factors(config)
    if factors is not None:
        yield "rope_freqs.weight", factors, gguf.GGMLQuantizationType.F32
    for file in shards(model):
        for name, tensor, _ in tensors(file, quantization, dtype, None):
            if name == "lm_head.weight" and config.get("tie_word_embeddings"):
                continue
            array = _permuted(name, tensor.float().numpy(), config)
            stored = matrix if array.ndim == 2 else gguf.GGMLQuantizationType.F32
            yield _mapped(names, name), gguf.quants.quantize(array, stored), stored


def _mapped(names: Any, name: str) -> str:
    mapped = names.get_name(name, try_suffixes=(".weight", ".bias"))
    if mapped is None:
        raise ModelError(f"the tensor {name!r} has no place in a GGUF of the Llama family")
    return str(mapped)


def _permuted(name: str, array: Any, config: dict[str, Any]) -> Any:
    """llama.cpp rotates neighbouring pairs, Hugging Face halves: reorder the rows of q and k, head by head."""
    if name.endswith("q_proj.weight"):
        heads = int(config["num_attention_heads"])
    elif name.endswith("k_proj.weight"):
        heads = int(config.get("num_key_value_heads") or config["num_attention_heads"])
    else:
        return array
    rows, columns = array.shape
    return array.reshape(heads, 2, rows // heads // 2, columns).swapaxes(1, 2).reshape(rows, columns)
