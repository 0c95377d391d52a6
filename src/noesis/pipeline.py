"""The whole pipeline, a function a stage: export → plan → train → choose → judge → merge → gguf → report.

`noesis demo`, the single commands and Modal's functions all call these. A stage finds what it needs in the run directory.
"""

from __future__ import annotations

import gc
from collections.abc import Callable
from pathlib import Path
from typing import Any

from noesis.choosing import BASE, Hear, score
from noesis.choosing import choose as choose_adapter
from noesis.console import Progress, duration, heading, say
from noesis.constitution.conversation import opening
from noesis.constitution.tokenizer import load_tokenizer
from noesis.data.load import evenly_spread
from noesis.files import write_json, write_jsonl
from noesis.releasing import base_gguf, gguf, merge, write_adapter
from noesis.sessions import Records, Session
from noesis.train.ahead import planned
from noesis.train.budget import quote, require_affordable, require_left
from noesis.train.phases import left, outputs, states, train_run
from noesis.train.plan import Plan, as_planned
from noesis.train.show import show_plan

__all__ = ["choose", "gguf", "judge", "merge", "plan", "report", "run_stages", "show_judgement", "train"]


def plan(s: Session, *, again: bool = False) -> dict[str, Any]:
    """What will be trained, in how many tokens, and what it is expected to take."""
    stored = s.run.result("plan")
    config = s.config
    if stored is not None and not s.run.is_done("train"):
        same = "setup" in stored and (stored["device"]["name"], stored["device"]["cards"]) == (
            s.device.name,
            s.device.cards,
        )
        again = again or not same  # a run that goes on elsewhere is planned anew, but on the base that it began on
        if states(s.run.checkpoints):
            config = as_planned(config, stored)

    def work() -> dict[str, Any]:
        return planned(config, s.model.path, s.material(), s.device).as_json()

    result = s.run.perform("plan", work, list, again=again)
    show_plan(result)
    return result


def train(s: Session) -> dict[str, Any]:
    """QLoRA, by SFT, DPO or both in turn; one adapter an epoch."""

    def work() -> dict[str, Any]:
        p = Plan.from_json(s.run.manifest["stages"]["plan"]["result"])
        material, budget = s.material(), s.budget()
        if not states(s.run.checkpoints):
            s.run.metrics.unlink(missing_ok=True)
        for line in quote(p.as_json(), budget):
            say(line)
        still, done_share = left(p, s.run.checkpoints)
        require_affordable(still, budget, done=done_share)
        parent = s.run.path / "parent" if "parent" in s.run.manifest else None
        places = {"checkpoints": s.run.checkpoints, "metrics": s.run.metrics}
        done = train_run(s.model.path, material, s.as_trained, p, s.device, **places, budget=budget, parent=parent)
        if (smaller := done.pop("smaller_plan", None)) is not None:
            s.run.manifest["stages"]["plan"]["result"] = smaller  # later stages read from it what was trained
        return done | {"out_of_memory_once": smaller is not None}

    result = s.run.perform("train", work, lambda: [*outputs(s.run.checkpoints), s.run.metrics])
    gc.collect()
    say(
        f"  {result['steps']} steps in {duration(result['seconds'])} ({result['tokens_per_s']:,.0f} tokens/s); "
        f"loss {result['first_loss']:.3f} → {result['final_loss']:.3f}; → {s.run.epochs()[-1]}"
    )
    if result.get("held_out", {}).get("by_epoch"):
        last, pairs = result["held_out"]["by_epoch"][-1], result["held_out"]["pairs"]
        say(
            f"  held-out pairs: chosen above rejected in {last['reward_accuracy'] * pairs:.0f} of {pairs}, mean margin {last['reward_margin']:+.3f}"
        )
    if "mean_training_loss" in result:
        losses = ", ".join(
            f"{name} {loss:.3f}" for name, loss in result["mean_training_loss"].items() if loss is not None
        )
        say(f"  {result['saves']} states saved in {result['save_share']:.1%} of the time; mean training loss {losses}")
    return result


def choose(s: Session, hear: Hear | None = None) -> dict[str, Any]:
    """Which epoch's adapter the later stages take.

    Args:
        hear: brings an adapter before the court on its dev prompts; None where no judge is set.
    """

    def work() -> dict[str, Any]:
        require_left(s.budget(), "choosing the checkpoint")
        return choose_adapter(s, hear)

    result = s.run.perform("choose", work, lambda: sorted((s.run.tribunal / "checkpoints").glob("*.json")))
    for name, f in result["epochs"].items():
        court = f"; the Tribunal's mean {f['court']['mean']:.3f}" if f.get("court", {}).get("mean") is not None else ""
        say(
            f"  {name}: prefers {f['preferred']} of {f['examples']} revisions, margin {f['mean_margin']:+.4f}, held-out loss {f['held_out_loss']:.4f}{court}"
        )
    say(f"  {result['adapter']} is used: {result['by']}")
    return result


def judge(s: Session, *, again: bool = False, answers: bool = True) -> dict[str, Any]:
    """Base against tuned on the held-out examples: probabilities, answers (unless they are not wanted), the offline screen; and the court's empty bench."""
    from noesis.tribunal.court import empty_bench
    from noesis.tribunal.preference import compare
    from noesis.tribunal.screen import NAME, screen, tally

    def work() -> dict[str, Any]:
        require_left(s.budget(), "judging")
        held_out = s.examples("eval")
        chosen = s.run.adapter().name
        scores = score(s, [chosen])
        preference = compare([r["id"] for r in held_out], scores[BASE], scores[chosen]) | {"adapter": chosen}
        asked = evenly_spread(held_out, s.config.training.tribunal.answers if answers else 0)
        said = _answers(s, asked)
        rows = []
        for record, base, tuned in zip(asked, said["base"], said["tuned"], strict=True):
            rows.append(
                {
                    "id": record["id"],
                    "language": record.get("language", "pt"),
                    "category": record["category"],
                    "prompt": record["prompt"],
                    "turns": record.get("turns") or [],
                    "base": {"answer": base, "flags": screen(base, record, s.constitution)},
                    "tuned": {"answer": tuned, "flags": screen(tuned, record, s.constitution)},
                    "written": record["response_revised"],
                }
            )
        write_jsonl(s.run.tribunal / "answers.jsonl", rows)
        summary = {
            "preference": preference,
            "screen": {"name": NAME, **{who: tally([row[who]["flags"] for row in rows]) for who in ("base", "tuned")}},
            "court": empty_bench(s.config.training.tribunal),
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


def report(s: Session) -> Path:
    """One self-contained page."""
    from noesis.report.page import write_report

    s.run.perform("report", lambda: write_report(s.run, s.config, s.constitution), lambda: [s.run.report], again=True)
    say(f"  → {s.run.report}")
    return s.run.report


def run_stages(s: Session, *, first: int, total: int, hear: Hear | None = None) -> None:
    """Every stage after the export, in order, each announced. `hear`: as in `choose`."""
    court = "base against tuned on the held-out examples"
    stages: list[tuple[str, str, Callable[[Session], Any]]] = [
        ("plan", "what will be trained, and what it should take", plan),
        ("train", "QLoRA, loss on the answers only", train),
        ("choose", "which epoch's adapter is used", lambda s: choose(s, hear)),
        ("judge", court, judge),
        ("merge", "adapter and base into one model", merge),
        ("gguf", "for llama.cpp, and does it behave alike?", gguf),
        ("report", "one page", report),
    ]
    for offset, (name, what, work) in enumerate(stages):
        heading(first + offset, total, name, what)
        work(s)


# --- what the stages need of each other


def _answers(s: Session, asked: Records) -> dict[str, list[str]]:
    """Greedy answers in llama.cpp, from one process: the base that was trained on, with the adapter off and on. On a card by torch."""
    if not asked:
        return {"base": [], "tuned": []}
    if s.device.kind == "cuda":
        return _answers_on_card(s, asked)
    from noesis.serve.engine import Engine

    adapter = write_adapter(s)
    conversations = [opening(s.constitution, record) for record in asked]
    engine = Engine(base_gguf(s), adapter=adapter, parallel=min(4, len(asked)), context=2048)
    answers = {}
    for who, on in (("base", False), ("tuned", True)):
        with Progress(f"answer ({who})", len(asked), "prompts") as progress:
            answers[who] = engine.answer_all(
                conversations, max_tokens=s.config.training.tribunal.max_new_tokens, adapter=on, progress=progress
            )
    return answers


def _answers_on_card(s: Session, asked: Records) -> dict[str, list[str]]:
    """The same where a card is: all prompts in one batch, from the weights that a merge would write, one of the two models in memory at a time."""
    from noesis.release.merge import loaded
    from noesis.serve.batch import answer_packed

    tokenizer, t = load_tokenizer(s.model.path), s.config.training.tribunal
    answers = {}
    for who, adapter in (("base", None), ("tuned", s.run.adapter())):
        with Progress(f"answer ({who})", len(asked), "prompts") as progress:
            model = loaded(
                s.model.path,
                adapter,
                quantization=s.as_trained.lora.quantization,
                dtype=s.arithmetic,
                device=s.device.kind,
            )
            conversations = [opening(s.constitution, record) for record in asked]
            answers[who] = answer_packed(
                model, tokenizer, conversations, max_tokens=t.max_new_tokens, on_answer=progress.advance
            )
            del model
        gc.collect()
    return answers
