"""The trial: base and tuned answer the same prompts, the court hears the answers, `results.py` makes figures of it.

`noesis judge RUN --judge SPEC`. Models are asked through a `generate` that the caller passes, many conversations at once; a dialogue of
several turns goes on round by round, so that each round is one batch. What was answered and judged is kept, and a stopped trial goes on.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from noesis.constitution.dialogue import hide_analysis, opening_messages
from noesis.constitution.document import Constitution
from noesis.core.config import TribunalSection
from noesis.core.console import Progress
from noesis.core.files import sha256_json
from noesis.core.messages import Message
from noesis.tribunal.court import Opinion, opinion
from noesis.tribunal.judge import JudgeCase, case_from_item
from noesis.tribunal.offline_screen import ScreenedPrompt, screen
from noesis.tribunal.panel import JudgePanel
from noesis.tribunal.rubric import JUDGES
from noesis.tribunal.suite import EvalSample
from noesis.tribunal.verdict import Unscored, Verdict

# (who: base or tuned; conversations; a seed each) → an answer each, in order
Generate = Callable[[str, list[list[Message]], list[int]], list[str]]
CHUNK = 64  # conversations between two saves
MODELS = ("base", "tuned")


class AnswerStore(Protocol):
    """Where answers are kept: the trial's cache, or a place for those of one machine among several."""

    def get(self, key: str, /) -> Any | None: ...
    def put_all(self, values: dict[str, Any], /) -> None: ...


@dataclass(frozen=True)
class Answer:
    """One answer of one model to one prompt.

    said: (role, text) before the answer, without the system prompt
    """

    item: EvalSample
    who: str
    sample: int
    said: tuple[tuple[str, str], ...]
    text: str

    @property
    def id(self) -> str:
        return f"{self.item.id}/{self.who}/{self.sample}"

    def as_json(self) -> dict[str, Any]:
        return {
            "id": self.item.id,
            "category": self.item.category,
            "language": self.item.language,
            "who": self.who,
            "sample": self.sample,
        } | {
            "said": [{"role": role, "content": text} for role, text in self.said],
            "answer": self.text,
        }


@dataclass(frozen=True)
class ScoredAnswer:
    """An answer with what the court made of it; no opinion where code alone scores the prompt."""

    answer: Answer
    opinion: Opinion | None
    verdicts: tuple[Verdict | Unscored, ...]
    flags: tuple[str, ...]


def answer_prompts(
    items: Sequence[EvalSample],
    constitution: Constitution,
    generate: Generate,
    cache: AnswerStore,
    *,
    identity: str,
    who: str,
    section: TribunalSection,
    seed: int,
) -> list[Answer]:
    """K answers of one model to each prompt, at the seeds `seed`, `seed` + 1, …

    Args:
        identity: what decides the answers besides prompt and seed: hashes of model, adapter and settings; part of the cache's key.
    """
    states = [
        (item, k, [opening_messages(constitution, item.language, item.messages[0])[0]])
        for item in items
        for k in range(section.samples)
    ]
    rounds = max((len(item.messages) for item in items), default=0)
    total = sum(len(item.messages) for item, _, _ in states)
    with Progress(f"answer ({who})", total, "messages") as progress:
        for turn in range(rounds):
            talking = [(item, k, messages) for item, k, messages in states if turn < len(item.messages)]
            for item, _, messages in talking:
                messages.append({"role": "user", "content": item.messages[turn]})
            keys = [
                sha256_json([identity, who, messages, seed + k, section.trial_tokens, section.temperature])
                for _, k, messages in talking
            ]
            missing = [i for i, key in enumerate(keys) if cache.get(key) is None]
            progress.advance(len(talking) - len(missing))
            for start in range(0, len(missing), CHUNK):
                part = missing[start : start + CHUNK]
                texts = generate(who, [talking[i][2] for i in part], [seed + talking[i][1] for i in part])
                cache.put_all({keys[i]: text for i, text in zip(part, texts, strict=True)})
                progress.advance(len(part))
            for (_, _, messages), key in zip(talking, keys, strict=True):
                messages.append({"role": "assistant", "content": hide_analysis(str(cache.get(key)))})
    return [
        Answer(item, who, k, tuple((m["role"], m["content"]) for m in messages[1:-1]), messages[-1]["content"])
        for item, k, messages in states
    ]


async def score_answers(
    found: Sequence[Answer], seats: JudgePanel, section: TribunalSection, constitution: Constitution
) -> list[ScoredAnswer]:
    """The court's opinion of each answer that judges are to score; empty ones are 0 without asking."""
    flags = [tuple(screen(a.text, screened_prompt(a.item), constitution)) for a in found]
    before = [i for i, a in enumerate(found) if not a.item.check and "empty" not in flags[i]]
    cases = [_case(found[i]) for i in before]
    verdicts = dict(zip(before, await seats.judge(cases), strict=True))
    heard = []
    for i, answer in enumerate(found):
        leaked = ("leaked_system_prompt",) if "recites the system prompt" in flags[i] else ()
        formed = None
        if i in verdicts:
            formed = opinion(answer.id, verdicts[i], section, leaked)
        elif not answer.item.check:
            formed = Opinion(
                answer.id,
                dict.fromkeys(JUDGES, (0.0, 0.0)),
                (0.0, 0.0),
                leaked,
                (),
                ("nothing was said (found by code)",),
            )
        elif leaked:
            formed = Opinion(answer.id, dict.fromkeys(JUDGES, (0.0, 1.0)), None, leaked, JUDGES, ("found by code",))
        heard.append(ScoredAnswer(answer, formed, tuple(verdicts.get(i, ())), flags[i]))
    return heard


def _case(answer: Answer) -> JudgeCase:
    case = case_from_item(answer.item, list(answer.said), answer.text)
    return JudgeCase(answer.id, case.language, case.dialogue, case.answer, case.record)


def screened_prompt(item: EvalSample) -> ScreenedPrompt:
    """A prompt as the offline screen reads it."""
    demanded = next((check.language for check in item.check if check.type == "language"), None)
    stance = None if item.harmful is None else "decline" if item.harmful else "explore"
    return ScreenedPrompt(item.prompt, demanded or item.language, stance)


def verdict_rows(heard: Sequence[ScoredAnswer]) -> list[dict[str, Any]]:
    """Lines of verdicts.jsonl: each verdict with its spans, and the court's opinion."""
    rows = []
    for h in heard:
        if h.opinion is not None:
            rows.append(
                {
                    "answer": h.answer.id,
                    "opinion": h.opinion.as_json(),
                    "flags": list(h.flags),
                    "verdicts": [v.as_json() for v in h.verdicts],
                }
            )
    return rows


def answer_and_score(
    items: Sequence[EvalSample],
    constitution: Constitution,
    generate: Generate,
    seats: JudgePanel,
    section: TribunalSection,
    *,
    identity: Mapping[str, str],
    seed: int,
) -> list[ScoredAnswer]:
    """Answers of both models, then the hearing of all of them. `identity`: of base and tuned, as in `answers`."""
    found: list[Answer] = []
    for who in MODELS:
        found += answer_prompts(
            items, constitution, generate, seats.cache, identity=identity[who], who=who, section=section, seed=seed
        )
    return asyncio.run(_score_and_close(found, seats, section, constitution))


async def _score_and_close(
    found: list[Answer], seats: JudgePanel, section: TribunalSection, constitution: Constitution
) -> list[ScoredAnswer]:
    try:
        return await score_answers(found, seats, section, constitution)
    finally:
        for client in seats.clients:
            await client.close()
