"""Stage judge: base against tuned on the held-out examples."""

from __future__ import annotations

from typing import Any

from noesis.core.console import say
from noesis.core.files import write_json, write_jsonl
from noesis.dataset.load import evenly_spread
from noesis.pipeline.answers import base_and_tuned_answers
from noesis.pipeline.session import RunSession
from noesis.pipeline.stages.choose import BASE, score_checkpoints
from noesis.planning.budget import require_remaining


def run_judge(s: RunSession, *, again: bool = False, answers: bool = True) -> dict[str, Any]:
    """Base against tuned on the held-out examples: probabilities, answers (unless they are not wanted), the offline screen; and the court's empty bench."""
    from noesis.tribunal.court import no_judge_ruling
    from noesis.tribunal.heldout import compare
    from noesis.tribunal.offline_screen import NAME, ScreenedPrompt, screen, tally

    def work() -> dict[str, Any]:
        require_remaining(s.budget(), "judging")
        held_out = s.dataset.held_out
        chosen = s.run.adapter().name
        scores = score_checkpoints(s, [chosen])
        preference = compare([example.id for example in held_out], scores[BASE], scores[chosen]) | {"adapter": chosen}
        asked = evenly_spread(held_out, s.config.training.tribunal.answers if answers else 0)
        said = base_and_tuned_answers(s, asked)
        rows: list[dict[str, Any]] = []
        for example, base, tuned in zip(asked, said["base"], said["tuned"], strict=True):
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
        summary = {
            "preference": preference,
            "screen": {"name": NAME, **{who: tally([row[who]["flags"] for row in rows]) for who in ("base", "tuned")}},
            "court": no_judge_ruling(s.config.training.tribunal),
        }
        write_json(s.run.tribunal / "summary.json", summary)
        return summary

    result = s.run.perform(
        "judge", work, lambda: [s.run.tribunal / "answers.jsonl", s.run.tribunal / "summary.json"], again=again
    )
    show_judgement(result)
    return result


def show_judgement(result: dict[str, Any]) -> None:
    """Print what the judge stage found."""
    preference = result["preference"]
    b, t, n = preference["base"], preference["tuned"], preference["examples"]
    say(f"  held-out loss          {b['held_out_loss']:.4f} → {t['held_out_loss']:.4f}")
    say(
        f"  preference accuracy    {b['preferred']}/{n} → {t['preferred']}/{n} (95% interval now {t['interval_95'][0]:.2f} to {t['interval_95'][1]:.2f})"
    )
    found = result["screen"]
    say(
        f"  {found['name']}: {found['base']['flagged']} → {found['tuned']['flagged']} of {found['tuned']['answers']} answers flagged"
    )
    say(f"  Tribunal (Veritas, Sophia, Dikē): {result['court']['verdict']}: {result['court']['reason']}")
