"""`noesis merge RUN`: adapter + base → a standalone model folder that plain transformers, vLLM and peft can load.

Plan (which tensor, from which file, with which update) → validate the plan → apply it one tensor at a time, rounding
once → read the result back. An 8B model takes well under 6 GB of memory (benchmarks/release.py).
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from noesis.core.config import Quantization
from noesis.core.console import Progress
from noesis.core.errors import ModelError
from noesis.core.files import copy_file, files_in, new_folder, require_space, write_json, write_text
from noesis.core.i18n import N_, _
from noesis.core.jsonl import read_json_file
from noesis.core.rooted import file_of_model
from noesis.llm.weights.rounding import cast_to, rounded_sum
from noesis.llm.weights.tensors import (
    INDEX,
    WHOLE,
    AdapterFile,
    StoredTensor,
    list_tensors,
    lora_update,
    read_adapter,
    read_as_trained,
    read_tensor,
    require_matching_base,
    was_quantised,
)
from noesis.release.provenance import FILE_NAME, Provenance
from noesis.release.shard_writer import verify_shards, write_shard

COPIED = ("*.json", "*.jinja", "*.model", "LICENSE*", "NOTICE*", "USE_POLICY*")
CONFIG = "config.json"
NOT_COPIED = (INDEX, "adapter_config.json", FILE_NAME)


@dataclass(frozen=True)
class MergePlan:
    """What a merge will do: every tensor of the base, and the adapter that updates some of them."""

    base: Path
    adapter: AdapterFile
    tensors: tuple[StoredTensor, ...]  # in file order
    quantization: Quantization | None  # how training stored the base
    dtype: str  # in which training used the dequantised weights

    @property
    def files(self) -> dict[str, list[StoredTensor]]:
        """The output files, named like the base's, with their tensors."""
        by_name: dict[str, list[StoredTensor]] = {}
        for tensor in self.tensors:
            by_name.setdefault(tensor.file.name, []).append(tensor)
        return by_name

    @property
    def bytes(self) -> int:
        """Size of the merged weights."""
        return sum(tensor.size for tensor in self.tensors)

    @property
    def quantised(self) -> bool:
        """Whether any tensor of the base was quantised in training."""
        return any(was_quantised(tensor, self.quantization) for tensor in self.tensors)


@dataclass(frozen=True)
class QuantisationError:
    """How far dequantised weights are from the originals. Frobenius norms, as shares of the original weights' norm."""

    relative_difference: float
    relative_update: float  # of the adapter, for comparison
    largest_tensor: str
    largest_relative_difference: float

    def to_json(self) -> dict[str, Any]:
        largest = {"tensor": self.largest_tensor, "relative_difference": self.largest_relative_difference}
        return {
            "relative_difference": self.relative_difference,
            "relative_update": self.relative_update,
            "largest": largest,
        }

    @classmethod
    def from_json(cls, raw: dict[str, Any]) -> QuantisationError:
        largest = raw["largest"]
        return cls(
            raw["relative_difference"], raw["relative_update"], largest["tensor"], largest["relative_difference"]
        )


@dataclass(frozen=True)
class MergeResult:
    """What a merge wrote."""

    tensors: int
    merged_tensors: int  # of those, with an update from the adapter
    bytes: int
    verified: int  # tensors that were read back
    into: str  # which weights the adapter was added to, in words
    originals: QuantisationError | None  # None where the base was not quantised
    basis: str = "trained"  # or `original`: merged into the original weights though trained on quantised ones

    def to_json(self) -> dict[str, Any]:
        return {
            "tensors": self.tensors,
            "merged_tensors": self.merged_tensors,
            "bytes": self.bytes,
            "verified": self.verified,
            "into": self.into,
            **({"originals": self.originals.to_json()} if self.originals else {}),
            "basis": self.basis,
        }

    @classmethod
    def from_json(cls, raw: dict[str, Any]) -> MergeResult:
        originals = raw.get("originals")
        return cls(
            tensors=raw["tensors"],
            merged_tensors=raw["merged_tensors"],
            bytes=raw["bytes"],
            verified=raw["verified"],
            into=raw["into"],
            originals=QuantisationError.from_json(originals) if originals else None,
            basis=raw.get("basis", "trained"),
        )


def plan_merge(base: Path, adapter_folder: Path, quantization: Quantization | None, dtype: str) -> MergePlan:
    """Plan and validate a merge: every tensor of the adapter is used exactly once and fits its weight.

    Raises:
        ModelError: an adapter tensor matches no weight or has the wrong shape; a shard is missing or damaged.
    """
    adapter, tensors = read_adapter(adapter_folder), list_tensors(base)
    if not adapter.targets:
        raise ModelError(
            _("{adapter_folder} has no LoRA tensors: nothing would be merged", adapter_folder=adapter_folder)
        )
    require_matching_base(adapter, tensors, base)
    return MergePlan(base, adapter, tuple(tensors.values()), quantization, dtype)


def merge(
    base: Path,
    adapter_folder: Path,
    target: Path,
    *,
    quantization: Quantization,
    dtype: str,
    card: str,
    provenance: Provenance | None = None,
) -> MergeResult:
    """Write the merged model to `target`, whole or not at all.

    Args:
        quantization, dtype: how training stored the base, and in which type it computed.
        card: the model card, written as README.md.
        provenance: written as noesis.json; GGUF files take their metadata from it.

    Raises:
        ModelError: an adapter tensor matches no weight or does not fit; the result does not read back as written.
        NoesisError: the disk has no room for it.
    """
    plan = plan_merge(base, adapter_folder, quantization, dtype)
    require_space(target.parent, plan.bytes, _("the merged model"))
    error = _ErrorMeter()
    with new_folder(target) as part:
        digests = _write_weights(plan, part, error)
        _write_other_files(plan.base, part, card, provenance)
        verify_shards(part, {t.name: (t.shape, t.dtype, digests[t.name]) for t in plan.tensors})
    return MergeResult(
        tensors=len(plan.tensors),
        merged_tensors=len(plan.adapter.targets),
        bytes=plan.bytes,
        verified=len(digests),
        into=N_("dequantised {kind} weights, as trained against", kind=quantization.bnb_4bit_quant_type)
        if plan.quantised
        else N_("the original weights"),
        originals=error.result() if plan.quantised else None,
    )


def _write_weights(plan: MergePlan, folder: Path, error: _ErrorMeter) -> dict[str, str]:
    """Write the weight files and their index. Returns tensor name → sha256."""
    digests: dict[str, str] = {}
    with Progress("merge", len(plan.tensors), _("tensors")) as progress:
        for file, tensors in plan.files.items():
            for name, sha256 in write_shard(folder / file, tensors, _merged(plan, tensors, error)):
                digests[name] = sha256
                progress.advance(1)
    if list(plan.files) != [WHOLE]:
        weight_map = {tensor.name: tensor.file.name for tensor in plan.tensors}
        index = json.dumps({"metadata": {"total_size": plan.bytes}, "weight_map": weight_map}, indent=2)
        write_text(folder / INDEX, index)
    return digests


def _merged(plan: MergePlan, tensors: list[StoredTensor], error: _ErrorMeter) -> Iterator[Any]:
    """Each tensor of one file as it is written."""
    import torch

    for tensor in tensors:
        with torch.inference_mode():
            weight = read_as_trained(tensor, plan.quantization, plan.dtype)
            update = lora_update(plan.adapter, tensor.name) if tensor.name in plan.adapter.targets else None
            if was_quantised(tensor, plan.quantization):
                error.add(tensor.name, read_tensor(tensor), weight, update)
            if update is None:
                yield cast_to(weight, tensor.dtype)
            else:
                total = rounded_sum(weight, update, tensor.dtype, tensor.name)
                if not torch.isfinite(total).all():
                    raise ModelError(
                        _(
                            "{name}: base plus update is not finite: the adapter is damaged, or training diverged",
                            name=tensor.name,
                        )
                    )
                yield total


class _ErrorMeter:
    """Sums up QuantisationError over the tensors."""

    def __init__(self) -> None:
        self.error = self.weight = self.update = 0.0  # sums of squares
        self.largest = (0.0, "")

    def add(self, name: str, original: Any, used: Any, update: Any | None) -> None:
        original = original.float()
        error, weight = float((used.float() - original).square().sum()), float(original.square().sum())
        self.error, self.weight = self.error + error, self.weight + weight
        self.update += float(update.square().sum()) if update is not None else 0.0
        self.largest = max(self.largest, (math.sqrt(error / weight) if weight else 0.0, name))

    def result(self) -> QuantisationError:
        norm = math.sqrt(self.weight) or 1.0
        largest, tensor = self.largest
        return QuantisationError(
            relative_difference=round(math.sqrt(self.error) / norm, 6),
            relative_update=round(math.sqrt(self.update) / norm, 6),
            largest_tensor=tensor,
            largest_relative_difference=round(largest, 6),
        )


def _name_rope_twice(config: Path) -> None:
    """Let `rope_parameters` of transformers 5 stand under the older keys, too.

    Programs that know only those (MLX's Llama of 2026, for one) take a rotary base of 10,000 where they miss them, and
    say nothing.
    """
    raw = read_json_file(config, constants=False) if config.is_file() else {}
    rope = raw.get("rope_parameters")
    if not isinstance(rope, dict) or "rope_theta" not in rope or raw.keys() & {"rope_theta", "rope_scaling"}:
        return
    raw["rope_theta"] = rope["rope_theta"]
    if rope.get("rope_type", "default") != "default":
        raw["rope_scaling"] = {key: value for key, value in rope.items() if key != "rope_theta"}
    write_json(config, raw)


def _write_other_files(base: Path, folder: Path, card: str, provenance: Provenance | None) -> None:
    """Copy tokenizer, configuration and licence from the base; write the model card and the provenance."""
    for file in files_in(base):
        wanted = any(file.match(pattern) for pattern in COPIED) and file.name not in NOT_COPIED
        if wanted and file.is_file():  # not a link that leads nowhere
            copy_file(file_of_model(base, file.name), folder / file.name)
    _name_rope_twice(folder / CONFIG)
    write_text(folder / "README.md", card)
    if provenance is not None:
        provenance.save(folder)
