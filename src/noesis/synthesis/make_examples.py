"""`noesis constitution revise --model SPEC --critic SPEC --prompts FILE`: examples by critique and revision, filtered and accounted for.

DIR/examples.jsonl   the examples kept, in the record format, marked as generated, with their lineage
DIR/left_out.jsonl   every prompt that gave none, and why
DIR/report.json      acceptance by principle, failures by step, tokens, USD, rate
DIR/shards/          the chains with everything asked and said; with plan.json and replies.sqlite they make the work resumable
"""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from noesis.constitution.document import Constitution, load_constitution
from noesis.core.config import TribunalSection, load_config
from noesis.core.console import say
from noesis.core.event_loop import run_async
from noesis.core.files import sha256_json, write_json, write_jsonl
from noesis.core.project import Project
from noesis.dataset.jsonl import find_files
from noesis.llm.clients.open import WRITER_SLOTS, close_clients, open_clients
from noesis.llm.clients.protocol import ModelClient
from noesis.llm.clients.reply_cache import ReplyCache, open_cache
from noesis.llm.clients.spec import WRITER_KINDS, parse_spec
from noesis.llm.clients.spending import Spending
from noesis.synthesis.critique_revision import UNANSWERED, ExampleMaker, Settings
from noesis.synthesis.filters import Dropped, filtered, judge_examples, key, tallies
from noesis.synthesis.prompt_file import Prompt, known_prompts, read_prompts
from noesis.synthesis.prompt_templates import Shots, choose_shots, wording_digest
from noesis.synthesis.resumable_work import Result, WorkFolder, open_folder, process_rows
from noesis.tribunal.panel import make_panel
from noesis.tribunal.statistics import wilson


@dataclass(frozen=True)
class ExamplesRequest:
    """What was asked for on the command line. judges: SPECs of a court that the revisions go before, if it is fit."""

    model: str
    critic: str
    prompts: Path
    out: Path
    settings: Settings = field(default_factory=Settings)
    judges: tuple[str, ...] = ()
    max_usd: float | None = None
    count: int | None = None


def revise(project: Project, ask: ExamplesRequest) -> dict[str, Any]:
    """Make, filter and write examples; returns the report.

    Raises:
        UsageError, DataError: the prompts or a SPEC can't be used. CapError: the cap; the same command with a higher one goes on.
    """
    constitution, section = load_constitution(project.constitution), load_config(project).training.tribunal
    prompts = read_prompts(ask.prompts, constitution)[: ask.count]
    spending = Spending(max_usd=ask.max_usd)
    specs = [parse_spec(ask.model, "--model", WRITER_KINDS), parse_spec(ask.critic, "--critic", WRITER_KINDS)]
    specs += [parse_spec(text, kinds=("openai", "gguf")) for text in ask.judges]
    voices = open_clients(specs, section, spending, slots=WRITER_SLOTS)
    shots: dict[str, Shots] = {
        language: _shots(project, constitution, language, ask.settings)
        for language in sorted({p.language for p in prompts})
    }
    plan = {
        "command": "revise",
        "model": voices[0].identity,
        "critic": voices[1].identity,
        "prompts": sha256_json([p.model_dump(mode="json") for p in prompts]),
        "constitution": constitution.requests_digest(),
        "wording": wording_digest(),
        "shots": {language: list(s.ids) for language, s in shots.items()},
        "settings": ask.settings.as_json(),
    }
    with open_folder(ask.out, plan) as folder, open_cache(folder.replies) as cache:
        return run_async(_run(project, ask, constitution, section, prompts, voices, shots, spending, folder, cache))


async def _run(
    project: Project,
    ask: ExamplesRequest,
    constitution: Constitution,
    section: TribunalSection,
    prompts: list[Prompt],
    voices: list[ModelClient],
    shots: dict[str, Shots],
    spending: Spending,
    folder: WorkFolder,
    cache: ReplyCache,
) -> dict[str, Any]:
    model, critic, *judges = voices
    tokens, started = Counter[str](), time.monotonic()
    asked_before = known_prompts(sorted((project.data / "tribunal").rglob("*.jsonl")))

    def count(made: int) -> None:
        tokens["made"] += made

    maker = ExampleMaker(constitution, model, critic, shots, cache, ask.settings, count)

    async def make(i: int) -> Result:
        if place := asked_before.find_similar(prompts[i].prompt):  # before anything is spent on it
            return {
                "id": prompts[i].id,
                "language": prompts[i].language,
                "record": None,
                "reason": f"asks what the Tribunal asks ({place})",
            } | _NOTHING
        return (await maker.make(prompts[i])).as_json()

    try:
        keys = [f"{p.language}/{p.id}" for p in prompts]
        results = await process_rows(
            folder,
            keys,
            make,
            window=2 * max(model.concurrency, critic.concurrency),
            what="revise",
            unit="examples",
            again=lambda row: UNANSWERED in str(row["reason"]),
            note=lambda: (
                f"{tokens['made'] / max(time.monotonic() - started, 1e-9):.0f} tokens/s, {spending.usd:.4f} USD"
            ),
        )
        rows = [r["record"] for r in results if r["record"]]
        kept, dropped = filtered(rows, constitution, project.data / "tribunal", folder.path / ".candidates.jsonl")
        court = "no judge is seated: the offline screen and the gate decided alone"
        if judges:
            court, kept, more = await _before_the_court(project, section, judges, cache, kept)
            dropped |= more
    finally:
        await close_clients(voices)
    seconds = time.monotonic() - started
    left_out = _left_out(results, dropped)
    write_jsonl(folder.path / "examples.jsonl", kept)
    write_jsonl(folder.path / "left_out.jsonl", left_out)
    report = {
        "prompts": len(prompts),
        "made": len(rows),
        "kept": len(kept),
        "model": model.name,
        "critic": critic.name,
        "court": court,
        "by_principle": acceptance(results, {key(row) for row in kept}),
        "left_out": tallies([_short(row["reason"]) for row in left_out]),
        "failures": tallies([f"{step}: {why}" for r in results for step, why in r["failures"]]),
        "settings": plan_settings(folder),
        "tokens_made": tokens["made"],
        "seconds": round(seconds, 1),
        "spending": spending.to_json(),
    }
    write_json(folder.path / "report.json", report)
    return report


_NOTHING: dict[str, Any] = {"failures": [], "tried": [], "trace": []}


async def _before_the_court(
    project: Project,
    section: TribunalSection,
    judges: Sequence[ModelClient],
    cache: ReplyCache,
    kept: list[dict[str, Any]],
) -> Any:
    """(what the report says of the court, rows kept, rows dropped): an unfit court is not heard."""
    panel = make_panel(project, judges, cache)
    if why := panel.unfit_reason:
        say(f"  {why}; the offline screen and the gate decide alone")
        none: Dropped = {}
        return f"not heard: {why}", kept, none
    rows, dropped = await judge_examples(kept, panel, section)
    return f"heard: {', '.join(panel.names)}", rows, dropped


def acceptance(results: Sequence[Result], kept: set[str]) -> dict[str, dict[str, Any]]:
    """For each principle that was drawn: chains that drew it, those whose example was kept, rate and Wilson interval."""
    drawn, accepted = Counter[str](), Counter[str]()
    for r in results:
        names = set(r["tried"])
        drawn.update(names)
        if r["record"] and key(r["record"]) in kept:
            accepted.update(names)
    found = {}
    for name in sorted(drawn):
        low, high = wilson(accepted[name], drawn[name])
        rate = round(accepted[name] / drawn[name], 4)
        found[name] = {
            "drawn": drawn[name],
            "kept": accepted[name],
            "rate": rate,
            "interval_95": [round(low, 4), round(high, 4)],
        }
    return found


def _left_out(results: Sequence[Result], dropped: Dropped) -> list[dict[str, Any]]:
    rows = []
    for r in results:
        reason = r["reason"] or (dropped.get(key(r["record"])) if r["record"] else None)
        if reason:
            rows.append(
                {
                    "id": r["id"],
                    "language": r["language"],
                    "reason": reason,
                    "failures": r["failures"],
                    "principles": r["tried"],
                }
            )
    return rows


def _short(reason: str) -> str:
    """A reason without the particulars of one row."""
    return reason.split(" (", 1)[0].split(", ", 1)[0]


def plan_settings(folder: WorkFolder) -> dict[str, Any]:
    return {name: folder.plan[name] for name in ("settings", "shots", "constitution", "wording", "prompts")}


def _shots(project: Project, constitution: Constitution, language: str, settings: Settings) -> Shots:
    """Hand-written examples to show; never one that is held out."""
    held_out = {row["id"] for row in _rows(project.exports / "eval.jsonl")}
    folder = project.sources("en" if language == "en" else "pt")[0]
    examples = (
        [row for file in find_files([folder]) for row in _rows(file)]
        if settings.shots and any(folder.glob("*.jsonl"))
        else []
    )
    return choose_shots(
        [e for e in examples if e["id"] not in held_out], constitution, language, settings.shots, settings.seed
    )


def _rows(file: Path) -> list[dict[str, Any]]:
    if not file.is_file():
        return []
    return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines() if line.strip()]
