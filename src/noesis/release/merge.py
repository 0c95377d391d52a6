"""`noesis merge RUN`: adapter + base → a standalone model folder, readable by plain transformers."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

from noesis.config import Quantization
from noesis.errors import ModelError
from noesis.files import require_space, sync_folder
from noesis.release.weights import read_adapter, shards, tensors

COPIED = ("*.json", "*.jinja", "*.model", "LICENSE*", "NOTICE*", "USE_POLICY*")
NOT_COPIED = ("model.safetensors.index.json", "adapter_config.json")


def merge(base: Path, adapter_folder: Path, target: Path, *, quantization: Quantization, dtype: str, card: str) -> dict[str, Any]:
    """Write the merged model to `target`, whole or not at all.

    Args:
        quantization, dtype: how the base was stored and computed in training.
        card: the model card, written as README.md.

    Returns:
        counts of tensors written and merged, and which weights the adapter was added to.

    Raises:
        ModelError: an adapter tensor finds no weight, or does not fit.
    """
    import torch
    from safetensors.torch import save_file

    adapter = read_adapter(adapter_folder)
    files = shards(base)
    require_space(target.parent, sum(f.stat().st_size for f in files), "the merged model")
    part = target.with_name(f".{target.name}.part")
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir(parents=True)
    index: dict[str, str] = {}
    used: set[str] = set()
    total = 0
    with torch.inference_mode():
        for file in files:
            shard = {}
            for name, weight, merged in tensors(file, quantization, dtype, adapter):
                shard[name], index[name] = weight, file.name
                total += weight.numel() * weight.element_size()
                if merged:
                    used.add(name)
            save_file(shard, part / file.name, metadata={"format": "pt"})
    unused = sorted(set(adapter.targets) - used)
    if unused:
        raise ModelError(f"the adapter has an update for {unused[0]!r}, which {base} does not have: it was trained on another base")
    if len(files) > 1:
        (part / "model.safetensors.index.json").write_text(json.dumps({"metadata": {"total_size": total}, "weight_map": index}, indent=2), encoding="utf-8")
    for pattern in COPIED:
        for extra in base.glob(pattern):
            if extra.name not in NOT_COPIED:
                shutil.copy2(extra, part / extra.name)
    (part / "README.md").write_text(card, encoding="utf-8")
    if target.exists():
        shutil.rmtree(target)
    os.replace(part, target)
    sync_folder(target.parent)
    return {
        "tensors": len(index),
        "merged_tensors": len(used),
        "bytes": total,
        "into": f"dequantised {quantization.bnb_4bit_quant_type} weights, as trained against" if quantization.load_in_4bit else "the original weights",
    }


def loaded(base: Path, adapter_folder: Path | None, *, quantization: Quantization, dtype: str, device: str = "cpu") -> Any:
    """The merged model (without an adapter: the base as it was trained against) in memory, as `transformers` loads it; for answering.

    Args:
        dtype: of weights and arithmetic.
        device: `cpu` or `cuda`.
    """
    import torch
    from transformers import AutoModelForCausalLM

    kind = getattr(torch, dtype)
    model = AutoModelForCausalLM.from_pretrained(base, dtype=kind, use_safetensors=True, trust_remote_code=False, local_files_only=True)
    adapter = read_adapter(adapter_folder) if adapter_folder is not None else None
    places = model.state_dict()
    with torch.inference_mode():
        for file in shards(base):
            for name, weight, _ in tensors(file, quantization, dtype, adapter):
                if name in places:  # tied weights are there once
                    places[name].copy_(weight)
    return model.to(device).eval()
