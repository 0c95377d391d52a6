"""What a stage tells the experiment trackers (`report_to`): the figures that its report shows, at training's last step.

A run directory may come from a stranger: only trackers that the user's own settings name are told anything, apart from
TensorBoard, which writes into the run and sends nothing.
"""

from __future__ import annotations

from collections.abc import Mapping

from noesis.core.config import load_config
from noesis.core.console import say
from noesis.core.errors import UsageError
from noesis.core.i18n import _
from noesis.core.project import find_project
from noesis.pipeline.results import Dial, RunResults, TrialResult
from noesis.pipeline.session import RunSession
from noesis.release.parity.certificate import Certificate
from noesis.tribunal.court import APPROVED
from noesis.tribunal.heldout import JudgeResult
from noesis.tribunal.trial_summary import MEASURES

LOCAL = "tensorboard"

Figures = Mapping[str, float | None]


def track(s: RunSession, figures: Figures) -> None:
    """Tell the run's trackers; figures that are None are left out."""
    names = _trusted(s)
    if not names:
        return
    from noesis.training.tracking.trackers import report

    train = RunResults(s.run).train
    known = {f"eval_{name}": float(value) for name, value in figures.items() if value is not None}
    report(names, s.config, s.run.path, [(train.steps if train else 0, known)])


def judge_figures(found: JudgeResult) -> Figures:
    """Base and tuned model on the held-out examples."""
    models = {"base": found.preference.base, "tuned": found.preference.tuned}
    return {
        f"judge/{what}_{model}": value
        for model, scores in models.items()
        for what, value in {
            "held_out_loss": scores.held_out_loss,
            "preference_accuracy": scores.preference_accuracy,
            "mean_margin": scores.mean_margin,
        }.items()
    }


def dial_figures(found: Dial) -> Figures:
    """The strength, and the adapter at it."""
    used = next((figures for figures in found.curve if figures.strength == found.strength), None)
    measured = {} if used is None else {"held_out_loss": used.held_out_loss, "mean_margin": used.mean_margin}
    drift = {} if used is None else {"drift": used.drift}
    return {f"dial/{name}": value for name, value in ({"strength": found.strength} | measured | drift).items()}


def certificate_figures(found: Certificate) -> Figures:
    """How far each file is from its reference, and whether it passed."""
    return {
        f"certificate/{name}/{what}": value
        for name, comparison in found.comparisons()
        for what, value in {"kl_mean": comparison.divergence.kl_mean, "passed": float(comparison.passed)}.items()
    }


def trial_figures(found: TrialResult) -> Figures:
    """The tuned model's mean scores, and whether it is approved."""
    scores = {measure: found.summary.mean_score("tuned", measure) for measure in MEASURES}
    return {"tribunal/approved": float(found.court.verdict == APPROVED)} | {
        f"tribunal/{measure}": score.mean for measure, score in scores.items() if score is not None
    }


def _trusted(s: RunSession) -> tuple[str, ...]:
    """The trackers that the run names and the user does, too."""
    named = s.config.training.report_to
    if s.loaded is not None or not set(named) - {LOCAL}:  # the session was started from the user's own settings
        return named
    try:
        own = load_config(find_project()).training.report_to
    except UsageError:
        own = ()
    left_out = [name for name in named if name != LOCAL and name not in own]
    if left_out:
        say(
            _(
                "  the run names {left_out} in report_to, your project does not: nothing is sent there",
                left_out=", ".join(left_out),
            )
        )
    return tuple(name for name in named if name not in left_out)
