"""Llama, and what differs from it in one thing: Mistral (windows), SmolLM3 (unrotated layers), Granite (factors)."""

from __future__ import annotations

from dataclasses import replace

from noesis.core.families.architecture import (
    NO_ROTARY,
    ROTARY,
    SLIDING,
    Architecture,
    Json,
    UnknownArchitecture,
    count,
    layer_types,
    number,
    read_llama,
    windows,
)
from noesis.core.i18n import N_


def llama(raw: Json) -> Architecture:
    if raw.get("sliding_window"):
        raise UnknownArchitecture(N_("it has a sliding window, which Llama's layers do not know"))
    return read_llama(raw)


def mistral(raw: Json) -> Architecture:
    read = read_llama(raw)
    return replace(read, windows=windows(raw, [SLIDING] * read.shape.layers, 4096))


def smollm3(raw: Json) -> Architecture:
    """Every fourth layer has no rotary embedding; a window, if there is one, is those layers'."""
    read = read_llama(raw, tied=True)
    layers, interval = read.shape.layers, count(raw, "no_rope_layer_interval", 4)
    rotated = raw.get("no_rope_layers")  # 1: the layer rotates
    if rotated is None:
        rotated = [int((i + 1) % interval != 0) for i in range(layers)]
    if not isinstance(rotated, list) or len(rotated) != layers:
        raise UnknownArchitecture(N_("its no_rope_layers are not a list of {layers}", layers=layers))
    read = replace(read, rotary=tuple(ROTARY if rotates else NO_ROTARY for rotates in rotated))
    if not raw.get("use_sliding_window"):
        return read
    return replace(read, windows=windows(raw, layer_types(raw, layers, lambda i: not rotated[i])))


def granite(raw: Json) -> Architecture:
    return replace(
        read_llama(raw),
        attention_scale=number(raw, "attention_multiplier", 1.0),
        embedding_scale=number(raw, "embedding_multiplier", 1.0),
        residual_scale=number(raw, "residual_multiplier", 1.0),
        logits_divisor=number(raw, "logits_scaling", 1.0),
    )
