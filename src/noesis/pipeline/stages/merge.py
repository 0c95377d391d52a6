"""Stage merge: adapter and base into one model."""

from __future__ import annotations

from typing import Any

from noesis.core.config import Quantization
from noesis.core.console import say, size
from noesis.core.errors import RunError
from noesis.core.files import sha256_file
from noesis.pipeline.gguf_files import provenance
from noesis.pipeline.session import RunSession
from noesis.planning.budget import require_remaining


def run_merge(s: RunSession, *, again: bool = False, original: bool = False) -> dict[str, Any]:
    """Adapter + base → a standalone model.

    Args:
        original: into the base's original weights, though it was trained against dequantised ones.
    """
    from noesis.release.merge_weights import merge as merge_weights

    def work() -> dict[str, Any]:
        require_remaining(s.budget(), "merging")
        require_same_base(s)
        into = merge_quantization(s, original=original)
        result = merge_weights(
            s.model.path,
            s.run.adapter(),
            s.run.merged,
            quantization=into,
            dtype=s.arithmetic,
            card=_card(s),
            lineage=provenance(s),
        )
        return result | {"basis": "original" if original else "trained"}

    before = (s.run.result("merge") or {}).get("basis", "trained")
    again = again or before != ("original" if original else "trained")
    result = s.run.perform("merge", work, lambda: [p for p in s.run.merged.iterdir() if p.is_file()], again=again)
    say(
        f"  {result['merged_tensors']} of {result['tensors']} tensors merged into {result['into']}; {size(result['bytes'])} → {s.run.merged}"
    )
    if other := result.get("originals"):
        away, own = other["relative_difference"], other["relative_update"]
        say(f"  the original weights are {away:.1%} of their norm away from those; the adapter moves them by {own:.1%}")
    return result


def merge_quantization(s: RunSession, *, original: bool = False) -> Quantization:
    """How the weights that the adapter goes into were stored: as in training, or not at all."""
    trained = s.as_trained.lora.quantization
    return trained.model_copy(update={"load_in_4bit": False}) if original else trained


def require_same_base(s: RunSession) -> None:
    """Base and adapter are those of the training.

    Raises:
        RunError: the base model here is another revision, or the adapter's file was changed.
    """
    trained_on = s.run.identity.revision
    if s.model.revision != trained_on:
        raise RunError(
            f"{s.run.path} was trained on {s.config.training.model} {trained_on}, here is {s.model.revision}: fetch that revision, or train again"
        )
    file = s.run.adapter() / "adapter_model.safetensors"
    trained = s.run.manifest.stages.get("train")
    known = trained.outputs.get(file.relative_to(s.run.path).as_posix()) if trained else None
    if known is not None and sha256_file(file) != known.sha256:
        raise RunError(f"{file} is not the file that training left (its hash differs): restore it, or train again")


def write_card(s: RunSession) -> None:
    """Derive the merged model's card again from what the run says now, the verdict included; nothing where there is no model."""
    card = s.run.merged / "README.md"
    if s.run.is_done("merge") and card.is_file() and card.read_text(encoding="utf-8") != (text := _card(s)):
        s.run.write_derived("merge", card, text)


def _card(s: RunSession) -> str:
    from noesis.release.model_card import model_card

    manifest = s.run.manifest.to_json()
    if (plan := s.run.executed_plan()) is not None:
        manifest["stages"]["plan"]["result"] = plan  # in this copy: the card says what was trained
    return model_card(s.run.merged.name, s.config.training.model, s.model.licence, manifest)
