"""`noesis constitution diff OLD NEW`: what changed in the text, and what hangs on it: examples, generated rows, judges' items, prompts.

With --apply the dependent examples get a new critique by the changed principle, as generated records in a file of their own; the
hand-written ones are never touched.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from noesis.constitution.diff import Change
from noesis.constitution.document import Constitution
from noesis.core.config import load_config
from noesis.core.errors import UsageError
from noesis.core.event_loop import run_async
from noesis.core.files import sha256_json, write_jsonl
from noesis.core.project import Project
from noesis.dataset.jsonl import FileChunk, find_files, is_hand_written, lines
from noesis.llm.clients.open import WRITER_SLOTS, open_client
from noesis.llm.clients.reply_cache import open_cache
from noesis.llm.clients.spec import WRITER_KINDS, parse_spec
from noesis.llm.clients.spending import Spending
from noesis.synthesis.coverage import covers
from noesis.synthesis.critique_revision import ExampleMaker, ExampleOutcome, Settings
from noesis.synthesis.prompt_file import Prompt
from noesis.synthesis.prompt_templates import Shots, wording_digest
from noesis.synthesis.resumable_work import Result, open_folder, process_rows
from noesis.tribunal.rubric import load_rubrics
from noesis.tribunal.suite import read_suite


@dataclass
class Dependents:
    """What hangs on one changed principle (ids), by where it is."""

    principle: str
    examples: dict[str, list[str]] = field(default_factory=dict)  # by language
    generated: list[str] = field(default_factory=list)
    items: list[str] = field(default_factory=list)
    prompts: list[str] = field(default_factory=list)


def dependents(project: Project, old: Constitution, new: Constitution, changes: list[Change]) -> list[Dependents]:
    """What hangs on each principle that differs; judges' items and prompts as the project has them now."""
    names = list(dict.fromkeys(c.id for c in changes if c.what == "principle"))
    found = {name: Dependents(name) for name in names}
    tribunal = project.data / "tribunal"
    bench = load_rubrics(tribunal / "judges") if (tribunal / "judges").is_dir() else None
    suite = read_suite(tribunal, "dev") if any((tribunal / "prompts").glob("*.jsonl")) else []
    for cover in [*covers(new, bench, suite), *covers(old, bench, suite)]:
        if cover.principle in found:
            found[cover.principle].items, found[cover.principle].prompts = cover.items, cover.prompts
    for language in ("pt", "en"):
        for row in _examples(project, language):
            for name in set(row.get("principles") or ()) & found.keys():
                found[name].examples.setdefault(language, []).append(row["id"])
    for file in sorted((project.data / "generated").rglob("*.jsonl")):
        if "shards" not in file.parts:
            for row in _rows(file):
                for name in {*(row.get("principles") or ()), row.get("principle")} & found.keys():
                    found[name].generated.append(str(row.get("id")))
    return list(found.values())


def _examples(project: Project, language: str) -> list[dict[str, Any]]:
    folder = project.sources("en" if language == "en" else "pt")[0]
    return [row for file in find_files([folder]) for row in _rows(file)] if any(folder.glob("*.jsonl")) else []


def _rows(file: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for _, _, line in lines(FileChunk(file, 0, file.stat().st_size))]


@dataclass(frozen=True)
class RenewalRequest:
    """New critiques: by whom, into which folder."""

    critic: str
    out: Path
    settings: Settings = field(default_factory=lambda: Settings(shots=0))
    max_usd: float | None = None


def renew(project: Project, new: Constitution, changes: list[Change], ask: RenewalRequest) -> dict[str, Any]:
    """A new critique of each hand-written example by each principle whose text or critique request changed; records in `critiques.jsonl`.

    Raises:
        UsageError: no principle changed in a way that a critique depends on, or the folder is that of the hand-written examples.
    """
    if is_hand_written(ask.out):
        raise UsageError(f"--out {ask.out} lies among the hand-written examples: name another folder")
    touched = list(
        dict.fromkeys(
            c.id
            for c in changes
            if c.what == "principle" and c.kind not in ("removed", "added", "revision request", "value")
        )
    )
    work = [
        (row, name) for language in ("pt", "en") for row in _examples(project, language) for name in row.get("principles") or () if name in touched
        if row["category"] != "tribunal"
    ]  # fmt: skip
    if not work:
        raise UsageError(
            "nothing to make anew: no changed principle whose text or critique request a hand-written example depends on"
        )
    spending = Spending(max_usd=ask.max_usd)
    spec, section = parse_spec(ask.critic, "--critic", WRITER_KINDS), load_config(project).training.tribunal
    critic = open_client(spec, section, spending, slots=WRITER_SLOTS)
    plan: dict[str, Any] = {
        "command": "diff",
        "critic": critic.identity,
        "constitution": new.requests_digest(),
        "wording": wording_digest(),
    }
    plan |= {
        "settings": ask.settings.as_json(),
        "rows": sha256_json([[row["id"], row.get("language", "pt"), name] for row, name in work]),
    }
    with open_folder(ask.out, plan) as folder, open_cache(folder.replies) as cache:
        maker = ExampleMaker(new, critic, critic, {"pt": Shots(), "en": Shots()}, cache, ask.settings)

        async def make(i: int) -> Result:
            row, name = work[i]
            prompt = Prompt.model_validate({k: v for k, v in row.items() if k in Prompt.model_fields})
            outcome = ExampleOutcome(prompt)
            critique = await maker.criticise(outcome, new.principle(name), row["response_initial"])
            record = None if critique is None else _renewed(row, name, critique, maker, outcome)
            return {"id": row["id"], "row": record, "reason": outcome.reason}

        async def go() -> list[Result]:
            try:
                keys, window = (
                    [f"{row.get('language', 'pt')}/{row['id']}/{name}" for row, name in work],
                    2 * critic.concurrency,
                )
                return await process_rows(folder, keys, make, window=window, what="critiques", unit="critiques")
            finally:
                await critic.close()

        results = run_async(go())
        made = [r["row"] for r in results if r["row"]]
        write_jsonl(ask.out / "critiques.jsonl", made)
        write_jsonl(
            ask.out / "left_out.jsonl", [{"id": r["id"], "reason": r["reason"]} for r in results if not r["row"]]
        )
    return {
        "made": len(made),
        "of": len(work),
        "principles": touched,
        "file": str(ask.out / "critiques.jsonl"),
        "spending": spending.to_json(),
    }


def _renewed(
    row: dict[str, Any], name: str, critique: str, maker: ExampleMaker, outcome: ExampleOutcome
) -> dict[str, Any]:
    """The example with its new critique, as a generated record."""
    lineage = maker.lineage(outcome, "critique") | {"source": row["id"]}
    return row | {
        "id": f"{row['id']}~{name}",
        "critique": critique,
        "principles": [name],
        "generated": True,
        "lineage": lineage,
    }
