"""config.json of the model in a GGUF file, from its metadata.

transformers drops what its table of keys does not hold: Llama 3.1's rotary factors, Gemma-3's scaled positions, head
widths. So the configuration is made here, and proved: what our own conversion would write for it must be what the file
says, key by key, and a key that it would not write is refused by name.
"""

from __future__ import annotations

import math
import struct
from pathlib import Path
from typing import Any

from noesis.core.errors import ModelError
from noesis.core.families.architecture import FULL, SLIDING
from noesis.core.i18n import N_, _
from noesis.llm.gguf.families import FAMILIES, LARGE_GEMMAS, WINDOW_PERIODS, ModelConfig, config_of, hyperparameters
from noesis.llm.gguf.header import NO_TOKEN, GgufHeader
from noesis.llm.gguf.rope import LOCAL_THETA, Llama3Scaling, Rope, rope_tensors

DAMAGED = N_("it is damaged or hostile: fetch the file again, or choose another")
ORIGINALS = N_("take the model that it was made from, in its .safetensors files")
# llama.cpp's architecture → the class in transformers
CLASSES = {
    "llama": "LlamaForCausalLM",
    "qwen2": "Qwen2ForCausalLM",
    "qwen3": "Qwen3ForCausalLM",
    "gemma2": "Gemma2ForCausalLM",
    "gemma3": "Gemma3ForCausalLM",
    "phi3": "Phi3ForCausalLM",
}
LLAMA_3 = tuple(Llama3Scaling(factor, 1.0, 4.0, 8192.0) for factor in (8.0, 32.0))  # 3.1 and 3.3; 3.2
ROPE_FACTORS = {"llama": ("rope_freqs",), "phi3": ("rope_factors_long", "rope_factors_short")}
LARGEST = 1e12  # of a number in the metadata, and of a rotary factor
TOLERANCE = 1e-4  # relative: factors and norms' epsilon are float32 in the file
Factors = dict[str, list[float]]  # tensors of rotary factors, by name


def read_base_config(file: Path, header: GgufHeader) -> dict[str, Any]:
    """The content of config.json.

    Raises:
        ModelError: the file has what transformers can't be told, or would compute otherwise.
    """
    arch = header.metadata["general.architecture"]
    told = header.metadata.items()
    known = {key.removeprefix(f"{arch}."): _shortest(v) for key, v in told if key.startswith(f"{arch}.")}
    if lists := [key for key in known if isinstance(known[key], list) and "pattern" not in key]:
        raise refused(file, _("{arch}.{lists} differs from layer to layer", arch=arch, lists=lists[0]))
    for key, value in known.items():
        if isinstance(value, float) and not 0.0 < value < LARGEST:
            raise refused(file, _("{arch}.{key} is {value}", arch=arch, key=key, value=value), DAMAGED)
    for key in ("feed_forward_length", "attention.layer_norm_rms_epsilon"):
        if key not in known:
            raise refused(file, _("{arch}.{key} is missing", arch=arch, key=key), DAMAGED)
    factors = _read_factors(file, header, arch)
    raw = _common(header, known, arch) | _own(known, arch) | {"rope_parameters": _rope(file, known, arch, factors)}
    try:
        config = config_of(raw, file)
    except ModelError as error:
        raise refused(file, str(error).partition(":")[0]) from None
    _check_told(file, known, config)
    if arch == "llama" and factors:
        _check_factors(file, config.rope, factors)
    return raw


def refused(file: Path, why: str, remedy: str = ORIGINALS) -> ModelError:
    """The error for a GGUF file that can't be a base model."""
    return ModelError(_("{file} can't be a base model: {why}; {remedy}", file=file, why=why, remedy=_(remedy)))


def _common(header: GgufHeader, known: dict[str, Any], arch: str) -> dict[str, Any]:
    heads, hidden = known["attention.head_count"], known["embedding_length"]
    turned = None if arch == "phi3" else known.get("rope.dimension_count")
    ids = {name: header.metadata.get(f"tokenizer.ggml.{name}_token_id", NO_TOKEN) for name in ("bos", "eos", "padding")}
    bos, eos, pad = (None if i == NO_TOKEN else i for i in ids.values())
    architecture = CLASSES[arch]
    return {
        "architectures": [architecture],
        "model_type": FAMILIES[architecture].model_type,
        "vocab_size": header.tensors.get("token_embd.weight", ((0, 0), 0))[0][-1],
        "hidden_size": hidden,
        "intermediate_size": known["feed_forward_length"],
        "num_hidden_layers": known["block_count"],
        "num_attention_heads": heads,
        "num_key_value_heads": known.get("attention.head_count_kv", heads),
        "head_dim": known.get("attention.key_length") or turned or hidden // heads,
        "max_position_embeddings": known["context_length"],
        "rms_norm_eps": known["attention.layer_norm_rms_epsilon"],
        "tie_word_embeddings": "output.weight" not in header.tensors,
        "bos_token_id": bos,
        "eos_token_id": eos,
        "pad_token_id": pad,
        "dtype": "bfloat16",
    }


def _own(known: dict[str, Any], arch: str) -> dict[str, Any]:
    """What a family has beside the others."""
    if arch == "phi3":
        original = known.get("rope.scaling.original_context_length")
        window = {"sliding_window": known.get("attention.sliding_window") or None}
        return window | ({"original_max_position_embeddings": original} if original else {})
    if arch not in WINDOW_PERIODS:
        return {"use_sliding_window": False} if arch in ("qwen2", "qwen3") else {}
    layers, heads, hidden = (known[k] for k in ("block_count", "attention.head_count", "embedding_length"))
    period = WINDOW_PERIODS[arch]
    head_dim = known.get("attention.key_length") or hidden // heads
    return {
        "hidden_activation": "gelu_pytorch_tanh",
        "query_pre_attn_scalar": hidden // heads if layers == LARGE_GEMMAS[arch] else head_dim,
        "sliding_window": known.get("attention.sliding_window"),
        "layer_types": [SLIDING if (i + 1) % period else FULL for i in range(layers)],
        "attn_logit_softcapping": known.get("attn_logit_softcapping"),
        "final_logit_softcapping": known.get("final_logit_softcapping"),
    }


def _rope(file: Path, known: dict[str, Any], arch: str, factors: Factors) -> dict[str, Any]:
    """transformers' `rope_parameters`."""
    rope: dict[str, Any] = {"rope_type": "default", "rope_theta": known.get("rope.freq_base", 10_000.0)}
    kind = known.get("rope.scaling.type", "none")
    if arch == "gemma3":
        linear = {"rope_type": "linear", "factor": known.get("rope.scaling.factor")} if kind == "linear" else {}
        return {FULL: rope | linear, SLIDING: {"rope_type": "default", "rope_theta": LOCAL_THETA}}
    if kind not in ("none", "longrope"):
        raise refused(file, _("its rotary embedding is scaled ({kind!r:.40})", kind=kind))
    if arch == "phi3":
        heads, hidden = known["attention.head_count"], known["embedding_length"]
        turned, width = known.get("rope.dimension_count"), known.get("attention.key_length") or hidden // heads
        if turned and turned != width:
            rope["partial_rotary_factor"] = turned / width
        if factors:
            return rope | {
                "rope_type": "longrope",
                "long_factor": factors["rope_factors_long"],
                "short_factor": factors["rope_factors_short"],
                "attention_factor": known.get("rope.scaling.attn_factor", 1.0),
            }
    if arch == "llama" and factors:
        largest = max(factors["rope_freqs"])
        scaling = next((one for one in LLAMA_3 if math.isclose(one.factor, largest, rel_tol=TOLERANCE)), None)
        if scaling is None:
            raise refused(
                file, _("its rotary factors (rope_freqs.weight, up to {largest:g}) are unknown", largest=largest)
            )
        return rope | {
            "rope_type": "llama3",
            "factor": scaling.factor,
            "low_freq_factor": scaling.low_freq_factor,
            "high_freq_factor": scaling.high_freq_factor,
            "original_max_position_embeddings": int(scaling.original_context),
        }
    return rope


def _read_factors(file: Path, header: GgufHeader, arch: str) -> Factors:
    """The rotary factors that the file holds as tensors; those of Phi-3 come both or not at all."""
    wanted = [name for name in ROPE_FACTORS.get(arch, ()) if f"{name}.weight" in header.tensors]
    if not wanted:
        return {}
    if len(wanted) < len(ROPE_FACTORS[arch]):
        raise refused(file, _("of its rotary factors only {wanted}.weight is there", wanted=wanted[0]))
    import gguf

    try:
        stored = {tensor.name.removesuffix(".weight"): tensor for tensor in gguf.GGUFReader(file).tensors}
        found = {
            name: [float(x) for x in gguf.quants.dequantize(stored[name].data, stored[name].tensor_type).reshape(-1)]
            for name in wanted
        }
    except (ValueError, LookupError, OverflowError, TypeError) as error:
        raise refused(file, _("its rotary factors can't be read ({error})", error=error), DAMAGED) from None
    for name, factors in found.items():
        if not all(0.0 < factor < LARGEST for factor in factors):
            raise refused(file, _("{name}.weight holds what is no rotary factor", name=name), DAMAGED)
    return found


def _check_factors(file: Path, rope: Rope, factors: Factors) -> None:
    expected = rope_tensors(rope)["rope_freqs.weight"].tolist()
    found = factors["rope_freqs"]
    if len(found) != len(expected) or not all(
        math.isclose(a, b, rel_tol=TOLERANCE) for a, b in zip(found, expected, strict=True)
    ):
        raise refused(file, _("its rotary factors (rope_freqs.weight) are not those of a Llama 3"))


def _check_told(file: Path, known: dict[str, Any], config: ModelConfig) -> None:
    """Refuse a key whose value our own conversion would not write for `config`."""
    arch, shape = config.family.arch, config.shape
    expected = hyperparameters(config) | {"context_length": known["context_length"]}
    harmless: dict[str, tuple[Any, ...]] = {  # by their values, where our conversion writes nothing
        "vocab_size": (shape.vocabulary,),
        "rope.dimension_count": (config.rope.turned,),
        "rope.scaling.type": ("none", *(("longrope",) if arch == "phi3" else ())),
        "rope.scaling.finetuned": (True, False),
        "attention.causal": (True,),
        "expert_count": (0,),
        "expert_used_count": (0,),
    }
    if arch == "phi3":
        expected["attention.sliding_window"] = known.get("attention.sliding_window")
        harmless["rope.scaling.factor"] = (known.get("rope.scaling.factor"),)  # the factors themselves are tensors
    if arch == "gemma3":
        period = WINDOW_PERIODS[arch]
        layers = [(i + 1) % period != 0 for i in range(shape.layers)]
        harmless |= {"rope.freq_base_swa": (LOCAL_THETA,), "attention.sliding_window_pattern": (period, layers)}
    for key, value in known.items():
        right = (expected[key],) if key in expected else harmless.get(key, ())
        if not any(_equal(value, one) for one in right):
            raise refused(
                file,
                _(
                    "{arch}.{key} is {value!r:.60}, which a conversion to transformers would lose",
                    arch=arch,
                    key=key,
                    value=value,
                ),
            )


def _shortest(value: Any) -> Any:
    """A float32 of the file as the shortest decimal that is the same float32: 1e-06, not 9.999999974752427e-07."""
    if not isinstance(value, float) or not math.isfinite(value):
        return value
    same = (float(f"{value:.{digits}g}") for digits in range(6, 18))
    return next((one for one in same if struct.pack("<f", one) == struct.pack("<f", value)), value)


def _equal(a: Any, b: Any) -> bool:
    if isinstance(a, float) and isinstance(b, (int, float)):
        return math.isclose(a, b, rel_tol=TOLERANCE)
    return bool(a == b)
