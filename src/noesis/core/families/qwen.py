"""Qwen2 and 2.5 (biases of q, k and v) and Qwen3 (norms of the heads of q and k)."""

from __future__ import annotations

from dataclasses import replace

from noesis.core.families.architecture import Architecture, Json, biases, count, layer_types, read_llama, windows
from noesis.core.families.shape import Parts


def qwen2(raw: Json) -> Architecture:
    return _windowed(raw, read_llama(raw, parts=Parts(biases=("qkv",))))


def qwen3(raw: Json) -> Architecture:
    parts = Parts(biases=biases(raw), head_norms=True)
    return _windowed(raw, read_llama(raw, parts=parts, head_dim=128))


def _windowed(raw: Json, read: Architecture) -> Architecture:
    """The upper layers have the window, if it is used."""
    if not raw.get("use_sliding_window"):
        return read
    first = count(raw, "max_window_layers", 28, least=0)
    return replace(read, windows=windows(raw, layer_types(raw, read.shape.layers, lambda i: i >= first), 4096))
