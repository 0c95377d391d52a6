"""`noesis constitution prefer --critic SPEC`: soft preference labels (RLAIF, arXiv 2212.08073 section 4).

Which of two answers meets a random principle better, as the normalised probability of the letters A and B, averaged
over both orders, so that a preference for the first place cancels out. With --reasoning the critic thinks first; its
certainty is then clamped to 0.4..0.6, since a written-out thought makes the letter all but certain, however good it is.

    DIR/pairs.jsonl     {"id", "language", "prompt", "turns"?, "chosen", "rejected", "p_chosen" (0.5..1), "principle",
                         "generated", "lineage"}
    DIR/left_out.jsonl  pairs without a label, and why
    DIR/report.json
"""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

from pydantic import model_validator

from noesis.constitution.document import Constitution, load_constitution
from noesis.core.config import load_config
from noesis.core.errors import UsageError
from noesis.core.event_loop import run_async
from noesis.core.files import sha256_json, write_json, write_jsonl
from noesis.core.i18n import _
from noesis.core.project import Project
from noesis.llm.clients.open import WRITER_SLOTS, close_clients, open_clients
from noesis.llm.clients.reply_cache import open_cache
from noesis.llm.clients.spec import WRITER_KINDS, parse_spec
from noesis.llm.clients.spending import Spending
from noesis.synthesis.filters import tallies
from noesis.synthesis.preference_labels import Answerer, AnswerPair, Labeller, NoLabel, PreferencesRequest
from noesis.synthesis.prompt_file import Prompt, read_prompt_rows, read_prompts
from noesis.synthesis.prompt_templates import wording_digest
from noesis.synthesis.resumable_work import Result, RowResult, open_folder, process_rows
from noesis.tribunal.statistics import bootstrap


def make_preferences(project: Project, request: PreferencesRequest) -> dict[str, Any]:
    """Label pairs and write them; returns the report.

    Raises:
        UsageError, DataError: neither pairs nor prompts that can be used. ModelError: the critic gives no
            log-probabilities. CapError: the cap is reached; the same command with a higher one resumes.
    """
    constitution = load_constitution(project.constitution)
    without_model = request.prompts is not None and request.model is None
    if (request.pairs is None) == (request.prompts is None) or without_model:
        raise UsageError(
            _("name either --pairs FILE, or --prompts FILE with --model SPEC, which then answers each prompt twice")
        )
    pairs = read_answer_pairs(request.pairs, constitution)[: request.count] if request.pairs else []
    prompts = [pair.prompt for pair in pairs] or read_prompts(request.prompts or Path(), constitution)[: request.count]
    spending = Spending(max_usd=request.max_usd)
    specs = [parse_spec(request.critic, "--critic", WRITER_KINDS)]
    specs += [parse_spec(request.model, "--model", WRITER_KINDS)] if request.model else []
    clients = open_clients(specs, load_config(project).training.tribunal, spending, slots=WRITER_SLOTS)
    critic, writer = clients[0], clients[-1]
    plan = {
        "command": "prefer",
        "critic": critic.identity,
        "model": writer.identity if request.model else None,
        "reasoning": request.reasoning,
        "seed": request.seed,
        "temperature": request.temperature,
        "answer_tokens": request.answer_tokens,
        "attempts": request.attempts,
        "rows": sha256_json([[p.model_dump(mode="json") for p in prompts], [[p.a, p.b] for p in pairs]]),
        "constitution": constitution.requests_digest(),
        "wording": wording_digest(),
    }
    with open_folder(request.out, plan) as folder, open_cache(folder.replies) as cache:
        spending.resume(cache)
        labeller = Labeller(constitution, critic, cache, request)
        answerer = Answerer(constitution, writer, cache, request)

        async def make(i: int) -> Result:
            try:
                pair = pairs[i] if pairs else await answerer.pair(prompts[i])
                result = RowResult(prompts[i].id, (await labeller.label(pair)).to_json())
            except NoLabel as reason:
                result = RowResult(prompts[i].id, reason=str(reason))
            return result.to_json()

        async def make_all() -> list[Result]:
            try:
                window = 2 * max(client.concurrency for client in clients)
                keys, again = [prompt.key for prompt in prompts], RowResult.is_unanswered
                return await process_rows(folder, keys, make, window=window, what="prefer", unit="pairs", again=again)
            finally:
                await close_clients(clients)

        results = [RowResult.from_json(raw) for raw in run_async(make_all())]
        rows = [result.row for result in results if result.row]
        left_out = [(result.id, result.reason) for result in results if result.reason]
        report = {
            "pairs": len(results),
            "labelled": len(rows),
            "critic": critic.name,
            "reasoning": request.reasoning,
            **label_statistics(rows),
            "left_out": tallies([reason.split(" (", 1)[0] for _, reason in left_out]),
            "spending": spending.to_json(),
        }
        write_jsonl(request.out / "pairs.jsonl", rows)
        write_jsonl(request.out / "left_out.jsonl", [{"id": name, "reason": reason} for name, reason in left_out])
        write_json(request.out / "report.json", report)
    return report


def label_statistics(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """How certain the labels are, how much the order of the answers matters, and how often the revision is preferred.

    Args:
        rows: of pairs.jsonl.
    """
    if not rows:
        return {}
    import numpy as np

    settings = [row["lineage"]["settings"] for row in rows]
    orders = [s["orders"] for s in settings]
    agree = sum((p >= 0.5) == (q >= 0.5) for p, q in orders)
    first = [(p + 1 - q) / 2 for p, q in orders]  # probability of whichever answer stands first
    low, high = bootstrap(np.asarray(first, np.float64))
    statistics: dict[str, Any] = {
        "mean_p_chosen": round(sum(row["p_chosen"] for row in rows) / len(rows), 4),
        "both_orders_agree": round(agree / len(rows), 4),
        "first_place": {
            "mean": round(sum(first) / len(first), 4),
            "interval_95": [round(low, 4), round(high, 4)] if len(first) > 1 else None,
        },
        "by_principle": dict(sorted(Counter(row["principle"] for row in rows).items())),
    }
    kinds = [s["chosen_is"] for s in settings if s["chosen_is"] in ("initial", "revised")]
    if kinds:
        statistics["revised_preferred"] = {"count": kinds.count("revised"), "of": len(kinds)}
    return statistics


class _PairRow(Prompt):
    """A prompt with two answers, as `a` and `b` or as the two answers of an example."""

    a: str | None = None
    b: str | None = None
    response_revised: str | None = None
    response_initial: str | None = None
    lineage: dict[str, Any] | None = None

    @model_validator(mode="after")
    def _two_answers(self) -> _PairRow:
        first, second = self.answers
        if not (first and second and first.strip() and second.strip() and first != second):
            raise ValueError(
                _("two different answers are needed, as a and b or as response_revised and response_initial")
            )
        return self

    @property
    def answers(self) -> tuple[str | None, str | None]:
        return (self.a, self.b) if self._named else (self.response_revised, self.response_initial)

    @property
    def _named(self) -> bool:
        return "a" in self.model_fields_set

    def pair(self) -> AnswerPair:
        first, second = self.answers
        kinds = ("a", "b") if self._named else ("revised", "initial")
        prompt = Prompt(**{name: getattr(self, name) for name in Prompt.model_fields})
        return AnswerPair(prompt, first or "", second or "", kinds, str((self.lineage or {}).get("model", "as given")))


def read_answer_pairs(file: Path, constitution: Constitution) -> list[AnswerPair]:
    """Pairs from a JSONL file: rows with `a` and `b`, or examples; their revision is then the first answer.

    Raises:
        UsageError: no such file. DataError: naming the line.
    """
    return [row.pair() for row in read_prompt_rows(file, constitution, _PairRow)]
