"""Stage judge: base against tuned model on the held-out examples. `noesis judge RUN` without a judge ends here."""

from __future__ import annotations

from typing import Any

from noesis.core.console import say
from noesis.core.files import write_json, write_jsonl
from noesis.core.i18n import _, retold
from noesis.core.project import Project
from noesis.dataset.load import evenly_spread
from noesis.pipeline.answers import base_and_tuned_answers
from noesis.pipeline.results import RunResults, read_result
from noesis.pipeline.session import RunSession
from noesis.pipeline.stages.choose import BASE, score_checkpoints, spread_lines
from noesis.pipeline.stages.kept import KEPT, figures_of, measure_items, show_kept
from noesis.pipeline.stages.merge import write_card
from noesis.pipeline.tracking import judge_figures, track
from noesis.planning.budget import require_remaining
from noesis.run.manifest import Json
from noesis.tribunal.court import no_judge_ruling
from noesis.tribunal.heldout import JudgeResult, ScreenComparison, compare
from noesis.tribunal.offline_screen import NAME, ScreenedPrompt, screen, tally
from noesis.tribunal.scoring import MODELS


def run_judge(
    s: RunSession,
    *,
    project: Project | None = None,
    again: bool = False,
    answers: bool = True,
    no_trial: str | None = None,
) -> JudgeResult:
    """Compare base and tuned model: by probabilities and the offline screen on held-out examples, and on small tasks.

    Args:
        project: whose small tasks show what training broke; None: they are left out.
        answers: generate answers as well.
        no_trial: why the judges that were named hold no trial; the verdict says it, also where this stage was done.

    Raises:
        CapError: the budget is spent.
    """

    def work() -> Json:
        require_remaining(s.budget(), "judging")
        held_out = s.dataset.held_out
        chosen = s.run.adapter().name
        scores = score_checkpoints(s, [chosen])
        preference = compare([example.id for example in held_out], scores[BASE], scores[chosen], adapter=chosen)
        sample = evenly_spread(held_out, s.config.training.tribunal.answers if answers else 0)
        generated = base_and_tuned_answers(s, sample)
        rows: list[dict[str, Any]] = []
        for example, base, tuned in zip(sample, generated["base"], generated["tuned"], strict=True):
            screened = ScreenedPrompt(example.prompt, example.language, example.stance)
            rows.append(
                {
                    "id": example.id,
                    "language": example.language,
                    "category": example.category,
                    "prompt": example.prompt,
                    "turns": example.earlier,
                    "base": {"answer": base, "flags": screen(base, screened, s.constitution)},
                    "tuned": {"answer": tuned, "flags": screen(tuned, screened, s.constitution)},
                    "written": example.response_revised,
                }
            )
        write_jsonl(s.run.tribunal / "answers.jsonl", rows)
        measured = measure_items(s, s.run.adapter(), project)
        write_jsonl(s.run.path.joinpath(*KEPT), measured)
        found = JudgeResult(
            preference=preference,
            screen=ScreenComparison(NAME, *(tally([row[model]["flags"] for row in rows]) for model in MODELS)),
            court=no_judge_ruling(s.config.training.tribunal, no_trial),
            kept=figures_of(measured, rows),
        )
        write_json(s.run.tribunal / "summary.json", found.to_json())
        track(s, judge_figures(found))
        return found.to_json()

    before = RunResults(s.run).judge
    again = again or (no_trial is not None and before is not None and before.court.reason != no_trial)
    outputs = [s.run.tribunal / name for name in ("answers.jsonl", "kept.jsonl", "summary.json")]
    stored = s.run.perform("judge", work, lambda: outputs, again=again)
    result = read_result(s.run, "judge", stored, JudgeResult.from_json)
    write_card(s)
    show_judgement(result)
    choice = RunResults(s.run).choice
    for line in spread_lines(choice) if choice else []:
        say(f"  {line}")
    return result


def show_judgement(result: JudgeResult) -> None:
    """Print what the judge stage found."""
    base, tuned, count = result.preference.base, result.preference.tuned, result.preference.examples
    say(
        _(
            "  held-out loss          {held_out_loss:.4f} → {tuned_held_out_loss:.4f}",
            held_out_loss=base.held_out_loss,
            tuned_held_out_loss=tuned.held_out_loss,
        )
    )
    low, high = tuned.interval_95
    interval = _("95% interval now {low:.2f} to {high:.2f}", low=low, high=high)
    say(
        _(
            "  preference accuracy    {preferred}/{count} → {tuned_preferred}/{count} ({interval})",
            preferred=base.preferred,
            count=count,
            tuned_preferred=tuned.preferred,
            interval=interval,
        )
    )
    fell = _(" (it fell)") if tuned.mean_margin < base.mean_margin else ""
    say(
        _(
            "  mean margin            {mean_margin:+.4f} → {tuned_mean_margin:+.4f} nats a token{fell}",
            mean_margin=base.mean_margin,
            tuned_mean_margin=tuned.mean_margin,
            fell=fell,
        )
    )
    screened = result.screen
    flagged = _(
        "{flagged} → {tuned_flagged} of {answers} answers flagged",
        flagged=screened.base.flagged,
        tuned_flagged=screened.tuned.flagged,
        answers=screened.tuned.answers,
    )
    say(f"  {retold(screened.name)}: {flagged}")
    show_kept(result.kept)
    say(
        _(
            "  Tribunal (Veritas, Sophia, Dikē): {verdict}: {reason}",
            verdict=result.court.verdict,
            reason=retold(result.court.reason),
        )
    )
