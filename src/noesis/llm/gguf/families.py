"""What llama.cpp needs to know about a model's architecture: its name, hyperparameters, and tensor layout.

What a model computes is read by `core/families`; here stands how llama.cpp says it, and what it would compute
otherwise, which is refused by name, as is any other architecture. Layouts follow llama.cpp's converter (MIT).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from noesis.core.errors import ModelError
from noesis.core.families.architecture import NO_ROTARY, Architecture, UnknownArchitecture
from noesis.core.families.registry import describe
from noesis.core.families.shape import Shape
from noesis.core.i18n import N_, _
from noesis.core.jsonl import whole_number
from noesis.llm.gguf.rope import LongRope, Rope, UnknownRope, read_rope, write_rope
from noesis.llm.model_config import read_model_config

CONVERTER = N_("use llama.cpp's  python convert_hf_to_gguf.py")
# layers of the models whose queries llama.cpp scales by the width of the model, not of a head
LARGE_GEMMAS = {"gemma2": 46, "gemma3": 62}
WINDOW_PERIODS = {"gemma2": 2, "gemma3": 6}  # llama.cpp: all layers have the window but the last of each period
UNROTATED_PERIOD = 4  # llama.cpp: of SmolLM3, the last layer of each period
UNSUPPORTED_KEYS = ("attention_bias", "mlp_bias", "use_sliding_window")


@dataclass(frozen=True)
class Family:
    """How one Hugging Face architecture maps to one of llama.cpp's."""

    model_type: str  # transformers'
    arch: str  # llama.cpp's name
    permuted: bool = False  # rows of query and key are reordered for llama.cpp's rotary embedding


FAMILIES = {
    "LlamaForCausalLM": Family("llama", "llama", permuted=True),
    "MistralForCausalLM": Family("mistral", "llama", permuted=True),
    "Qwen2ForCausalLM": Family("qwen2", "qwen2"),
    "Qwen3ForCausalLM": Family("qwen3", "qwen3"),
    "Gemma2ForCausalLM": Family("gemma2", "gemma2"),
    "Gemma3ForCausalLM": Family("gemma3_text", "gemma3"),
    "Phi3ForCausalLM": Family("phi3", "phi3"),
    "SmolLM3ForCausalLM": Family("smollm3", "smollm3", permuted=True),
    "GraniteForCausalLM": Family("granite", "granite", permuted=True),
}


@dataclass(frozen=True)
class ModelConfig:
    """What a conversion needs from a model's config.json."""

    family: Family
    described: Architecture
    rope: Rope
    context: int  # tokens, as far as llama.cpp computes what the model does

    @property
    def shape(self) -> Shape:
        return self.described.shape

    @property
    def window(self) -> int | None:
        """Tokens that layers with a window see; None: no layer has one."""
        return next((window for window in self.described.windows if window is not None), None)


def read_config(model: Path) -> ModelConfig:
    """Read `config.json` of a model that can be converted.

    Raises:
        ModelError: not a model folder, an unsupported architecture, or a variant that llama.cpp computes differently.
    """
    return config_of(read_model_config(model), model)


def config_of(raw: dict[str, Any], model: Path) -> ModelConfig:
    """The same from the content of a config.json; `model` is named in messages.

    Raises:
        ModelError: as `read_config`.
    """
    family, name = _family(raw, model)
    try:
        described = describe(raw | {"model_type": family.model_type})
        shape = described.shape
        phi, gemma3 = family.arch == "phi3", family.arch == "gemma3"
        rope = read_rope(raw, shape.head_dim, partial=phi, by_layer=gemma3)
        config = ModelConfig(family, described, rope, whole_number(raw, "max_position_embeddings", 1, 1 << 28))
    except (UnknownArchitecture, UnknownRope) as error:
        raise unsupported(model, _("{name} can't be converted here: {error}", name=name, error=error)) from None
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        raise ModelError(
            _(
                "{model} lacks what a conversion needs, or has it in another form ({error!r}): fetch the model again",
                model=model / "config.json",
                error=error,
            )
        ) from None
    if (difference := _difference(config, raw)) is not None:
        raise unsupported(
            model, _("{name} with {difference} can't be converted here", name=name, difference=difference)
        )
    return replace(config, context=_context(config))


def unsupported(model: Path, why: str) -> ModelError:
    """The error for a model that only llama.cpp's own converter can convert."""
    return ModelError(_("{why}: {how} {model}", why=why, how=_(CONVERTER), model=model))


def _family(raw: dict[str, Any], model: Path) -> tuple[Family, str]:
    architecture = str((raw.get("architectures") or [""])[0])
    if not architecture:
        raise ModelError(
            _("{model} names no architecture: fetch the model again, or choose another", model=model / "config.json")
        )
    family = FAMILIES.get(architecture)
    if family is None:
        raise unsupported(
            model,
            _(
                "{architecture} can't be converted here ({families} can)",
                architecture=architecture,
                families=", ".join(FAMILIES),
            ),
        )
    for key in UNSUPPORTED_KEYS:
        if raw.get(key):
            raise unsupported(
                model, _("{architecture} with {key} can't be converted here", architecture=architecture, key=key)
            )
    return family, architecture


def _difference(config: ModelConfig, raw: dict[str, Any]) -> str | None:
    """What llama.cpp derives from other settings than the model's, and otherwise; None: nothing."""
    described, shape, arch = config.described, config.shape, config.family.arch
    expected = "gelu_tanh" if arch in WINDOW_PERIODS else "silu"
    if described.activation != expected:
        return _("the activation {activation}", activation=described.activation)
    if arch in LARGE_GEMMAS:
        width = shape.hidden // shape.heads if shape.layers == LARGE_GEMMAS[arch] else shape.head_dim
        if described.attention_scale != width**-0.5:
            return _(
                "query_pre_attn_scalar {value} (llama.cpp computes with {width})",
                value=raw.get("query_pre_attn_scalar"),
                width=width,
            )
        period = WINDOW_PERIODS[arch]
        if described.windows != tuple(config.window if (i + 1) % period else None for i in range(shape.layers)):
            return _("windows in other layers than all but each {period}th", period=period)
    if arch == "gemma3" and described.logits_cap is not None:
        return "final_logit_softcapping"
    if arch == "smollm3":
        rotated = [kind != NO_ROTARY for kind in described.rotary]
        if rotated != [(i + 1) % UNROTATED_PERIOD != 0 for i in range(shape.layers)]:
            return _(
                "rotary embedding missing in other layers than each {unrotated_period}th",
                unrotated_period=UNROTATED_PERIOD,
            )
    return None


def _context(config: ModelConfig) -> int:
    """Tokens up to which llama.cpp computes the same: it lacks Mistral's and Phi-3's window, and takes Phi-3's long
    factors by the context, not by the sequence."""
    context = config.context
    if config.family.arch not in WINDOW_PERIODS and config.window is not None:
        context = min(context, config.window)
    if isinstance(config.rope.scaling, LongRope):
        context = min(context, config.rope.scaling.original_context)
    return context


def write_hyperparameters(writer: Any, config: ModelConfig) -> None:
    """Write the numbers from which llama.cpp builds the model."""
    arch, described, shape = config.family.arch, config.described, config.shape
    writer.add_block_count(shape.layers)
    writer.add_context_length(config.context)
    writer.add_embedding_length(shape.hidden)
    writer.add_feed_forward_length(shape.intermediate)
    writer.add_head_count(shape.heads)
    writer.add_head_count_kv(shape.kv_heads)
    writer.add_key_length(shape.head_dim)
    writer.add_value_length(shape.head_dim)
    writer.add_layer_norm_rms_eps(described.epsilon)
    write_rope(writer, config.rope)
    if arch in ("llama", "granite", "smollm3", "phi3"):
        writer.add_rope_dimension_count(config.rope.turned)
        writer.add_vocab_size(shape.vocabulary)
    if described.attention_cap is not None:
        writer.add_attn_logit_softcapping(described.attention_cap)
    if described.logits_cap is not None:
        writer.add_final_logit_softcapping(described.logits_cap)
    if arch in WINDOW_PERIODS and config.window is not None:
        writer.add_sliding_window(config.window)
    if arch == "phi3":
        writer.add_sliding_window(0)  # the key must be there; a window is not computed
    if arch == "granite":
        writer.add_attention_scale(described.attention_scale)
        writer.add_embedding_scale(described.embedding_scale)
        writer.add_residual_scale(described.residual_scale)
        writer.add_logit_scale(described.logits_divisor)


def hyperparameters(config: ModelConfig) -> dict[str, Any]:
    """The same numbers, by their keys without the architecture: `block_count`."""
    import gguf

    writer = gguf.GGUFWriter(None, config.family.arch)
    write_hyperparameters(writer, config)
    prefix = f"{config.family.arch}."
    return {key.removeprefix(prefix): v.value for key, v in writer.kv_data[0].items() if key.startswith(prefix)}


def permuted(name: str, array: Any, config: ModelConfig) -> Any:
    """`array` with the rows of query and key in llama.cpp's order: it rotates adjacent pairs, Hugging Face halves.

    Args:
        name: Hugging Face's.
        array: (out, in), or an adapter's B (out, r). Tensors that are not reordered are returned as they are.
    """
    if not is_permuted(name, config):
        return array
    heads = config.shape.heads if ".q_proj." in name else config.shape.kv_heads
    rows, columns = array.shape
    return array.reshape(heads, 2, rows // heads // 2, columns).swapaxes(1, 2).reshape(rows, columns)


def is_permuted(name: str, config: ModelConfig) -> bool:
    """Whether llama.cpp has the rows of this tensor in another order."""
    return config.family.permuted and (".q_proj." in name or ".k_proj." in name)


def name_map(config: ModelConfig) -> Any:
    """The gguf package's map from Hugging Face's tensor names to llama.cpp's."""
    import gguf

    arch = next(arch for arch, name in gguf.MODEL_ARCH_NAMES.items() if name == config.family.arch)
    return gguf.get_tensor_name_map(arch, config.shape.layers)


def gguf_name(names: Any, name: str, config: ModelConfig) -> str:
    """llama.cpp's name of a tensor.

    Raises:
        ModelError: it has none (an expert, a bias where the family has none).
    """
    found = names.get_name(name, try_suffixes=(".weight", ".bias"))
    if found is None or (name.endswith(".bias") and not config.shape.parts.biases):
        raise ModelError(
            _("the tensor {name!r} has no place in a GGUF of the {arch} family", name=name, arch=config.family.arch)
        )
    return str(found)
