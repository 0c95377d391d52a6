"""Stage merge: adapter and base into one model. `noesis merge RUN`.

Also derives the model card (README.md of the merged model), which is written again after a trial.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from noesis.core.config import Quantization
from noesis.core.console import say, size
from noesis.core.errors import RunError
from noesis.core.files import files_in, read_text
from noesis.core.i18n import _, retold
from noesis.pipeline.gguf_files import provenance
from noesis.pipeline.results import RunResults, TrialResult, read_result
from noesis.pipeline.session import RunSession
from noesis.planning.budget import require_remaining
from noesis.release.merge_weights import MergeResult, merge
from noesis.release.model_card import CardContent, HeldOutFigures, JudgeScore, TrainingFigures, model_card
from noesis.run.manifest import Json
from noesis.tribunal.court import UNDECIDED
from noesis.tribunal.heldout import Preference

CARD_NAME = "README.md"
SCORE_NAMES = {"mean": "weighted mean", "veritas": "Veritas", "sophia": "Sophia", "dike": "Dikē"}


def run_merge(s: RunSession, *, again: bool = False, original: bool = False) -> MergeResult:
    """Merge the chosen adapter into the base.

    Args:
        original: into the base's original weights, though it was trained against dequantised ones.
    """
    basis = "original" if original else "trained"

    def work() -> Json:
        require_remaining(s.budget(), "merging")
        require_same_base(s)
        result = merge(
            s.model.path,
            s.run.adapter(),
            s.run.merged,
            quantization=merge_quantization(s, original=original),
            dtype=s.arithmetic,
            card=model_card(card_content(s)),
            provenance=provenance(s),
        )
        return replace(result, basis=basis).to_json()

    def outputs() -> list[Path]:
        return files_in(s.run.merged)

    stored = s.run.perform("merge", work, outputs, again=again or merge_basis(s) != basis)
    result = read_result(s.run, "merge", stored, MergeResult.from_json)
    show_merge(result, s.run.merged)
    return result


def show_merge(result: MergeResult, folder: Path) -> None:
    """Print what was merged, and how far the original weights are from those used."""
    say(
        _(
            "  {merged_tensors} of {tensors} tensors merged into {into}",
            merged_tensors=result.merged_tensors,
            tensors=result.tensors,
            into=retold(result.into),
        )
    )
    say(f"  {size(result.bytes)} → {folder}")
    if error := result.originals:
        say(
            _(
                "  quantisation moved these weights by {relative_difference:.1%} of their norm, "
                "the adapter by {relative_update:.1%}",
                relative_difference=error.relative_difference,
                relative_update=error.relative_update,
            )
        )


def merge_basis(s: RunSession) -> str:
    """Which weights the run's merge went into: `trained` (also before there is one) or `original`."""
    done = RunResults(s.run).merge
    return done.basis if done else "trained"


def merge_quantization(s: RunSession, *, original: bool = False) -> Quantization:
    """How the weights that the adapter goes into were stored: as in training, or not quantised."""
    trained = s.as_trained.lora.quantization
    return trained.model_copy(update={"load_in_4bit": False}) if original else trained


def require_same_base(s: RunSession) -> None:
    """Check that base and adapter are those of the training.

    Raises:
        RunError: the base model here is another revision, or the adapter's file was changed.
    """
    trained_on = s.run.identity.revision
    if s.model.revision != trained_on:
        raise RunError(
            _(
                "{path} was trained on {model} {trained_on}, but the model here is "
                "{revision}: fetch that revision, or train again",
                path=s.run.path,
                model=s.config.training.model,
                trained_on=trained_on,
                revision=s.model.revision,
            )
        )
    file = s.run.adapter() / "adapter_model.safetensors"
    stage = "dial" if file.is_relative_to(s.run.dial) else "train"
    if s.run.result(stage) is not None and not s.run.vouches_for(stage, file, thoroughly=True):
        by = "training" if stage == "train" else "the stage dial"
        raise RunError(
            _(
                "{file} is not the file that {by} wrote (its hash differs): restore it, or {stage} again",
                file=file,
                by=by,
                stage=stage,
            )
        )


def write_card(s: RunSession) -> None:
    """Derive the merged model's card again from what the run says now, the verdict included.

    Nothing is written where there is no merged model.
    """
    card = s.run.merged / CARD_NAME
    if (
        s.run.is_done("merge")
        and card.is_file()
        and read_text(card, errors="replace") != (text := model_card(card_content(s)))
    ):
        s.run.write_derived("merge", card, text)


def card_content(s: RunSession) -> CardContent:
    """What the card says, from the run's results."""
    identity, results = s.run.identity, RunResults(s.run)
    trial = results.trial if s.run.is_done("trial") else None  # of this very adapter
    judged = results.judge
    ruling = trial.court if trial else judged.court if judged else None
    return CardContent(
        name=s.run.merged.name,
        base=s.model.title or s.config.training.model,
        languages=tuple(sorted({example.language for example in s.dataset.train})),
        lineage=s.model.lineage,
        licence=s.model.licence,
        noesis=s.run.manifest.noesis,
        dataset_sha256=identity.dataset_sha256,
        constitution_sha256=identity.constitution_sha256,
        config_sha256=identity.config_sha256,
        base_revision=identity.revision,
        training=_training_figures(results),
        held_out=_held_out_figures(judged.preference) if judged else None,
        verdict=ruling.verdict if ruling else UNDECIDED,
        reason=ruling.reason if ruling else "not judged",
        scores=_judge_scores(trial) if trial else (),
    )


def _training_figures(results: RunResults) -> TrainingFigures:
    plan, train = results.executed_plan, results.train
    figures = TrainingFigures()
    if plan is not None:
        figures = replace(figures, examples=plan.rows, epochs=plan.epochs, rank=plan.r, precision=plan.precision)
    if train is not None:
        figures = replace(figures, steps=train.steps, first_loss=train.first_loss, final_loss=train.final_loss)
    return figures


def _held_out_figures(found: Preference) -> HeldOutFigures:
    base, tuned = found.base, found.tuned
    return HeldOutFigures(
        examples=found.examples,
        base_loss=base.held_out_loss,
        tuned_loss=tuned.held_out_loss,
        base_accuracy=base.preference_accuracy,
        tuned_accuracy=tuned.preference_accuracy,
        interval_95=tuned.interval_95,
    )


def _judge_scores(trial: TrialResult) -> tuple[JudgeScore, ...]:
    scores = ((name, trial.summary.mean_score("tuned", measure)) for measure, name in SCORE_NAMES.items())
    return tuple(JudgeScore(name, score.mean, score.interval_95) for name, score in scores if score is not None)
