"""`noesis constitution diff OLD NEW`: what depends on a changed principle: examples, judges' items, prompts.

With --apply the dependent examples get a new critique by the changed principle, as generated examples in a file of
their own; the hand-written ones are never touched.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from noesis.constitution.diff import Change
from noesis.constitution.document import Constitution
from noesis.core.config import load_config
from noesis.core.errors import UsageError
from noesis.core.event_loop import run_async
from noesis.core.files import sha256_json, write_jsonl
from noesis.core.i18n import _
from noesis.core.jsonl import jsonl_files, read_objects
from noesis.core.language import ALL
from noesis.core.project import Project
from noesis.dataset.load import read_hand_written
from noesis.dataset.schema import Example
from noesis.dataset.source_files import is_hand_written
from noesis.llm.clients.open import WRITER_SLOTS, open_client
from noesis.llm.clients.reply_cache import open_cache
from noesis.llm.clients.spec import WRITER_KINDS, parse_spec
from noesis.llm.clients.spending import Spending
from noesis.synthesis.coverage import covers
from noesis.synthesis.critique_revision import ExampleMaker, ExampleOutcome, Settings
from noesis.synthesis.prompt_file import Prompt
from noesis.synthesis.prompt_templates import Shots, wording_digest
from noesis.synthesis.resumable_work import Result, RowResult, open_folder, process_rows
from noesis.tribunal.rubric import load_rubrics
from noesis.tribunal.suite import read_suite


@dataclass
class Dependents:
    """Ids of what depends on one changed principle.

    examples: hand-written ones, by language
    items: judges' items that test the principle
    prompts: of the Tribunal, to whose answers those items are applied
    """

    principle: str
    examples: dict[str, list[str]] = field(default_factory=dict)
    generated: list[str] = field(default_factory=list)
    items: list[str] = field(default_factory=list)
    prompts: list[str] = field(default_factory=list)


def dependents(project: Project, old: Constitution, new: Constitution, changes: list[Change]) -> list[Dependents]:
    """What depends on each principle that differs; judges' items and prompts as the project has them now."""
    names = list(dict.fromkeys(c.id for c in changes if c.what == "principle"))
    found = {name: Dependents(name) for name in names}
    tribunal = project.data / "tribunal"
    rubrics = load_rubrics(tribunal / "judges") if (tribunal / "judges").is_dir() else None
    suite = read_suite(tribunal, "dev") if jsonl_files(tribunal / "prompts") else []
    for cover in [*covers(new, rubrics, suite), *covers(old, rubrics, suite)]:
        if cover.principle in found:
            found[cover.principle].items, found[cover.principle].prompts = cover.items, cover.prompts
    for example in _hand_written(project):
        for name in set(example.principles) & found.keys():
            found[name].examples.setdefault(example.language, []).append(example.id)
    for file in jsonl_files(project.data / "generated", below=True):
        if "shards" not in file.parts:
            for row in read_objects(file):  # generated examples, preference pairs and prompts
                for name in {*(row.get("principles") or ()), row.get("principle")} & found.keys():
                    found[name].generated.append(str(row.get("id")))
    return list(found.values())


def _hand_written(project: Project) -> Iterator[Example]:
    yield from read_hand_written(project, ALL)


@dataclass(frozen=True)
class RenewalRequest:
    """Options of `noesis constitution diff --apply`."""

    critic: str
    out: Path
    settings: Settings = field(default_factory=lambda: Settings(shots=0))
    max_usd: float | None = None


@dataclass(frozen=True)
class RenewalReport:
    """How many new critiques were written, of how many that were due."""

    made: int
    due: int
    principles: tuple[str, ...]
    file: Path
    spending: dict[str, Any]

    def to_json(self) -> dict[str, Any]:
        return {
            "made": self.made,
            "of": self.due,
            "principles": list(self.principles),
            "file": str(self.file),
            "spending": self.spending,
        }


def renew(project: Project, new: Constitution, changes: list[Change], request: RenewalRequest) -> RenewalReport:
    """A new critique of each hand-written example by each principle whose text or critique request changed.

    They are written to `critiques.jsonl`, what could not be made to `left_out.jsonl`.

    Raises:
        UsageError: no principle changed in a way that a critique depends on, or the folder is that of the hand-written
            examples.
    """
    if is_hand_written(request.out):
        raise UsageError(_("--out {out} is among the hand-written examples: name another folder", out=request.out))
    unaffected = ("removed", "added", "revision request", "value")
    changed = tuple(dict.fromkeys(c.id for c in changes if c.what == "principle" and c.kind not in unaffected))
    work = [
        (example, name)
        for example in _hand_written(project)
        for name in example.principles
        if name in changed and example.category != "tribunal"
    ]
    if not work:
        raise UsageError(
            _("nothing to renew: no changed principle whose text or critique request a hand-written example depends on")
        )
    spending = Spending(max_usd=request.max_usd)
    spec, section = parse_spec(request.critic, "--critic", WRITER_KINDS), load_config(project).training.tribunal
    critic = open_client(spec, section, spending, slots=WRITER_SLOTS)
    plan = {
        "command": "diff",
        "critic": critic.identity,
        "constitution": new.requests_digest(),
        "wording": wording_digest(),
        "settings": request.settings.to_json(),
        "rows": sha256_json([[example.id, example.language, name] for example, name in work]),
    }
    with open_folder(request.out, plan) as folder, open_cache(folder.replies) as cache:
        spending.resume(cache)
        maker = ExampleMaker(new, critic, critic, {code: Shots() for code in new.languages}, cache, request.settings)

        async def make(i: int) -> Result:
            example, name = work[i]
            prompt = Prompt.of_example(example)
            outcome = ExampleOutcome(prompt.id, prompt.language)
            critique = await maker.criticise(prompt, outcome, new.principle(name), example.response_initial)
            row = None if critique is None else _renewed(example, name, critique, maker, prompt, outcome)
            return RowResult(example.id, row, outcome.reason).to_json()

        async def make_all() -> list[Result]:
            try:
                keys = [f"{example.language}/{example.id}/{name}" for example, name in work]
                window = 2 * critic.concurrency
                return await process_rows(folder, keys, make, window=window, what="critiques", unit="critiques")
            finally:
                await critic.close()

        results = [RowResult.from_json(raw) for raw in run_async(make_all())]
        made = [result.row for result in results if result.row]
        left_out = [{"id": result.id, "reason": result.reason} for result in results if not result.row]
        write_jsonl(request.out / "critiques.jsonl", made)
        write_jsonl(request.out / "left_out.jsonl", left_out)
    return RenewalReport(len(made), len(work), changed, request.out / "critiques.jsonl", spending.to_json())


def _renewed(
    example: Example, name: str, critique: str, maker: ExampleMaker, prompt: Prompt, outcome: ExampleOutcome
) -> dict[str, Any]:
    """The example with its new critique, as a generated example."""
    return example.to_json() | {
        "id": f"{example.id}~{name}",
        "critique": critique,
        "principles": [name],
        "generated": True,
        "lineage": maker.lineage(prompt, outcome, "critique").to_json(),
    }
