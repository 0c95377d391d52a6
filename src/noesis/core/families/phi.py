"""Phi-3 and Phi-4: q, k and v are one projection, gate and up another; part of a head may stay unrotated."""

from __future__ import annotations

from dataclasses import replace

from noesis.core.families.architecture import SLIDING, Architecture, Json, read_llama, rotary_types, windows
from noesis.core.families.shape import Parts


def phi3(raw: Json) -> Architecture:
    read = read_llama(raw, parts=Parts(fused=True), epsilon=1e-5)
    by_length = bool(rotary_types(raw) & {"longrope", "yarn"})  # "yarn" is its authors' earlier word for it
    return replace(read, windows=windows(raw, [SLIDING] * read.shape.layers), rotary_by_length=by_length)
