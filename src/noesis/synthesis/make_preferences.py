"""`noesis constitution prefer --critic SPEC`: soft preference labels, one drawn principle a comparison (RLAIF, arXiv 2212.08073 section 4).

Which of two answers meets the principle better, as the normalised probability of the letters A and B, asked in both orders and averaged,
so that a liking for the first place cancels out. With --reasoning the critic thinks first; its certainty is then clamped to 0.4..0.6,
since a written-out thought makes the letter all but certain whatever it is worth.

    DIR/pairs.jsonl     {"id", "language", "prompt", "turns"?, "chosen", "rejected", "p_chosen" (0.5..1), "principle", "generated", "lineage"}
    DIR/left_out.jsonl  pairs without a label, and why      DIR/report.json
"""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

from noesis.constitution.document import Constitution, load_constitution
from noesis.core.config import load_config
from noesis.core.errors import DataError, UsageError
from noesis.core.event_loop import run_async
from noesis.core.files import sha256_json, write_json, write_jsonl
from noesis.core.project import Project
from noesis.dataset.jsonl import FileChunk, lines
from noesis.llm.clients.open import WRITER_SLOTS, close_clients, open_clients
from noesis.llm.clients.reply_cache import open_cache
from noesis.llm.clients.spec import WRITER_KINDS, parse_spec
from noesis.llm.clients.spending import Spending
from noesis.synthesis.filters import tallies
from noesis.synthesis.preference_labels import Answerer, AnswerPair, Labeller, NoLabel, PreferencesRequest
from noesis.synthesis.prompt_file import read_prompts
from noesis.synthesis.prompt_templates import wording_digest
from noesis.synthesis.resumable_work import Result, open_folder, process_rows
from noesis.tribunal.statistics import bootstrap


def prefer(project: Project, ask: PreferencesRequest) -> dict[str, Any]:
    """Label pairs and write them; returns the report.

    Raises:
        UsageError, DataError: neither pairs nor prompts that can be used. ModelError: the critic gives no log-probabilities.
    """
    constitution, section = load_constitution(project.constitution), load_config(project).training.tribunal
    if (ask.pairs is None) == (ask.prompts is None) or (ask.prompts is not None and ask.model is None):
        raise UsageError(
            "name either --pairs FILE, or --prompts FILE with --model SPEC, which then answers each prompt twice"
        )
    given = read_pairs(ask.pairs, constitution) if ask.pairs else []
    prompts = [p.prompt for p in given] or read_prompts(ask.prompts or Path(), constitution)
    prompts, given = prompts[: ask.count], given[: ask.count]
    spending = Spending(max_usd=ask.max_usd)
    specs = [parse_spec(ask.critic, "--critic", WRITER_KINDS)]
    specs += [parse_spec(ask.model, "--model", WRITER_KINDS)] if ask.model else []
    voices = open_clients(specs, section, spending, slots=WRITER_SLOTS)
    plan = {"command": "prefer", "critic": voices[0].identity, "model": voices[1].identity if ask.model else None}
    plan |= {name: getattr(ask, name) for name in ("reasoning", "seed", "temperature", "answer_tokens", "attempts")}
    plan |= {"rows": sha256_json([[p.model_dump(mode="json") for p in prompts], [[p.a, p.b] for p in given]])}
    plan |= {"constitution": constitution.requests_digest(), "wording": wording_digest()}
    with open_folder(ask.out, plan) as folder, open_cache(folder.replies) as cache:
        labeller = Labeller(constitution, voices[0], cache, ask)
        answerer = Answerer(constitution, voices[-1], cache, ask)

        async def make(i: int) -> Result:
            try:
                pair = given[i] if given else await answerer.pair(prompts[i])
                return {"row": await labeller.label(pair), "id": prompts[i].id, "reason": None}
            except NoLabel as why:
                return {"row": None, "id": prompts[i].id, "reason": str(why)}

        async def work() -> list[Result]:
            try:
                keys, window = [f"{p.language}/{p.id}" for p in prompts], 2 * max(v.concurrency for v in voices)
                return await process_rows(
                    folder, keys, make, window=window, what="prefer", unit="pairs", again=_unanswered
                )
            finally:
                await close_clients(voices)

        results = run_async(work())
        rows = [r["row"] for r in results if r["row"]]
        left_out = [{"id": r["id"], "reason": r["reason"]} for r in results if r["reason"]]
        report = {
            "pairs": len(results),
            "labelled": len(rows),
            "critic": voices[0].name,
            "reasoning": ask.reasoning,
            **figures(rows),
        }
        report |= {
            "left_out": tallies([r["reason"].split(" (", 1)[0] for r in left_out]),
            "spending": spending.to_json(),
        }
        write_jsonl(ask.out / "pairs.jsonl", rows)
        write_jsonl(ask.out / "left_out.jsonl", left_out)
        write_json(ask.out / "report.json", report)
    return report


def _unanswered(result: Result) -> bool:
    return str(result["reason"]).startswith("unanswered")


def figures(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """How certain the labels are, how much the order of the answers matters, and (where a is the revision) how often it is preferred."""
    if not rows:
        return {}
    orders = [row["lineage"]["settings"]["orders"] for row in rows]
    agree = sum((p >= 0.5) == (q >= 0.5) for p, q in orders)
    first = [(p + 1 - q) / 2 for p, q in orders]  # probability of whatever stood in the first place
    low, high = bootstrap(_array(first))
    found: dict[str, Any] = {
        "mean_p_chosen": round(sum(row["p_chosen"] for row in rows) / len(rows), 4),
        "both_orders_agree": round(agree / len(rows), 4),
        "first_place": {
            "mean": round(sum(first) / len(first), 4),
            "interval_95": [round(low, 4), round(high, 4)] if len(first) > 1 else None,
        },
        "by_principle": dict(sorted(Counter(row["principle"] for row in rows).items())),
    }
    kinds = [
        row["lineage"]["settings"]["chosen_is"]
        for row in rows
        if row["lineage"]["settings"]["chosen_is"] in ("initial", "revised")
    ]
    if kinds:
        found["revised_preferred"] = {"count": kinds.count("revised"), "of": len(kinds)}
    return found


def _array(values: list[float]) -> Any:
    import numpy as np

    return np.asarray(values, np.float64)


def read_pairs(file: Path, constitution: Constitution) -> list[AnswerPair]:
    """Pairs from a JSONL file: rows with `a` and `b`, or records (`a` is then the revision, `b` the initial answer).

    Raises:
        UsageError: no such file. DataError: naming the line.
    """
    prompts = read_prompts(file, constitution)
    found = []
    rows = ((number, json.loads(line)) for number, _, line in lines(FileChunk(file, 0, file.stat().st_size)))
    for prompt, (number, row) in zip(prompts, rows, strict=True):
        names = ("a", "b") if "a" in row else ("response_revised", "response_initial")
        a, b = (row.get(name) for name in names)
        if not (isinstance(a, str) and isinstance(b, str) and a.strip() and b.strip() and a != b):
            raise DataError(
                f"{file}:{number + 1}: two different answers are needed, as a and b or as response_revised and response_initial"
            )
        kinds = ["a", "b"] if names[0] == "a" else ["revised", "initial"]
        found.append(
            AnswerPair(
                prompt,
                a,
                b,
                {
                    "kinds": kinds,
                    "source": prompt.id,
                    "model": str((row.get("lineage") or {}).get("model", "as given")),
                },
            )
        )
    return found
