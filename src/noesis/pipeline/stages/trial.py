"""The Tribunal's commands: `noesis judge RUN --judge SPEC` (the trial), the hearing of each epoch, `noesis tribunal calibrate`. Brings stages together:
answers come from `release` and `serve`, the court from `tribunal`, and both leave their files in the run directory.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from noesis.core.config import TribunalSection, load_config
from noesis.core.console import say
from noesis.core.errors import UsageError
from noesis.core.files import sha256_file, sha256_json, utc_now, write_json, write_jsonl
from noesis.core.project import Project, calibrations_folder, tribunal_folder
from noesis.llm.clients.open import close_clients, open_judges
from noesis.llm.clients.reply_cache import open_cache
from noesis.llm.clients.spec import ModelSpec, parse_spec, same_model
from noesis.llm.clients.spending import Spending
from noesis.pipeline.answers import answer_generator, answer_identities
from noesis.pipeline.gguf_files import base_gguf
from noesis.pipeline.session import RunSession
from noesis.pipeline.stages.choose import CheckpointScore, CheckpointScorer
from noesis.pipeline.stages.merge import write_card
from noesis.tribunal.calibration_store import calibration_summary, error_counts, load_calibration, unfit_reason
from noesis.tribunal.panel import JudgePanel
from noesis.tribunal.rubric import JUDGES, load_rubrics
from noesis.tribunal.scoring import MODELS, ScoredAnswer, answer_and_score, answer_prompts, verdict_rows
from noesis.tribunal.suite import EvalSample, Part, read_suite, seal, spread
from noesis.tribunal.trial_summary import summarise

JUDGE_CALL_SETTINGS = (
    "concurrency",
    "timeout_seconds",
    "attempts",
    "requests_per_minute",
    "prices",
)  # settings that change no verdict


@dataclass(frozen=True)
class TrialRequest:
    """What a trial was asked for on the command line."""

    judges: tuple[str, ...]
    part: Part = "dev"
    prompts: int | None = None
    max_usd: float | None = None


def run_trial(
    s: RunSession,
    project: Project,
    ask: TrialRequest,
    *,
    again: bool = False,
    seated: Callable[[], AbstractContextManager[None]] | None = None,
) -> dict[str, Any]:
    """Base and tuned model before the court; the ruling, its figures and every verdict are left in the run directory.

    Args:
        seated: serves a judge that has no room beside the answering model; entered when all answers are kept and that model is gone.
    """
    section = current_tribunal_settings(s, project)
    folder = tribunal_folder(project)
    bench, items = load_rubrics(folder / "judges"), trial_items(project, ask)
    specs = [parse_spec(text) for text in ask.judges]
    own = _own_judge(s, specs)
    prompts = sha256_json([item.model_dump(mode="json") for item in items])
    adapter = sha256_file(s.run.adapter() / "adapter_model.safetensors")
    calibrated = sorted(sha256_file(p) for p in calibrations_folder(project).glob("*.json"))
    request = sha256_json(
        [
            ask.judges,
            prompts,
            bench.digest(),
            section.model_dump(mode="json", exclude=set(JUDGE_CALL_SETTINGS)),
            adapter,
            calibrated,
        ]
    )

    def work() -> dict[str, Any]:
        spending = Spending(max_usd=ask.max_usd)
        clients = open_judges(specs, section, spending, own=own)
        calibrations = [load_calibration(calibrations_folder(project), client.identity, bench) for client in clients]
        if ask.part != "dev":
            _log_locked(s.run.tribunal, folder, "trial")
        with open_cache(s.run.tribunal / "replies.sqlite") as cache:
            seats = JudgePanel(bench, clients, cache)
            heard = _heard(s, section, items, seats, s.run.adapter(), seated)
        names = [client.name for client in clients]
        summary = summarise(heard, section, unfit=unfit_reason(calibrations, names), errors=error_counts(calibrations))
        result = {
            "request": request,
            "part": ask.part,
            "prompts": len(items),
            "prompts_sha256": prompts,
            "samples": section.samples,
            "rubrics_sha256": bench.digest(),
            "judges": [
                {
                    "name": c.name,
                    "identity": c.identity,
                    "fit": bool(k and k["fit"] and k["part"] != "dev"),
                    "calibration": calibration_summary(k),
                }
                for c, k in zip(clients, calibrations, strict=True)
            ],
            "self_judged": own is not None,
            "spending": spending.as_json(),
            "court": ruling_for_report(summary, section),
            **summary,
        }
        write_jsonl(s.run.tribunal / "trial_answers.jsonl", [h.answer.as_json() for h in heard])
        write_jsonl(s.run.tribunal / "verdicts.jsonl", verdict_rows(heard))
        write_json(s.run.tribunal / "trial.json", result)
        return result

    before = s.run.result("trial")
    files = [s.run.tribunal / name for name in ("trial_answers.jsonl", "verdicts.jsonl", "trial.json")]
    result = s.run.perform(
        "trial", work, lambda: files, again=again or (before is not None and before["request"] != request)
    )
    write_card(s)
    show(result)
    return result


def trial_items(project: Project, ask: TrialRequest) -> list[EvalSample]:
    """A trial's prompts, in order."""
    return spread(read_suite(tribunal_folder(project), ask.part), ask.prompts)


def checkpoint_scorer(s: RunSession, project: Project, judges: Sequence[str] | None = None) -> CheckpointScorer | None:
    """Brings an epoch's adapter before the court on the dev prompts, to choose the checkpoint; None where no judge is set.

    Nobody is asked where a judge is not fit. Answers and replies stay in the run, and `noesis judge` finds them there.

    Args:
        judges: as given with --judge; None: those in training_config.yaml (`tribunal: judges`).
    """
    section = current_tribunal_settings(s, project)
    named = section.judges if judges is None else tuple(judges)
    if not named:
        return None
    folder = tribunal_folder(project)
    bench, items = load_rubrics(folder / "judges"), read_suite(folder, "dev")
    specs = [parse_spec(text) for text in named]
    own = _own_judge(s, specs)

    def hear(adapter: Path) -> CheckpointScore:
        clients = open_judges(specs, section, Spending(), own=own)
        calibrations = [load_calibration(calibrations_folder(project), client.identity, bench) for client in clients]
        why = unfit_reason(calibrations, [client.name for client in clients])
        if why:
            asyncio.run(close_clients(clients))
            return CheckpointScore(None, None, False, why)
        say(f"  the court hears {adapter.name} on {len(items)} dev prompts")
        with open_cache(s.run.tribunal / "replies.sqlite") as cache:
            heard = _heard(s, section, items, JudgePanel(bench, clients, cache), adapter)
        summary = summarise(heard, section, unfit=None)
        found = summary["models"]["tuned"]["all"]
        return CheckpointScore(
            found["mean"]["mean"] if "mean" in found else None, summary["keyed"]["fall"], bool(_vetoed(summary)), None
        )

    return hear


def _vetoed(summary: dict[str, Any]) -> list[str]:
    return [v["answer"] for v in summary["vetoes"] if "/tuned/" in v["answer"]]


def _heard(
    s: RunSession,
    section: TribunalSection,
    items: Sequence[EvalSample],
    seats: JudgePanel,
    adapter: Path,
    seated: Callable[[], AbstractContextManager[None]] | None = None,
) -> list[ScoredAnswer]:
    """Base and tuned answers to `items` with the court's opinion of each."""
    held: dict[str, Any] = {}
    identity, seed, generate = (
        answer_identities(s, adapter),
        s.config.training.seed,
        answer_generator(s, section, adapter, held),
    )
    if seated is None:
        return answer_and_score(items, s.constitution, generate, seats, section, identity=identity, seed=seed)
    for who in MODELS:
        answer_prompts(
            items, s.constitution, generate, seats.cache, identity=identity[who], who=who, section=section, seed=seed
        )
    held.clear()
    with seated():
        return answer_and_score(items, s.constitution, generate, seats, section, identity=identity, seed=seed)


def ruling_for_report(summary: dict[str, Any], section: TribunalSection) -> dict[str, Any]:
    """The ruling in the shape of the empty bench, for the report and the model card."""
    found, weights = summary["models"]["tuned"]["all"], section.weights.model_dump()
    judges = {}
    for name in JUDGES:
        f = found.get(name)
        status = (
            "no verdict" if f is None else f"{f['mean']:.3f} [{f['interval_95'][0]:.3f}, {f['interval_95'][1]:.3f}]"
        )
        judges[name] = {"weight": weights[name], "status": status}
    return {
        **summary["ruling"],
        "judges": judges,
        "approval_threshold": section.approval_threshold,
        "judge_floor": section.judge_floor,
    }


def show(result: dict[str, Any]) -> None:
    """Print the ruling with what it rests on."""
    base, tuned, difference = (
        result["models"]["base"]["all"],
        result["models"]["tuned"]["all"],
        result["difference"]["all"],
    )
    say(
        f"  {result['prompts']} prompts ({result['part']}), {result['samples']} answers of each model; judges: {', '.join(j['name'] for j in result['judges'])}"
    )
    if result["self_judged"]:
        say("  the model under judgement sits among its judges, as asked for with --judge self")
    for name in ("mean", *JUDGES):
        if name in base and name in tuned and difference[name]["clusters"]:
            b, t, d = base[name], tuned[name], difference[name]
            low, high = t["interval_95"]
            say(
                f"  {name:<8} {b['mean']:.3f} → {t['mean']:.3f} [{low:.3f}, {high:.3f}]   difference {d['mean']:+.3f} {d['interval_95']}, p {d['p']:.3f}"
            )
    court = result["court"]
    more = f"; about {court['more_prompts']} more prompts would decide it" if court.get("more_prompts") else ""
    say(f"  Tribunal: {court['verdict']}: {court['reason']}{more}")


def current_tribunal_settings(s: RunSession, project: Project) -> TribunalSection:
    """What the run was made with; how judges are asked, and what they charge, as the project has it now."""
    now_said = load_config(project).training.tribunal
    return s.config.training.tribunal.model_copy(update={name: getattr(now_said, name) for name in JUDGE_CALL_SETTINGS})


def _own_judge(s: RunSession, specs: Sequence[ModelSpec]) -> Path | None:
    """The run's own base, if it was asked for by name; refused under any other."""
    base = base_gguf(s) if any(spec.kind == "self" for spec in specs) else None
    for spec in specs:
        judged = (s.config.training.model, s.config.training.output_name, s.run.merged.name)
        if spec.kind != "self" and any(same_model(spec.name, name) for name in judged):
            raise UsageError(
                f"{spec.name} is the model under judgement: name another judge, or say --judge self, and the report will say so"
            )
    return base


def _log_locked(run: Path, tribunal: Path, what: str) -> None:
    """Each use of a locked part leaves a line in the run."""
    run.mkdir(parents=True, exist_ok=True)
    with open(run / "locked_uses.jsonl", "a", encoding="utf-8") as f:
        f.write(json.dumps({"date": utc_now(), "what": what, "seal_sha256": sha256_json(seal(tribunal))}) + "\n")
