"""Rotary embeddings as llama.cpp needs them: Llama 3.1's scaling, Gemma-3's two bases, Phi-3's two sets of factors."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from noesis.core.families.architecture import FULL, SLIDING, rotary_types
from noesis.core.i18n import _

Json = dict[str, Any]
LOCAL_THETA = 10_000.0  # llama.cpp's base for the layers of Gemma-3 that have a window


@dataclass(frozen=True)
class Llama3Scaling:
    """Llama 3.1's frequency-dependent scaling of rotary embeddings."""

    factor: float
    low_freq_factor: float
    high_freq_factor: float
    original_context: float  # tokens


@dataclass(frozen=True)
class LongRope:
    """Phi-3's frequencies: `short` divides them up to the original context, `long` beyond it."""

    short: tuple[float, ...]
    long: tuple[float, ...]
    attention_factor: float  # of cosine and sine
    original_context: int  # tokens


@dataclass(frozen=True)
class Rope:
    """Rotary embedding of a model.

    theta: base of the frequencies; turned: numbers of a head that are turned
    linear: what positions are divided by, except in layers with a window
    """

    theta: float
    turned: int
    scaling: Llama3Scaling | LongRope | None = None
    linear: float = 1.0


class UnknownRope(ValueError):
    """A kind that is not written here; the message names it."""


def read_rope(raw: Json, head_size: int, *, partial: bool = False, by_layer: bool = False) -> Rope:
    """From transformers 5's `rope_parameters` or the older keys.

    Args:
        partial: llama.cpp's graph turns a part of each head if asked.
        by_layer: layers with a window have a base of their own, as in Gemma-3.

    Raises:
        UnknownRope: llama.cpp would compute otherwise.
        KeyError, TypeError, ValueError: config.json is damaged.
    """
    found = dict(raw.get("rope_parameters") or raw.get("rope_scaling") or {})
    theta = raw.get("rope_theta") or (1_000_000.0 if by_layer else 10_000.0)
    if by_layer:
        local = dict(found.get(SLIDING) or {})
        local_theta = float(local.get("rope_theta") or raw.get("rope_local_base_freq") or LOCAL_THETA)
        if local_theta != LOCAL_THETA or local.get("rope_type", "default") != "default":
            raise UnknownRope(_("the rotary base {local_theta:g} of layers with a window", local_theta=local_theta))
        found = dict(found.get(FULL) or ({} if SLIDING in found else found))
    theta = float(found.get("rope_theta") or theta)
    share = float(found.get("partial_rotary_factor") or raw.get("partial_rotary_factor") or 1.0)
    kind = next(iter(rotary_types({"rope_parameters": found}) - {"None"}), "default")
    if kind == "yarn" and raw.get("model_type") == "phi3":
        kind = "longrope"
    if (share != 1.0 and not partial) or not 0.0 < share <= 1.0:
        raise UnknownRope(_("rotary embedding of {share:g} of each head", share=share))
    rope = Rope(theta, int(head_size * share))
    if kind == "default":
        return rope
    if kind == "llama3" and not by_layer:
        keys = ("factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings")
        return Rope(theta, rope.turned, Llama3Scaling(*(float(found[key]) for key in keys)))
    if kind == "linear" and by_layer:
        return Rope(theta, rope.turned, linear=float(found["factor"]))
    if kind == "longrope" and partial:
        return Rope(theta, rope.turned, _long_rope(found, raw, rope.turned // 2))
    raise UnknownRope(_("rotary scaling of type {kind!r:.40}", kind=kind))


def _long_rope(found: Json, raw: Json, pairs: int) -> LongRope:
    original = int(raw.get("original_max_position_embeddings") or found.get("original_max_position_embeddings") or 4096)
    short, long = (tuple(float(x) for x in found[key]) for key in ("short_factor", "long_factor"))
    if not len(short) == len(long) == pairs:
        raise ValueError(
            _(
                "short_factor and long_factor have {short} and {long} numbers, not {pairs}",
                short=len(short),
                long=len(long),
                pairs=pairs,
            )
        )
    factor = float(found.get("factor") or int(raw["max_position_embeddings"]) / original)
    given = found.get("attention_factor")
    attention = 1.0 if factor <= 1.0 else math.sqrt(1 + math.log(factor) / math.log(original))
    return LongRope(short, long, float(given) if given else attention, original)


def rope_tensors(rope: Rope) -> dict[str, Any]:
    """The tensors that hold divisors of the frequencies, by llama.cpp's names: float32 (turned / 2,)."""
    import numpy as np

    scaling = rope.scaling
    if isinstance(scaling, LongRope):
        both = {"long": scaling.long, "short": scaling.short}
        return {f"rope_factors_{name}.weight": np.array(values, dtype=np.float32) for name, values in both.items()}
    if scaling is None:
        return {}
    factors = []
    for i in range(0, rope.turned, 2):
        wavelength = 2 * math.pi * rope.theta ** (i / rope.turned)
        if wavelength < scaling.original_context / scaling.high_freq_factor:
            factors.append(1.0)
        elif wavelength > scaling.original_context / scaling.low_freq_factor:
            factors.append(scaling.factor)
        else:
            low, high = scaling.low_freq_factor, scaling.high_freq_factor
            smooth = (scaling.original_context / wavelength - low) / (high - low)
            factors.append(1 / ((1 - smooth) / scaling.factor + smooth))
    return {"rope_freqs.weight": np.array(factors, dtype=np.float32)}


def write_rope(writer: Any, rope: Rope) -> None:
    """The numbers from which llama.cpp makes the angles."""
    import gguf

    writer.add_rope_freq_base(rope.theta)
    if rope.linear != 1.0:
        writer.add_rope_scaling_type(gguf.RopeScalingType.LINEAR)
        writer.add_rope_scaling_factor(rope.linear)
    if isinstance(rope.scaling, LongRope):
        writer.add_rope_scaling_orig_ctx_len(rope.scaling.original_context)
        writer.add_rope_scaling_attn_factors(rope.scaling.attention_factor)
