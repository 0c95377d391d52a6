"""`noesis merge RUN`: adapter + base → a standalone model folder, readable by plain transformers, vLLM and peft.

Plan (which tensor, from which file, with which update) → validate the plan → apply, a tensor at a time, one rounding → read the result again.
An 8B model takes well under 6 GB of memory (benchmarks/release.py).
"""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from noesis.core.config import Quantization
from noesis.core.console import Progress
from noesis.core.errors import ModelError
from noesis.core.files import replace_folder, require_space, sync_tree
from noesis.llm.weights import (
    AdapterFile,
    StoredTensor,
    cast_to,
    list_tensors,
    lora_update,
    read_adapter,
    read_as_trained,
    read_tensor,
    require_matching_base,
    was_quantised,
)
from noesis.release.shard_writer import verify_shards, write_shard

COPIED = ("*.json", "*.jinja", "*.model", "LICENSE*", "NOTICE*", "USE_POLICY*")
NOT_COPIED = ("model.safetensors.index.json", "adapter_config.json", "noesis.json")


@dataclass(frozen=True)
class MergePlan:
    """What will be done, before anything is: every tensor of the base, and of which the adapter has an update."""

    base: Path
    adapter: AdapterFile
    tensors: tuple[StoredTensor, ...]  # in the order of the files
    quantization: Quantization | None
    dtype: str

    @property
    def files(self) -> dict[str, list[StoredTensor]]:
        """The result's files, named as the base's."""
        found: dict[str, list[StoredTensor]] = {}
        for tensor in self.tensors:
            found.setdefault(tensor.file.name, []).append(tensor)
        return found


def plan_merge(base: Path, adapter_folder: Path, quantization: Quantization | None, dtype: str) -> MergePlan:
    """The plan of a merge, validated: every tensor of the adapter is used exactly once, and fits.

    Raises:
        ModelError: a tensor that finds no weight or does not fit, a missing shard, a damaged file.
    """
    adapter, found = read_adapter(adapter_folder), list_tensors(base)
    if not adapter.targets:
        raise ModelError(f"{adapter_folder} holds no update at all: nothing would be merged")
    require_matching_base(adapter, found, base)
    return MergePlan(base, adapter, tuple(found.values()), quantization, dtype)


def merge(
    base: Path,
    adapter_folder: Path,
    target: Path,
    *,
    quantization: Quantization,
    dtype: str,
    card: str,
    lineage: dict[str, Any] | None = None,
) -> dict[str, Any]:
    """Write the merged model to `target`, whole or not at all.

    Args:
        quantization, dtype: how the base was stored and computed in training.
        card: the model card, written as README.md.
        lineage: what the model was made of, written as noesis.json; GGUF files take their metadata from it.

    Returns:
        counts of tensors written and merged, which weights the adapter was added to, and how far the others are from them.

    Raises:
        ModelError: an adapter tensor finds no weight, or does not fit; the result does not read back as it was written.
    """
    plan = plan_merge(base, adapter_folder, quantization, dtype)
    total = sum(tensor.size for tensor in plan.tensors)
    require_space(target.parent, total, "the merged model")
    part = target.with_name(f".{target.name}.part")
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir(parents=True)
    distance = _Distance()
    digests: dict[str, str] = {}
    with Progress("merge", len(plan.tensors), "tensors") as progress:
        for file, entries in plan.files.items():
            for name, sha256 in write_shard(part / file, entries, _merged(plan, entries, distance)):
                digests[name] = sha256
                progress.advance(1)
    if len(plan.files) > 1:
        places = {tensor.name: tensor.file.name for tensor in plan.tensors}
        (part / "model.safetensors.index.json").write_text(
            json.dumps({"metadata": {"total_size": total}, "weight_map": places}, indent=2), encoding="utf-8"
        )
    _describe(plan.base, part, card, lineage)
    verify_shards(part, {t.name: (t.shape, t.dtype, digests[t.name]) for t in plan.tensors})
    sync_tree(part)
    replace_folder(part, target)
    quantised = any(was_quantised(t, quantization) for t in plan.tensors)
    return {
        "tensors": len(plan.tensors),
        "merged_tensors": len(plan.adapter.targets),
        "bytes": total,
        "verified": len(digests),
        "into": f"dequantised {quantization.bnb_4bit_quant_type} weights, as trained against"
        if quantised
        else "the original weights",
        **({"originals": distance.as_json()} if quantised else {}),
    }


def _merged(plan: MergePlan, entries: list[StoredTensor], distance: _Distance) -> Iterator[Any]:
    """Each tensor of one file as it goes into the result: float32 sums, one rounding."""
    import torch

    for entry in entries:
        with torch.inference_mode():
            weight = read_as_trained(entry, plan.quantization, plan.dtype)
            change = None
            if entry.name in plan.adapter.targets:
                change = lora_update(plan.adapter, entry.name)
            if was_quantised(entry, plan.quantization):
                distance.add(entry.name, read_tensor(entry), weight, change)
            if change is not None:
                weight = change.add_(weight.float())
                if not torch.isfinite(weight).all():
                    raise ModelError(
                        f"{entry.name}: base and update add up to numbers that are not finite: the adapter is damaged, or training went wrong"
                    )
            yield cast_to(weight, entry.dtype)


class _Distance:
    """How far the original weights are from the dequantised ones that were trained against, beside what the adapter changes."""

    def __init__(self) -> None:
        self.error = self.weight = self.change = 0.0  # sums of squares
        self.largest = (0.0, "")

    def add(self, name: str, original: Any, used: Any, change: Any | None) -> None:
        original = original.float()
        error, weight = float((used.float() - original).square().sum()), float(original.square().sum())
        self.error, self.weight = self.error + error, self.weight + weight
        self.change += float(change.square().sum()) if change is not None else 0.0
        self.largest = max(self.largest, (math.sqrt(error / weight) if weight else 0.0, name))

    def as_json(self) -> dict[str, Any]:
        """Frobenius norms as shares of the original weights' norm."""
        norm = math.sqrt(self.weight) or 1.0
        return {
            "relative_difference": round(math.sqrt(self.error) / norm, 6),
            "relative_update": round(math.sqrt(self.change) / norm, 6),
            "largest": {"tensor": self.largest[1], "relative_difference": round(self.largest[0], 6)},
        }


def _describe(base: Path, part: Path, card: str, lineage: dict[str, Any] | None) -> None:
    """Tokenizer, configuration, licence, card and lineage beside the weights."""
    for pattern in COPIED:
        for extra in base.glob(pattern):
            if extra.name not in NOT_COPIED:
                shutil.copy2(extra, part / extra.name)
    (part / "README.md").write_text(card, encoding="utf-8")
    if lineage is not None:
        (part / "noesis.json").write_text(json.dumps(lineage, ensure_ascii=False, indent=2), encoding="utf-8")
