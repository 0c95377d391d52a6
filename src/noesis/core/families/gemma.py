"""Gemma-2 and the text models of Gemma-3: norms before and after, GELU, windows by layer, scaled embeddings."""

from __future__ import annotations

from dataclasses import replace

from noesis.core.families.architecture import (
    Architecture,
    Json,
    biases,
    count,
    layer_types,
    number,
    optional_number,
    read_llama,
    windows,
)
from noesis.core.families.shape import Parts

ACTIVATION = "hidden_activation"


def gemma2(raw: Json) -> Architecture:
    """Every other layer has a window; attention and logits are capped."""
    cap = optional_number(raw, "attn_logit_softcapping", 50.0)
    parts = Parts(biases=biases(raw), post_norms=True, capped=cap is not None)
    read = _gemma(raw, parts, logits_cap=30.0)
    types = layer_types(raw, read.shape.layers, lambda i: (i + 1) % 2 != 0)
    return replace(read, windows=windows(raw, types, 4096), attention_cap=cap)


def gemma3(raw: Json) -> Architecture:
    """Five layers of six have a window, and a rotary embedding of their own; heads are normed, attention has no cap."""
    read = _gemma(raw, Parts(biases=biases(raw), head_norms=True, post_norms=True), logits_cap=None)
    pattern = count(raw, "sliding_window_pattern", 6)
    types = layer_types(raw, read.shape.layers, lambda i: (i + 1) % pattern != 0)
    return replace(read, windows=windows(raw, types, 4096), rotary=tuple(types))


def _gemma(raw: Json, parts: Parts, *, logits_cap: float | None) -> Architecture:
    """What both have in common; the cap is that of a config that does not say."""
    filled = raw if raw.get(ACTIVATION) else raw | {ACTIVATION: "gelu_pytorch_tanh"}
    read = read_llama(filled, parts=parts, tied=True, head_dim=256, activation=ACTIVATION)
    return replace(
        read,
        plus_one=True,
        attention_scale=number(raw, "query_pre_attn_scalar", 256) ** -0.5,
        logits_cap=optional_number(raw, "final_logit_softcapping", logits_cap),
        embedding_scale=read.shape.hidden**0.5,
    )
