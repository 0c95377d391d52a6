"""A trial's two halves: base and tuned model answer the same prompts, then the panel scores the answers.

`noesis judge RUN --judge SPEC` runs it (`pipeline/stages/trial.py`); `trial_summary.py` makes the figures. Models are
called through a `generate` that the caller passes, in batches; a dialogue of several turns is answered turn by turn,
each turn one batch. Answers and verdicts are cached, so that a stopped trial continues.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from noesis.constitution.analysis_block import hide_analysis
from noesis.constitution.dialogue import opening_messages
from noesis.constitution.document import Constitution
from noesis.core.config import TribunalSection
from noesis.core.console import Progress
from noesis.core.event_loop import run_async
from noesis.core.files import sha256_json
from noesis.core.i18n import N_, _
from noesis.core.messages import Message
from noesis.llm.clients.cached_client import sample_seed
from noesis.tribunal.court import Opinion, opinion
from noesis.tribunal.judge import JudgeCase, case_from_item
from noesis.tribunal.offline_screen import ScreenedPrompt, screen
from noesis.tribunal.panel import JudgePanel
from noesis.tribunal.rubric import JUDGES
from noesis.tribunal.suite import EvalSample
from noesis.tribunal.verdict import Unscored, Verdict

# (model: base or tuned; conversations; a seed for each) → an answer to each, in order
Generate = Callable[[str, list[list[Message]], list[int]], list[str]]
BATCH = 64  # conversations between two saves
MODELS = ("base", "tuned")


class AnswerStore(Protocol):
    """Where answers are stored: the trial's cache, or the memory of one machine among several."""

    def get(self, key: str, /) -> Any | None: ...
    def put_all(self, values: dict[str, Any], /) -> None: ...


class Judges(Protocol):
    """Who gives verdicts: a `JudgePanel`, or the record of one."""

    async def judge(self, cases: Sequence[JudgeCase], /) -> list[list[Verdict | Unscored]]: ...


@dataclass(frozen=True)
class Answer:
    """One answer of one model to one prompt.

    model: base or tuned
    sample: 0..k-1 of the k answers to the prompt
    dialogue: (role, text) before the answer, without the system prompt
    """

    item: EvalSample
    model: str
    sample: int
    dialogue: tuple[tuple[str, str], ...]
    text: str

    @property
    def id(self) -> str:
        return f"{self.item.id}/{self.model}/{self.sample}"

    def to_json(self) -> dict[str, Any]:
        return {
            "id": self.item.id,
            "category": self.item.category,
            "language": self.item.language,
            "who": self.model,
            "sample": self.sample,
            "said": [{"role": role, "content": text} for role, text in self.dialogue],
            "answer": self.text,
        }


@dataclass(frozen=True)
class ScoredAnswer:
    """An answer with the court's opinion; None where code alone scores the prompt.

    flags: of the offline screen
    """

    answer: Answer
    opinion: Opinion | None
    verdicts: tuple[Verdict | Unscored, ...]
    flags: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        """A line of verdicts.jsonl; only of an answer with an opinion."""
        assert self.opinion is not None
        return {
            "answer": self.answer.id,
            "opinion": self.opinion.to_json(),
            "flags": list(self.flags),
            "verdicts": [v.to_json() for v in self.verdicts],
        }


def answer_prompts(
    items: Sequence[EvalSample],
    constitution: Constitution,
    generate: Generate,
    cache: AnswerStore,
    *,
    identity: str,
    model: str,
    section: TribunalSection,
    seed: int,
) -> list[Answer]:
    """`section.samples` answers of one model to each prompt; those in the cache are not generated again.

    Args:
        identity: hash of what decides the answers, prompt and seed aside (model, adapter, settings); part of the
        cache's key.
        model: base or tuned.
    """
    states = [
        (item, k, [opening_messages(constitution, item.language, item.messages[0])[0]])
        for item in items
        for k in range(section.samples)
    ]
    turns = max((len(item.messages) for item in items), default=0)
    total = sum(len(item.messages) for item, _, _ in states)
    with Progress(_("answer ({model})", model=model), total, _("messages")) as progress:
        for turn in range(turns):
            active = [state for state in states if turn < len(state[0].messages)]
            for item, _sample, messages in active:
                messages.append({"role": "user", "content": item.messages[turn]})
            seeds = [sample_seed(seed, k) for _, k, _ in active]
            keys = [
                sha256_json([identity, model, messages, own, section.trial_tokens, section.temperature])
                for (_, _, messages), own in zip(active, seeds, strict=True)
            ]
            missing = [i for i, key in enumerate(keys) if not isinstance(cache.get(key), str)]
            progress.advance(len(active) - len(missing))
            for start in range(0, len(missing), BATCH):
                batch = missing[start : start + BATCH]
                texts = generate(model, [active[i][2] for i in batch], [seeds[i] for i in batch])
                cache.put_all({keys[i]: text for i, text in zip(batch, texts, strict=True)})
                progress.advance(len(batch))
            for (_item, _sample, messages), key in zip(active, keys, strict=True):
                messages.append({"role": "assistant", "content": hide_analysis(str(cache.get(key)))})
    return [
        Answer(item, model, k, tuple((m["role"], m["content"]) for m in messages[1:-1]), messages[-1]["content"])
        for item, k, messages in states
    ]


async def score_answers(
    answers: Sequence[Answer],
    panel: Judges,
    section: TribunalSection,
    constitution: Constitution,
    *,
    judged: bool = True,
) -> list[ScoredAnswer]:
    """The court's opinion of each answer that judges are to score; empty answers get 0 without being judged.

    Args:
        judged: False: code alone looks at these answers, whatever they answer.
    """
    flags = [tuple(screen(a.text, screened_prompt(a.item), constitution)) for a in answers]
    to_judge = [i for i, a in enumerate(answers) if judged and not a.item.check and "empty" not in flags[i]]
    found_by_judges = await panel.judge([_case(answers[i]) for i in to_judge]) if to_judge else []
    verdicts = dict(zip(to_judge, found_by_judges, strict=True))
    scored = []
    for i, answer in enumerate(answers):
        leaked = ("leaked_system_prompt",) if "recites the system prompt" in flags[i] else ()
        found = None
        if i in verdicts:
            found = opinion(answer.id, verdicts[i], section, leaked)
        elif judged and not answer.item.check:
            zeros = dict.fromkeys(JUDGES, (0.0, 0.0))
            found = Opinion(answer.id, zeros, (0.0, 0.0), leaked, (), (N_("the answer is empty (found by code)"),))
        elif leaked:
            unknown = dict.fromkeys(JUDGES, (0.0, 1.0))
            found = Opinion(answer.id, unknown, None, leaked, JUDGES, (N_("found by code"),))
        scored.append(ScoredAnswer(answer, found, tuple(verdicts.get(i, ())), flags[i]))
    return scored


def _case(answer: Answer) -> JudgeCase:
    case = case_from_item(answer.item, list(answer.dialogue), answer.text)
    return JudgeCase(answer.id, case.language, case.dialogue, case.answer, case.record)


def screened_prompt(item: EvalSample) -> ScreenedPrompt:
    """A prompt as the offline screen reads it."""
    demanded = next((check.language for check in item.check if check.type == "language"), None)
    stance = None if item.harmful is None else "decline" if item.harmful else "explore"
    return ScreenedPrompt(item.prompt, demanded or item.language, stance)


def verdict_rows(scored: Sequence[ScoredAnswer]) -> list[dict[str, Any]]:
    """Lines of verdicts.jsonl: each verdict with its evidence, and the court's opinion."""
    return [s.to_json() for s in scored if s.opinion is not None]


def answer_and_score(
    items: Sequence[EvalSample],
    constitution: Constitution,
    generate: Generate,
    panel: JudgePanel,
    section: TribunalSection,
    *,
    identity: Mapping[str, str],
    seed: int,
) -> list[ScoredAnswer]:
    """Answers of both models, then the panel's scores of all of them; the panel's clients are closed at the end.

    Args:
        identity: of base and tuned, as in `answer_prompts`.
    """
    answers = [
        answer
        for model in MODELS
        for answer in answer_prompts(
            items,
            constitution,
            generate,
            panel.cache,
            identity=identity[model],
            model=model,
            section=section,
            seed=seed,
        )
    ]

    async def score() -> list[ScoredAnswer]:
        async with panel:
            return await score_answers(answers, panel, section, constitution)

    return run_async(score())
