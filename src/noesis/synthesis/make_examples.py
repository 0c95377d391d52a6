"""`noesis constitution revise --model SPEC --critic SPEC --prompts FILE`: examples by critique and revision.

DIR/examples.jsonl   the examples that are kept, marked as generated, with their lineage
DIR/left_out.jsonl   every prompt that gave none, and why
DIR/report.json      acceptance by principle, failures by step, tokens, USD, rate
DIR/shards/          every request and reply; with plan.json and replies.sqlite they make the work resumable
"""

from __future__ import annotations

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
from noesis.core.i18n import N_, _, retold
from noesis.core.jsonl import jsonl_files, read_objects
from noesis.core.language import LanguageCode as Language
from noesis.core.project import Project
from noesis.dataset.load import read_hand_written
from noesis.dataset.schema import Example
from noesis.llm.clients.open import WRITER_SLOTS, close_clients, open_clients
from noesis.llm.clients.protocol import ModelClient
from noesis.llm.clients.reply_cache import ReplyCache, open_cache
from noesis.llm.clients.spec import WRITER_KINDS, parse_spec
from noesis.llm.clients.spending import Spending
from noesis.synthesis.critique_revision import UNANSWERED, ExampleMaker, ExampleOutcome, Settings
from noesis.synthesis.filters import Dropped, filter_examples, judge_examples, key_of, tallies
from noesis.synthesis.known_prompts import known_prompts
from noesis.synthesis.prompt_file import Prompt, read_prompts
from noesis.synthesis.prompt_templates import Shots, choose_shots, wording_digest
from noesis.synthesis.resumable_work import Result, WorkFolder, open_folder, process_rows
from noesis.tribunal.panel import make_panel
from noesis.tribunal.statistics import wilson


@dataclass(frozen=True)
class ExamplesRequest:
    """Options of `noesis constitution revise`.

    model, critic: SPECs
    judges: SPECs of a Tribunal that judges the revisions, if it is fit
    count: only this many prompts, the first ones
    """

    model: str
    critic: str
    prompts: Path
    out: Path
    settings: Settings = field(default_factory=Settings)
    judges: tuple[str, ...] = ()
    max_usd: float | None = None
    count: int | None = None


def make_examples(project: Project, request: ExamplesRequest) -> dict[str, Any]:
    """Make, filter and write examples; returns the report.

    Raises:
        UsageError, DataError: the prompts or a SPEC can't be used. CapError: the cap is reached; the same command with
            a higher one resumes.
    """
    constitution, section = load_constitution(project.constitution), load_config(project).training.tribunal
    prompts = read_prompts(request.prompts, constitution)[: request.count]
    spending = Spending(max_usd=request.max_usd)
    specs = [parse_spec(request.model, "--model", WRITER_KINDS), parse_spec(request.critic, "--critic", WRITER_KINDS)]
    specs += [parse_spec(text, kinds=("openai", "gguf")) for text in request.judges]
    clients = open_clients(specs, section, spending, slots=WRITER_SLOTS)
    shots: dict[str, Shots] = {
        language: _shots(project, constitution, language, request.settings)
        for language in sorted({prompt.language for prompt in prompts})
    }
    plan = {
        "command": "revise",
        "model": clients[0].identity,
        "critic": clients[1].identity,
        "prompts": sha256_json([p.model_dump(mode="json") for p in prompts]),
        "constitution": constitution.requests_digest(),
        "wording": wording_digest(),
        "shots": {language: list(s.ids) for language, s in shots.items()},
        "settings": request.settings.to_json(),
    }
    with open_folder(request.out, plan) as folder, open_cache(folder.replies) as cache:
        spending.resume(cache)
        work = _Work(project, request, constitution, section, prompts, clients, shots, spending, folder, cache)
        return run_async(work.run())


@dataclass(frozen=True)
class _Work:
    """Everything that the work needs; `clients` are the model, the critic and the judges."""

    project: Project
    request: ExamplesRequest
    constitution: Constitution
    section: TribunalSection
    prompts: list[Prompt]
    clients: list[ModelClient]
    shots: dict[str, Shots]
    spending: Spending
    folder: WorkFolder
    cache: ReplyCache
    tokens: Counter[str] = field(default_factory=Counter)

    async def run(self) -> dict[str, Any]:
        """Make the examples, filter them, have them judged, and write files and report."""
        started = time.monotonic()
        tribunal, scratch = self.project.data / "tribunal", self.folder.path / ".candidates.jsonl"
        try:
            outcomes = await self._make_all(started)
            rows = [outcome.example for outcome in outcomes if outcome.example]
            kept, dropped = filter_examples(rows, self.constitution, tribunal, scratch)
            court = N_("no judge is set: the offline screen and the data gate decided alone")
            if self.clients[2:]:
                court, kept, rejected = await self._judged(kept)
                dropped |= rejected
        finally:
            await close_clients(self.clients)
        left_out = _left_out(outcomes, dropped)
        write_jsonl(self.folder.path / "examples.jsonl", [example.to_json() for example in kept])
        write_jsonl(self.folder.path / "left_out.jsonl", left_out)
        model, critic, *_judges = self.clients
        report = {
            "prompts": len(self.prompts),
            "made": len(rows),
            "kept": len(kept),
            "model": model.name,
            "critic": critic.name,
            "court": court,
            "by_principle": acceptance(outcomes, {key_of(example) for example in kept}),
            "left_out": tallies([_short(row["reason"]) for row in left_out]),
            "failures": tallies([f"{step}: {problem}" for o in outcomes for step, problem in o.failures]),
            "settings": {
                name: self.folder.plan[name] for name in ("settings", "shots", "constitution", "wording", "prompts")
            },
            "tokens_made": self.tokens["made"],
            "seconds": round(time.monotonic() - started, 1),
            "spending": self.spending.to_json(),
        }
        write_json(self.folder.path / "report.json", report)
        return report

    async def _make_all(self, started: float) -> list[ExampleOutcome]:
        model, critic, *_judges = self.clients
        known = known_prompts(jsonl_files(self.project.data / "tribunal", below=True))

        def count(tokens: int) -> None:
            self.tokens["made"] += tokens

        maker = ExampleMaker(self.constitution, model, critic, self.shots, self.cache, self.request.settings, count)

        async def make(i: int) -> Result:
            prompt = self.prompts[i]
            if place := known.find_similar(prompt.prompt):  # before anything is spent on it
                reason = _("asks what the Tribunal asks ({place})", place=place)
                return ExampleOutcome(prompt.id, prompt.language, reason=reason).to_json()
            return (await maker.make(prompt)).to_json()

        def rate() -> str:
            per_second = self.tokens["made"] / max(time.monotonic() - started, 1e-9)
            return f"{per_second:.0f} tokens/s, {self.spending.usd:.4f} USD"

        results = await process_rows(
            self.folder,
            [prompt.key for prompt in self.prompts],
            make,
            window=2 * max(model.concurrency, critic.concurrency),
            what="revise",
            unit="examples",
            again=lambda result: UNANSWERED in str(result["reason"]),
            note=rate,
        )
        return [ExampleOutcome.from_json(result) for result in results]

    async def _judged(self, examples: list[Example]) -> tuple[str, list[Example], Dropped]:
        """(what the report says of the Tribunal, examples kept, examples dropped); an unfit one judges nothing."""
        panel = make_panel(self.project, self.clients[2:], self.cache)
        if reason := panel.unfit_reason:
            say(_("  {reason}; the offline screen and the data gate decide alone", reason=retold(reason)))
            return N_("did not judge: {reason}", reason=reason), examples, {}
        kept, dropped = await judge_examples(examples, panel, self.section)
        return f"judged: {', '.join(panel.names)}", kept, dropped


def acceptance(outcomes: Sequence[ExampleOutcome], kept: set[str]) -> dict[str, dict[str, Any]]:
    """For each principle: chains that drew it, those whose example was kept, the rate and its Wilson interval.

    Args:
        kept: keys of the examples kept.
    """
    drawn, accepted = Counter[str](), Counter[str]()
    for outcome in outcomes:
        names = set(outcome.principles)
        drawn.update(names)
        if outcome.example and _key(outcome.example) in kept:
            accepted.update(names)
    found = {}
    for name in sorted(drawn):
        low, high = wilson(accepted[name], drawn[name])
        found[name] = {
            "drawn": drawn[name],
            "kept": accepted[name],
            "rate": round(accepted[name] / drawn[name], 4),
            "interval_95": [round(low, 4), round(high, 4)],
        }
    return found


def _left_out(outcomes: Sequence[ExampleOutcome], dropped: Dropped) -> list[dict[str, Any]]:
    rows = []
    for outcome in outcomes:
        reason = outcome.reason or (dropped.get(_key(outcome.example)) if outcome.example else None)
        if reason:
            rows.append(
                {
                    "id": outcome.id,
                    "language": outcome.language,
                    "reason": reason,
                    "failures": [list(failure) for failure in outcome.failures],
                    "principles": outcome.principles,
                }
            )
    return rows


def _key(row: dict[str, Any]) -> str:
    """As `key_of`, of an example that has not been checked."""
    return f"{row['language']}/{row['id']}"


def _short(reason: str) -> str:
    """A reason without the particulars of one prompt."""
    return reason.split(" (", 1)[0].split(", ", 1)[0]


def _shots(project: Project, constitution: Constitution, language: Language, settings: Settings) -> Shots:
    """Hand-written examples to show; never one that is held out."""
    file = project.exports / "eval.jsonl"
    held_out = {row["id"] for row in read_objects(file)} if file.is_file() else set()
    examples = read_hand_written(project, language) if settings.shots else ()
    shown = [example for example in examples if example.id not in held_out]
    return choose_shots(shown, constitution, language, settings.shots, settings.seed)
