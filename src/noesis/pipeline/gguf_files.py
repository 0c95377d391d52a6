"""GGUF files of a run's base and adapter, which several stages use."""

from __future__ import annotations

from pathlib import Path

from noesis.core.console import say
from noesis.core.files import scratch_folder, sha256_file, sha256_json
from noesis.core.i18n import _
from noesis.core.machine.folders import cache_folder
from noesis.core.rooted import move
from noesis.llm.embedded import EMBEDDED
from noesis.pipeline.session import RunSession
from noesis.release.model_card import EMBEDDED_ON_HUB
from noesis.release.provenance import Provenance

BASE_FORMAT = 2  # part of the cache key: raise it when the same base would be written differently


def provenance(s: RunSession) -> Provenance:
    """What the run's model was made from."""
    identity, model = s.run.identity, s.config.training.model
    return Provenance(
        noesis=s.run.manifest.noesis,
        base=EMBEDDED_ON_HUB if model == EMBEDDED else s.model.title or model,
        base_revision=identity.revision,
        base_lineage=s.model.lineage,
        licence=s.model.licence,
        dataset_sha256=identity.dataset_sha256,
        constitution_sha256=identity.constitution_sha256,
        config_sha256=identity.config_sha256,
        adapter_sha256=sha256_file(s.run.adapter() / "adapter_model.safetensors"),
        system_prompt=system_prompt(s),
        system_prompt_pt=s.constitution.system_prompt.texts.get("pt", ""),
        system_prompt_en=s.constitution.system_prompt.texts.get("en", ""),
    )


def system_prompt(s: RunSession) -> str:
    """The constitution's system prompt in the language of the training data; its first where there are several."""
    return s.constitution.system_prompt[s.config.training.data.language]


def adapter_file(s: RunSession) -> Path:
    """Where the adapter's GGUF is, once it is certified."""
    return s.run.gguf / f"{s.run.merged.name}-adapter.gguf"


def write_adapter(s: RunSession, folder: Path) -> Path:
    """Write the adapter as GGUF into `folder`, for a GGUF of its base."""
    from noesis.release.gguf.writer import write_adapter_gguf

    file = folder / adapter_file(s).name
    write_adapter_gguf(s.run.adapter(), s.model.path, file, licence=s.model.licence, provenance=provenance(s))
    return file


def base_gguf(s: RunSession) -> Path:
    """The base as it was trained on (quantised and dequantised, if it was), as an F16 GGUF; written once and cached."""
    from noesis.release.gguf.writer import write_gguf
    from noesis.release.parity.llama_logits import LlamaModel

    quantization, dtype = s.as_trained.lora.quantization, s.arithmetic
    key = sha256_json([s.model.revision, quantization.model_dump(), dtype, BASE_FORMAT])[:12]
    base = cache_folder() / "models" / f"base-{key}-f16.gguf"
    if not base.is_file():
        say(_("  writing the base as it was trained on to GGUF (once; it is cached) …"))
        with scratch_folder(base.parent, base.stem) as folder:
            written = folder / base.name
            write_gguf(
                s.model.path,
                written,
                "f16",
                name="base",
                licence=s.model.licence,
                quantization=quantization,
                dtype=dtype,
            )
            with LlamaModel(written):
                pass  # what llama.cpp can't load is not kept
            move(written, base)
    return base
