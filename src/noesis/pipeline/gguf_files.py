"""GGUF files of a run's base and adapter, which several stages use."""

from __future__ import annotations

from pathlib import Path

from noesis.core.console import say
from noesis.core.files import sha256_json
from noesis.core.project import cache_folder
from noesis.pipeline.session import RunSession


def adapter_file(s: RunSession) -> Path:
    """Where the adapter's GGUF lies."""
    return s.run.gguf / f"{s.run.merged.name}-adapter.gguf"


def write_adapter(s: RunSession) -> Path:
    """The adapter as GGUF, for a GGUF of its base."""
    from noesis.release.gguf.writer import write_adapter_gguf

    write_adapter_gguf(s.run.adapter(), s.model.path, adapter_file(s), licence=s.model.licence, about=s.provenance())
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
