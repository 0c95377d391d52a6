"""GGUF files of a run's base and adapter, which several stages use."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from noesis.core.console import say
from noesis.core.files import sha256_file, sha256_json
from noesis.core.project import cache_folder
from noesis.pipeline.session import RunSession


def provenance(s: RunSession) -> dict[str, Any]:
    """What the model is made of: for noesis.json beside the weights, and the metadata of GGUF files."""
    identity = s.run.identity
    return {
        "noesis": s.run.manifest.noesis,
        "base": "HuggingFaceTB/SmolLM2-135M-Instruct"
        if s.config.training.model == "smollm2"
        else s.config.training.model,
        "base_revision": identity.revision,
        "licence": s.model.licence,
        "dataset_sha256": identity.dataset_sha256,
        "constitution_sha256": identity.constitution_sha256,
        "config_sha256": identity.config_sha256,
        "adapter_sha256": sha256_file(s.run.adapter() / "adapter_model.safetensors"),
        "system_prompt": _system(s),
        "system_prompt_pt": s.constitution.system_prompt.pt,
        "system_prompt_en": s.constitution.system_prompt.en,
    }


def adapter_file(s: RunSession) -> Path:
    """Where the adapter's GGUF lies."""
    return s.run.gguf / f"{s.run.merged.name}-adapter.gguf"


def write_adapter(s: RunSession) -> Path:
    """The adapter as GGUF, for a GGUF of its base."""
    from noesis.release.gguf.writer import write_adapter_gguf

    write_adapter_gguf(s.run.adapter(), s.model.path, adapter_file(s), licence=s.model.licence, about=provenance(s))
    return adapter_file(s)


def base_gguf(s: RunSession) -> Path:
    """The base as it was trained on (stored in 4 bits, if it was), as a GGUF file; written once and cached."""
    from noesis.release.gguf.writer import write_gguf

    quantization, dtype = s.as_trained.lora.quantization, s.arithmetic
    key = sha256_json([s.model.revision, quantization.model_dump(), dtype, 1])[:12]
    base = cache_folder() / "models" / f"base-{key}-f16.gguf"
    if not base.is_file():
        say("  writing the base as it was trained on to GGUF, once …")
        write_gguf(
            s.model.path, base, "f16", name="base", licence=s.model.licence, quantization=quantization, dtype=dtype
        )
    return base


def _system(s: RunSession) -> str:
    prompt = s.constitution.system_prompt
    return prompt.en if s.config.training.data.language == "en" else prompt.pt
