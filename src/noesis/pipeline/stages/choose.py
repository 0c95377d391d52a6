"""Stage choose: which epoch's adapter the later stages take.

The Tribunal decides on its dev prompts if a judge is fit, else the held-out examples do; `epoch_rule.py` has the rule.

`noesis train`, `noesis demo` and Modal run it after training. `score_checkpoints` can also be called for one epoch
while the next one is trained: each epoch has its own file under tribunal/checkpoints/, so that two machines never
write the same one.
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Sequence
from pathlib import Path

from noesis.core.console import say
from noesis.core.files import files_in, sha256_file, sha256_json, write_json
from noesis.core.i18n import _, retold
from noesis.core.jsonl import read_json_file
from noesis.dataset.encode import answer_rows
from noesis.dataset.schema import Example, examples_digest
from noesis.pipeline.results import (
    CheckpointScore,
    Choice,
    EpochFigures,
    adapter_folder,
    read_result,
    scores_file,
    scores_folder,
)
from noesis.pipeline.session import RunSession
from noesis.pipeline.stages.epoch_rule import Scores, choose_epoch
from noesis.pipeline.stages.seed_rule import choose_seed, disagreement
from noesis.planning.budget import require_remaining
from noesis.run.adapter_names import name_of
from noesis.run.manifest import Json
from noesis.tribunal.heldout import compare

BASE = "base"

CheckpointScorer = Callable[[Path], CheckpointScore]  # folder of an adapter → its scores


def score_checkpoints(s: RunSession, epochs: Sequence[str]) -> dict[str, Scores]:
    """Log-likelihoods of both answers to each held-out example, by the base (adapter off) and by each epoch's adapter.

    Args:
        epochs: names of the epochs, or of adapters at another strength. Scores that are stored are read.
    """
    held_out, keys = s.dataset.held_out, score_keys(s, epochs)
    adapters = {name: adapter_folder(s.run, name) for name in epochs}
    found = {
        name: scores for name, key in keys.items() if (scores := _stored(scores_file(s.run, name), key)) is not None
    }
    missing = [name for name in keys if name not in found]
    if missing:
        for name, scores in _scored(s, held_out, adapters, missing):
            write_json(scores_file(s.run, name), {"key": keys[name], "scores": scores})
            found[name] = scores
    return found


def score_keys(s: RunSession, epochs: Sequence[str]) -> dict[str, str]:
    """A hash for the base and for each epoch of all that decides its scores: weights, arithmetic and examples."""
    data = examples_digest(s.dataset.held_out)
    base = sha256_json([s.model.revision, s.as_trained.lora.quantization.model_dump(), s.arithmetic, data])
    adapters = {name: sha256_file(adapter_folder(s.run, name) / "adapter_model.safetensors") for name in epochs}
    return {BASE: base} | {name: sha256_json([base, adapter]) for name, adapter in adapters.items()}


def _stored(file: Path, key: str) -> Scores | None:
    """Scores from an earlier run of the stage, if they are of the same model, adapter and examples."""
    if not file.is_file():
        return None
    try:
        stored = read_json_file(file, constants=False)
        found = {part: [(float(x), int(n)) for x, n in pairs] for part, pairs in stored["scores"].items()}
        return found if stored["key"] == key else None
    except (ValueError, KeyError, TypeError, AttributeError, OverflowError):
        say(_("  {file} is damaged: its scores are computed again", file=file))
        return None


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
                        model,
                        rows[part],
                        s.as_trained,
                        s.device,
                        adapter=on,
                        what=_("score {part} by {name}", part=retold(part), name=name),
                    )
                    for part in rows
                },
            )
        )
    del model
    gc.collect()
    return found


def choose_checkpoint(s: RunSession, scorer: CheckpointScorer | None = None) -> Choice:
    """Score every epoch and choose one.

    Args:
        scorer: has the Tribunal score an adapter; None if no judge is set.
    """
    first = str(s.config.training.seed)
    by_seed = {seed or first: [name_of(folder) for folder in epochs] for seed, epochs in s.run.adapters().items()}
    names = [name for of_seed in by_seed.values() for name in of_seed]
    scores = score_checkpoints(s, names)
    ids = [example.id for example in s.dataset.held_out]
    own = next(iter(by_seed.values()))
    tribunal = {name: scorer(s.run.checkpoints / name) for name in own} if scorer is not None else {}
    figures = {name: epoch_figures(ids, scores[BASE], scores[name], tribunal.get(name)) for name in names}
    return choose_among(ids, scores, by_seed, figures, tribunal, s.config.training.tribunal.max_forgetting)


def choose_among(
    ids: list[str],
    scores: dict[str, Scores],
    by_seed: dict[str, list[str]],
    figures: dict[str, EpochFigures],
    tribunal: dict[str, CheckpointScore],
    max_drop: float,
) -> Choice:
    """The choice that follows from the scores of the base and of each adapter.

    Args:
        by_seed: names of each seed's epochs, the run's first seed first.
        tribunal: of the first seed's epochs; none where no judge is set. Other seeds are chosen by the held-out
            examples alone.
    """
    own, *_ = by_seed
    chosen = {
        seed: choose_epoch(ids, {name: scores[name] for name in names}, tribunal if seed == own else {}, max_drop)
        for seed, names in by_seed.items()
    }
    if len(chosen) == 1:
        return Choice(*chosen[own], bool(tribunal), figures, by_significance=True)
    seeds = {seed: name for seed, (name, _) in chosen.items()}
    adapter, reason = choose_seed(ids, scores, chosen)
    said = disagreement(ids, scores[BASE], scores, seeds)
    return Choice(adapter, reason, bool(tribunal), figures, True, seeds, said)


def epoch_figures(ids: list[str], base: Scores, epoch: Scores, tribunal: CheckpointScore | None) -> EpochFigures:
    """One epoch's figures, from the scores of each held-out example by the base and by its adapter."""
    tuned = compare(ids, base, epoch).tuned
    return EpochFigures(tuned.preferred, tuned.mean_margin, tuned.held_out_loss, len(ids), tribunal)


def run_choose(s: RunSession, scorer: CheckpointScorer | None = None) -> Choice:
    """Choose the epoch whose adapter the later stages take.

    Args:
        scorer: has the Tribunal score an adapter on its dev prompts; None if no judge is set.

    Raises:
        CapError: the budget is spent.
    """

    def work() -> Json:
        require_remaining(s.budget(), "choosing the checkpoint")
        return choose_checkpoint(s, scorer).to_json()

    outputs = scores_folder(s.run)
    stored = s.run.perform("choose", work, lambda: files_in(outputs, ".json"))
    choice = read_result(s.run, "choose", stored, Choice.from_json)
    show_choice(choice)
    return choice


def show_choice(choice: Choice) -> None:
    """Print the figures of every epoch and the one that was chosen."""
    for name, f in choice.epochs.items():
        mean = f.tribunal.mean if f.tribunal else None
        verdict = _("; the Tribunal's mean {mean:.3f}", mean=mean) if mean is not None else ""
        say(
            _(
                "  {name}: prefers {preferred} of {examples} revisions, margin {mean_margin:+.4f}, "
                "held-out loss {held_out_loss:.4f}{verdict}",
                name=name,
                preferred=f.preferred,
                examples=f.examples,
                mean_margin=f.mean_margin,
                held_out_loss=f.held_out_loss,
                verdict=verdict,
            )
        )
    for line in spread_lines(choice):
        say(f"  {line}")
    say(_("  {adapter} is used: {reason}", adapter=choice.adapter, reason=retold(choice.reason)))


def spread_lines(choice: Choice) -> list[str]:
    """What the seeds say together, in words; nothing where there is one."""
    if not choice.seeds:
        return []
    spread, examples = choice.spread, choice.epochs[choice.adapter].examples
    preferred, margin, loss = (spread[name] for name in ("preferred", "mean_margin", "held_out_loss"))
    line = _(
        "{seeds} seeds, mean ± SD between them: prefers {preferred:.1f} ± {preferred_sd:.1f} of {examples}, "
        "margin {margin:+.4f} ± {margin_sd:.4f}, held-out loss {loss:.4f} ± {loss_sd:.4f}",
        seeds=len(choice.seeds),
        preferred=preferred.mean,
        preferred_sd=preferred.sd,
        examples=examples,
        margin=margin.mean,
        margin_sd=margin.sd,
        loss=loss.mean,
        loss_sd=loss.sd,
    )
    return [line, *([retold(choice.disagreement)] if choice.disagreement else [])]
