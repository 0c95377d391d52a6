"""Stage merge: adapter and base into one model."""

from __future__ import annotations

from typing import Any

from noesis.core.config import Quantization
from noesis.core.console import say, size
from noesis.core.errors import RunError
from noesis.core.files import sha256_file, write_text
from noesis.pipeline.gguf_files import provenance
from noesis.pipeline.session import RunSession
from noesis.planning.budget import require_remaining

CARD_NAME = "README.md"  # derived from the run, so no output of the stage


def run_merge(s: RunSession, *, again: bool = False, original: bool = False) -> dict[str, Any]:
    """Adapter + base → a standalone model.

    Args:
        original: into the base's original weights, though it was trained against dequantised ones.
    """
    from noesis.release.merge_weights import merge as merge_weights
    from noesis.release.model_card import model_card

    def work() -> dict[str, Any]:
        require_remaining(s.budget(), "merging")
        require_same_base(s)
        card = model_card(s.run.merged.name, s.config.training.model, s.model.licence, s.run.manifest)
        into = merge_quantization(s, original=original)
        result = merge_weights(
            s.model.path,
            s.run.adapter(),
            s.run.merged,
            quantization=into,
            dtype=s.arithmetic,
            card=card,
            lineage=provenance(s),
        )
        return result | {"basis": "original" if original else "trained"}

    before = (s.run.result("merge") or {}).get("basis", "trained")
    again = again or before != ("original" if original else "trained")
    result = s.run.perform(
        "merge", work, lambda: [p for p in s.run.merged.iterdir() if p.is_file() and p.name != CARD_NAME], again=again
    )
    say(
        f"  {result['merged_tensors']} of {result['tensors']} tensors merged into {result['into']}; "
        f"{size(result['bytes'])} → {s.run.merged}"
    )
    if other := result.get("originals"):
        away, own = other["relative_difference"], other["relative_update"]
        say(f"  the original weights are {away:.1%} of their norm away from those; the adapter moves them by {own:.1%}")
    return result


def write_card(s: RunSession) -> None:
    """Derive the merged model's card again from the run's results, the verdict included; only the card is written."""
    from noesis.release.model_card import model_card

    if s.run.result("merge") is not None and s.run.merged.is_dir():
        card = model_card(s.run.merged.name, s.config.training.model, s.model.licence, s.run.manifest)
        write_text(s.run.merged / CARD_NAME, card)


def merge_quantization(s: RunSession, *, original: bool = False) -> Quantization:
    """How the weights that the adapter goes into were stored: as in training, or not at all."""
    trained = s.as_trained.lora.quantization
    return trained.model_copy(update={"load_in_4bit": False}) if original else trained


def require_same_base(s: RunSession) -> None:
    """Base and adapter are those of the training.

    Raises:
        RunError: the base model here is another revision, or the adapter's file was changed.
    """
    trained_on = s.run.manifest["identity"]["revision"]
    if s.model.revision != trained_on:
        raise RunError(
            f"{s.run.path} was trained on {s.config.training.model} {trained_on}, here is {s.model.revision}: "
            "fetch that revision, or train again"
        )
    file = s.run.adapter() / "adapter_model.safetensors"
    known = s.run.manifest["stages"].get("train", {}).get("outputs", {}).get(file.relative_to(s.run.path).as_posix())
    if known is not None and sha256_file(file) != known["sha256"]:
        raise RunError(f"{file} is not the file that training left (its hash differs): restore it, or train again")
