"""Which epoch's adapter the later stages take: the Tribunal's choice on its dev prompts, or the held-out examples' until a judge is fit.

`noesis train`, `noesis demo` and Modal call it after training; `score` may also be called for one epoch beside the training of the next.
Every epoch has files of its own under tribunal/checkpoints/, so that two machines never write the same one.
"""

from __future__ import annotations

import gc
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from noesis.core.console import say
from noesis.core.files import sha256_file, sha256_json, write_json
from noesis.dataset.encode import answer_rows
from noesis.dataset.schema import Example, examples_digest
from noesis.pipeline.session import RunSession
from noesis.planning.budget import require_remaining
from noesis.tribunal.heldout import Score, compare

BASE = "base"
Scores = dict[str, list[Score]]  # "revised" and "initial" → a score for each held-out example


@dataclass(frozen=True)
class CheckpointScore:
    """What the court made of one epoch's answers to the dev prompts.

    mean: of the court, 0..1
    fall: of the share of right answers to keyed items, base to tuned; None where it was not measured
    unfit: why these judges may not decide; None if they may
    """

    mean: float | None
    accuracy_drop: float | None
    vetoed: bool
    unfit_reason: str | None


CheckpointScorer = Callable[[Path], CheckpointScore]  # folder of an adapter → what the court made of it


def score_checkpoints(s: RunSession, epochs: Sequence[str]) -> dict[str, Scores]:
    """Log-likelihoods of both answers to each held-out example, by the base (adapter off) and by each epoch's adapter.

    Args:
        epochs: names of folders under checkpoints/. What was scored before is read, not scored again.
    """
    held_out = s.dataset.held_out
    data = examples_digest(held_out)
    adapters = {name: s.run.checkpoints / name for name in epochs}
    keys = {BASE: sha256_json([s.model.revision, s.as_trained.lora.quantization.model_dump(), s.arithmetic, data])}
    keys |= {
        name: sha256_json([keys[BASE], sha256_file(folder / "adapter_model.safetensors")])
        for name, folder in adapters.items()
    }
    found = {name: kept for name, key in keys.items() if (kept := _kept(_file(s, name), key)) is not None}
    missing = [name for name in keys if name not in found]
    if missing:
        for name, scores in _scored(s, held_out, adapters, missing):
            write_json(_file(s, name), {"key": keys[name], "scores": scores})
            found[name] = scores
    return found


def _file(s: RunSession, name: str) -> Path:
    return s.run.tribunal / "checkpoints" / f"{name}.json"


def _kept(file: Path, key: str) -> Scores | None:
    if not file.is_file():
        return None
    stored = json.loads(file.read_text(encoding="utf-8"))
    return (
        {part: [(float(x), int(n)) for x, n in pairs] for part, pairs in stored["scores"].items()}
        if stored["key"] == key
        else None
    )


def _scored(
    s: RunSession, held_out: Sequence[Example], adapters: dict[str, Path], missing: list[str]
) -> list[tuple[str, Scores]]:
    from noesis.training.base_model import load_base, swap_adapter, with_adapter
    from noesis.training.likelihood import log_likelihoods

    rows = {
        "revised": answer_rows(held_out, "revised", s.encoder, s.constitution),
        "initial": answer_rows(held_out, "initial", s.encoder, s.constitution),
    }
    longest = max(len(row.input_ids) for part in rows.values() for row in part)
    first = next((name for name in missing if name != BASE), next(iter(adapters)))
    model = with_adapter(load_base(s.model.path, s.as_trained, s.device, longest=longest), adapters[first])
    found = []
    for name in missing:
        if name not in (BASE, first):
            swap_adapter(model, adapters[name])
        on = name != BASE
        found.append(
            (
                name,
                {
                    part: log_likelihoods(
                        model, rows[part], s.as_trained, s.device, adapter=on, what=f"score {part} by {name}"
                    )
                    for part in rows
                },
            )
        )
    del model
    gc.collect()
    return found


def choose_checkpoint(s: RunSession, hear: CheckpointScorer | None = None) -> dict[str, Any]:
    """The epoch whose adapter is to be used, by which rule, and the figures of all.

    Args:
        hear: brings an adapter before the court; None where no judge is set.
    """
    epochs = [folder.name for folder in s.run.epochs()]
    scores = score_checkpoints(s, epochs)
    ids = [example.id for example in s.dataset.held_out]
    figures: dict[str, dict[str, Any]] = {}
    for name in epochs:
        tuned = compare(ids, scores[BASE], scores[name])["tuned"]
        figures[name] = {key: tuned[key] for key in ("preferred", "mean_margin", "held_out_loss")} | {
            "examples": len(ids)
        }
    hearings = {name: hear(s.run.checkpoints / name) for name in epochs} if hear is not None else {}
    for name, hearing in hearings.items():
        figures[name]["court"] = {"mean": hearing.mean, "fall": hearing.accuracy_drop, "vetoed": hearing.vetoed}
    adapter, by = _best(epochs, figures, hearings, s.config.training.tribunal.max_forgetting)
    return {"adapter": adapter, "by": by, "heard": bool(hearings), "epochs": figures}


def _best(
    epochs: list[str], figures: dict[str, dict[str, Any]], hearings: dict[str, CheckpointScore], most: float
) -> tuple[str, str]:
    """(epoch, the rule in words). The court decides where it may; equal epochs: the later one."""
    if len(epochs) == 1:
        return epochs[0], "the only epoch"
    why = "no judge is set"
    if hearings:
        why = next((h.unfit_reason for h in hearings.values() if h.unfit_reason), "") or ""
        sound = [
            name
            for name, h in hearings.items()
            if h.mean is not None and not h.vetoed and (h.accuracy_drop is None or h.accuracy_drop <= most)
        ]
        if not why and sound:
            best = max(sound, key=lambda name: (hearings[name].mean or 0.0, epochs.index(name)))
            return (
                best,
                f"the Tribunal's mean on its dev prompts, among {len(sound)} of {len(epochs)} epochs without a veto or forgetting beyond {most:g}",
            )
        why = why or "the Tribunal found a veto or forgetting in every epoch"
    best = max(epochs, key=lambda name: (figures[name]["preferred"], figures[name]["mean_margin"], epochs.index(name)))
    return best, f"held-out preference accuracy, then mean margin ({why})"


def run_choose(s: RunSession, hear: CheckpointScorer | None = None) -> dict[str, Any]:
    """Which epoch's adapter the later stages take.

    Args:
        hear: brings an adapter before the court on its dev prompts; None where no judge is set.
    """

    def work() -> dict[str, Any]:
        require_remaining(s.budget(), "choosing the checkpoint")
        return choose_checkpoint(s, hear)

    result = s.run.perform("choose", work, lambda: sorted((s.run.tribunal / "checkpoints").glob("*.json")))
    for name, f in result["epochs"].items():
        court = f"; the Tribunal's mean {f['court']['mean']:.3f}" if f.get("court", {}).get("mean") is not None else ""
        say(
            f"  {name}: prefers {f['preferred']} of {f['examples']} revisions, margin {f['mean_margin']:+.4f}, held-out loss {f['held_out_loss']:.4f}{court}"
        )
    say(f"  {result['adapter']} is used: {result['by']}")
    return result
