"""`noesis constitution prompts`: prompts from combinations of topic, situation, asker and difficulty.

A model phrases each combination as the message that such a person would send. Without a model the combinations are
written out as instructions for people to write from. A prompt that asks what anything existing asks (examples, exports,
generated data, the Tribunal's questions and its judges' benchmark), or what an earlier new one asks, is left out.

    DIR/prompts.jsonl (or instructions.jsonl)   DIR/left_out.jsonl   DIR/report.json
    and the files of resumable work (resumable_work.py)
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from noesis.constitution.document import Constitution, load_constitution
from noesis.core.config import load_config
from noesis.core.event_loop import run_async
from noesis.core.files import sha256_json, write_json, write_jsonl
from noesis.core.jsonl import jsonl_files
from noesis.core.project import Project
from noesis.dataset.schema import MIN_PROMPT
from noesis.llm.clients.cached_client import CachedClient, UnusableReplyError, request_seed
from noesis.llm.clients.open import WRITER_SLOTS, open_client
from noesis.llm.clients.protocol import EndpointDownError, ModelClient, ModelReply, ModelRequest, NoReplyError
from noesis.llm.clients.reply_cache import ReplyCache, open_cache
from noesis.llm.clients.spec import WRITER_KINDS, parse_spec
from noesis.llm.clients.spending import Spending
from noesis.synthesis.filters import tallies
from noesis.synthesis.known_prompts import known_prompts
from noesis.synthesis.prompt_combinations import INSTRUCTION, Combination, PromptLists, deal, read_lists
from noesis.synthesis.reply_checks import EMOJI, Work, clean_reply, reply_problem
from noesis.synthesis.resumable_work import INSTRUCTIONS, RowResult, open_folder, process_rows, require_work_folder

LONGEST, TOKENS = 1200, 240  # characters of a prompt, and how many tokens may be written


@dataclass(frozen=True)
class PromptsRequest:
    """Options of `noesis constitution prompts`. model: SPEC; None: instructions are written."""

    out: Path
    languages: tuple[str, ...] = ("pt", "en")
    count: int = 100
    model: str | None = None
    seed: int = 0
    temperature: float = 0.8
    attempts: int = 3
    max_usd: float | None = None


def make_prompts(project: Project, request: PromptsRequest) -> dict[str, Any]:
    """Sample combinations, have them phrased, leave out what exists, and write; returns the report.

    Raises:
        UsageError, ConfigError: the lists or the SPEC can't be used. CapError: the cap is reached; the same command
            with a higher one resumes.
    """
    lists = read_lists(project.prompt_lists)
    combinations = deal(lists, request.languages, request.count, request.seed)
    if request.model is None:
        return _write_instructions(request.out, lists, combinations)
    spending = Spending(max_usd=request.max_usd)
    section = load_config(project).training.tribunal
    spec = parse_spec(request.model, "--model", WRITER_KINDS)
    client = open_client(spec, section, spending, slots=WRITER_SLOTS)
    plan = {
        "command": "prompts",
        "model": client.identity,
        "lists": sha256_json(lists.model_dump(mode="json")),
        "languages": list(request.languages),
        "count": request.count,
        "seed": request.seed,
        "temperature": request.temperature,
        "attempts": request.attempts,
        "wording": sha256_json(INSTRUCTION),
    }
    with open_folder(request.out, plan) as folder, open_cache(folder.replies) as cache:
        spending.resume(cache)
        writer = _PromptWriter(load_constitution(project.constitution), lists, client, cache, request)

        async def phrase(i: int) -> dict[str, Any]:
            return (await writer.phrase(combinations[i])).to_json()

        async def phrase_all() -> list[dict[str, Any]]:
            try:
                keys, window = [c.id for c in combinations], 2 * client.concurrency
                return await process_rows(
                    folder, keys, phrase, window=window, what="prompts", unit="prompts", again=RowResult.is_unanswered
                )
            finally:
                await client.close()

        results = [RowResult.from_json(raw) for raw in run_async(phrase_all())]
        kept, left_out = _new_prompts(project, request.out, results)
        write_jsonl(request.out / "prompts.jsonl", kept)
        write_jsonl(request.out / "left_out.jsonl", left_out)
        report = {
            "asked": len(combinations),
            "kept": len(kept),
            "file": str(request.out / "prompts.jsonl"),
            "of": lists.combinations,
            "model": client.name,
            "left_out": tallies([row["reason"].split(" (", 1)[0] for row in left_out]),
            "by_category": dict(sorted(Counter(row["category"] for row in kept).items())),
            "failures": tallies([problem for result in results for problem in result.failures or ()]),
            "spending": spending.to_json(),
        }
        write_json(request.out / "report.json", report)
    return report


def _write_instructions(out: Path, lists: PromptLists, combinations: list[Combination]) -> dict[str, Any]:
    """Write the combinations as instructions for people; returns the report."""
    rows = [c.to_json() | {"instruction": c.instruction(lists), "lineage": c.lineage()} for c in combinations]
    file = out / INSTRUCTIONS
    require_work_folder(out)
    write_jsonl(file, rows)
    return {
        "asked": len(combinations),
        "kept": len(rows),
        "file": str(file),
        "left_out": {},
        "of": lists.combinations,
    }


@dataclass
class _PromptWriter:
    """Has a model phrase combinations."""

    constitution: Constitution
    lists: PromptLists
    client: ModelClient
    cache: ReplyCache
    request: PromptsRequest

    async def phrase(self, combination: Combination) -> RowResult:
        """The prompt that the model makes of a combination, or the reason why none of its replies can be used."""
        instruction = combination.instruction(self.lists)
        failures: list[str] = []

        def request(attempt: int, problem: str) -> ModelRequest:
            seed = request_seed(self.request.seed, combination.id, attempt)
            return ModelRequest((("user", instruction),), {}, TOKENS, seed, attempt, self.request.temperature)

        def read(reply: ModelReply, attempt: int) -> dict[str, Any]:
            text = clean_reply(reply.text)
            work = Work("critique", instruction, combination.language)
            if problem := reply_problem(reply, text, work, self.constitution) or _prompt_problem(text):
                failures.append(problem)
                raise UnusableReplyError(problem)
            lineage = combination.lineage() | {"model": self.client.name, "seed": request(attempt, "").seed}
            return combination.to_json() | {"prompt": text, "generated": True, "lineage": lineage}

        row, reason = None, None
        try:
            client = CachedClient(self.client, self.cache)
            row = await client.ask_until_usable(request, read, attempts=self.request.attempts)
        except EndpointDownError:
            raise
        except NoReplyError as error:
            reason = f"unanswered ({error})"
        except UnusableReplyError as error:
            reason = f"{error}, {self.request.attempts} times"
        return RowResult(combination.id, row, reason, tuple(failures))


def _prompt_problem(text: str) -> str | None:
    if len(text) < MIN_PROMPT:
        return "empty"
    if len(text) > LONGEST:
        return "too long"
    return "emojis" if EMOJI.search(text) else None


def _new_prompts(
    project: Project, out: Path, results: list[RowResult]
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """(prompts that ask what nothing before them asks, what is left out and why)"""
    files = [
        file
        for file in jsonl_files(project.data, below=True)
        if not file.resolve().is_relative_to(out.resolve()) and "shards" not in file.parts
    ]
    known = known_prompts(files)
    kept, left_out = [], []
    for result in results:
        reason = result.reason
        if result.row and (place := known.find_similar(result.row["prompt"])):
            reason = f"asks what another asks ({place})"
        if reason or result.row is None:
            left_out.append({"id": result.id, "reason": reason, "failures": list(result.failures or ())})
        else:
            known.add([result.row["prompt"]], [result.row["id"]])
            kept.append(result.row)
    return kept, left_out
