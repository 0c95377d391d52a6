"""All families, by transformers' `model_type`."""

from __future__ import annotations

from collections.abc import Callable

from noesis.core.families.architecture import Architecture, Json, UnknownArchitecture
from noesis.core.families.gemma import gemma2, gemma3
from noesis.core.families.llama import granite, llama, mistral, smollm3
from noesis.core.families.phi import phi3
from noesis.core.families.qwen import qwen2, qwen3
from noesis.core.i18n import N_

FAMILIES: dict[str, Callable[[Json], Architecture]] = {
    "llama": llama,
    "mistral": mistral,
    "qwen2": qwen2,
    "qwen3": qwen3,
    "gemma2": gemma2,
    "gemma3_text": gemma3,
    "phi3": phi3,
    "smollm3": smollm3,
    "granite": granite,
}


def describe(raw: Json) -> Architecture:
    """The architecture that a config.json describes.

    Raises:
        UnknownArchitecture: no family here computes it.
        ValueError: a number is missing, or none that a model has.
    """
    kind = raw.get("model_type")
    if not isinstance(kind, str) or kind not in FAMILIES:
        raise UnknownArchitecture(
            N_(
                "its layers are of type {kind!r:.60}; the engine knows {families}",
                kind=kind,
                families=", ".join(FAMILIES),
            )
        )
    return FAMILIES[kind](raw)
