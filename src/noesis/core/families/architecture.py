"""A model's architecture: what the engine's one layer has to compute, and how families read it from config.json.

A family's function gets config.json as a dict and returns an `Architecture`; `read_llama` reads what most have in
common.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

from noesis.core.families.shape import Parts, Shape
from noesis.core.i18n import N_
from noesis.core.jsonl import fraction, whole_number

Json = dict[str, Any]
Activation = Literal["silu", "gelu_tanh"]
ACTIVATIONS: dict[str, Activation] = {"silu": "silu", "gelu_pytorch_tanh": "gelu_tanh"}  # transformers' name: ours
FULL, SLIDING = "full_attention", "sliding_attention"  # transformers' `layer_types`
ROTARY, NO_ROTARY = "", "none"  # the model's only rotary embedding; none at all
DROPOUTS = ("attention_dropout", "resid_pdrop", "embd_pdrop")


class UnknownArchitecture(ValueError):
    """Why a config.json describes what no family here computes; transformers' own layers may."""


@dataclass(frozen=True)
class Architecture:
    """What a decoder-only model computes.

    epsilon: of the norms
    plus_one: norms multiply by 1 + weight, in float32
    attention_scale: of the products of queries and keys
    attention_cap, logits_cap: x becomes cap · tanh(x / cap); None: it stays x
    logits_divisor, embedding_scale: of the logits, before their cap; of the embedded tokens
    residual_scale: of what attention and MLP add
    windows: for each layer, how many tokens a token sees, itself included; None: all before it
    rotary: for each layer, which of the model's rotary embeddings: ROTARY, NO_ROTARY or, where layers have their own,
        the layer's type
    rotary_by_length: the frequencies depend on the sequence's length
    """

    shape: Shape
    epsilon: float
    attention_scale: float
    windows: tuple[int | None, ...]
    rotary: tuple[str, ...]
    activation: Activation = "silu"
    plus_one: bool = False
    attention_cap: float | None = None
    logits_cap: float | None = None
    logits_divisor: float = 1.0
    embedding_scale: float = 1.0
    residual_scale: float = 1.0
    rotary_by_length: bool = False


def read_llama(
    raw: Json,
    *,
    parts: Parts | None = None,
    tied: bool = False,
    epsilon: float = 1e-6,
    head_dim: int | None = None,
    activation: str = "hidden_act",
) -> Architecture:
    """What most families have in common.

    Args:
        parts: None: Llama's, with the biases that the config asks for.
        tied, epsilon, head_dim: where the config does not say; None: the width shared among the heads.
        activation: the config's key.

    Raises:
        UnknownArchitecture: it asks for what the engine does not compute.
        ValueError: a number is missing, or none that a model has.
    """
    require_known(raw, activation)
    shape = read_dimensions(raw, parts or Parts(biases=biases(raw)), tied=tied, head_dim=head_dim)
    return Architecture(
        shape=shape,
        epsilon=number(raw, "rms_norm_eps", epsilon),
        attention_scale=shape.head_dim**-0.5,
        windows=(None,) * shape.layers,
        rotary=(ROTARY,) * shape.layers,
        activation=ACTIVATIONS[raw.get(activation) or "silu"],
        rotary_by_length="longrope" in rotary_types(raw),
    )


def read_dimensions(raw: Json, parts: Parts, *, tied: bool = False, head_dim: int | None = None) -> Shape:
    """The dimensions, by the keys that all families share.

    Raises:
        ValueError: one is missing, or none that a model has.
    """
    heads, hidden = (
        whole_number(raw, "num_attention_heads", 1, 1 << 14),
        whole_number(raw, "hidden_size", 1, 1 << 20),
    )
    given = {"num_key_value_heads": heads, "head_dim": head_dim or hidden // heads}
    given |= {key: raw[key] for key in given if raw.get(key)}
    return Shape(
        layers=whole_number(raw, "num_hidden_layers", 1, 2_000),
        hidden=hidden,
        intermediate=whole_number(raw, "intermediate_size", 1, 1 << 22),
        heads=heads,
        kv_heads=whole_number(given, "num_key_value_heads", 1, 1 << 14),
        head_dim=whole_number(given, "head_dim", 1, 1 << 14),
        vocabulary=whole_number(raw, "vocab_size", 1, 4_000_000),
        tied=bool(raw.get("tie_word_embeddings", tied)),
        parts=parts,
    )


def require_known(raw: Json, activation: str = "hidden_act") -> None:
    """Refuse what no family here has."""
    name = raw.get(activation) or "silu"
    if not isinstance(name, str) or name not in ACTIVATIONS:
        raise UnknownArchitecture(
            N_(
                "its activation is {name!r:.40}; the engine knows {activations}",
                name=name,
                activations=", ".join(ACTIVATIONS),
            )
        )
    for key in DROPOUTS:
        if raw.get(key):
            raise UnknownArchitecture(N_("it has {key}, dropout that the engine does not apply", key=key))
    if raw.get("use_bidirectional_attention"):
        raise UnknownArchitecture(N_("its tokens see those that come after them (use_bidirectional_attention)"))
    if "dynamic" in rotary_types(raw):
        raise UnknownArchitecture(N_("its rotary frequencies depend on the sequences before (dynamic scaling)"))


def rotary_types(raw: Json) -> set[str]:
    """The types of scaling of all rotary embeddings, by transformers' names."""
    found = [raw.get(key) for key in ("rope_parameters", "rope_scaling")]
    nested = [value for one in found if isinstance(one, dict) for value in (one, *one.values())]
    names = {str(one.get("rope_type") or one.get("type")) for one in nested if isinstance(one, dict)}
    return {"longrope" if name in ("su", "longrope") else name for name in names}


def biases(raw: Json) -> tuple[str, ...]:
    """The groups with a bias, by Llama's keys."""
    attention = ("qkv", "o") if raw.get("attention_bias") else ()
    return (*attention, *(("gate_up", "down") if raw.get("mlp_bias") else ()))


def layer_types(raw: Json, layers: int, default: Callable[[int], bool]) -> list[str]:
    """FULL or SLIDING for each layer.

    Args:
        default: whether layer i slides, where the config has no `layer_types`.

    Raises:
        UnknownArchitecture: the config lists others, or not one for each layer.
    """
    given = raw.get("layer_types")
    if given is None:
        return [SLIDING if default(i) else FULL for i in range(layers)]
    if not isinstance(given, list) or len(given) != layers or not all(one in (FULL, SLIDING) for one in given):
        raise UnknownArchitecture(
            N_("its layer_types are not {layers} times {full} or {sliding}", layers=layers, full=FULL, sliding=SLIDING)
        )
    return given


def windows(raw: Json, types: list[str], default: int | None = None) -> tuple[int | None, ...]:
    """The window of each layer: that of the config where the layer slides.

    Raises:
        ValueError: a layer slides, and the window is none.
    """
    if SLIDING not in types or raw.get("sliding_window", default) is None:
        return (None,) * len(types)
    width = whole_number({"sliding_window": raw.get("sliding_window", default)}, "sliding_window", 1, 1 << 28)
    return tuple(width if one == SLIDING else None for one in types)


def number(raw: Json, key: str, default: float) -> float:
    """A positive number of the config, or `default` where it has none."""
    return default if raw.get(key) is None else float(fraction(raw, key, 0.0, 1e12))


def optional_number(raw: Json, key: str, default: float | None) -> float | None:
    """The same; None where the config says null."""
    return default if key not in raw else None if raw[key] is None else float(fraction(raw, key, 0.0, 1e12))


def count(raw: Json, key: str, default: int, *, least: int = 1) -> int:
    """A whole number of the config, or `default` where it has none."""
    return default if raw.get(key) is None else whole_number(raw, key, least, 1 << 20)
