"""One example: initial answer → critique by a random principle → revision (Constitutional AI, arXiv 2212.08073).

The model answers without a system prompt, since its own habits are what is to be revised. A reply that can't be used is
requested again with another seed; after the last attempt the example is left out, with the reason. The choice of a
principle depends on seed and prompt alone.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from noesis.constitution.document import Constitution, Principle
from noesis.core.files import sha256_json
from noesis.dataset.schema import Lineage
from noesis.llm.clients.cached_client import CachedClient, UnusableReplyError, request_seed
from noesis.llm.clients.protocol import EndpointDownError, ModelClient, ModelReply, ModelRequest, NoReplyError
from noesis.llm.clients.reply_cache import ReplyCache
from noesis.synthesis.prompt_file import Prompt
from noesis.synthesis.prompt_templates import Messages, Shots, critique_messages, revision_messages
from noesis.synthesis.reply_checks import Kind, Work, clean_reply, reply_problem, up_to_a_sentence

UNANSWERED = "unanswered"


@dataclass(frozen=True)
class Settings:
    """What decides a chain, apart from models, prompts and constitution.

    rounds: critiques and revisions of each answer
    shots: hand-written examples that are shown before each request
    attempts: at each step
    temperature: of all replies
    answer_tokens, critique_tokens: the longest answer and the longest critique, in tokens
    reviser: who writes the revisions, `critic` or `model`
    """

    rounds: int = 1
    shots: int = 2
    seed: int = 0
    attempts: int = 3
    temperature: float = 0.7
    answer_tokens: int = 400
    critique_tokens: int = 300
    reviser: str = "critic"

    def to_json(self) -> dict[str, int | float | str]:
        return asdict(self)


@dataclass(frozen=True)
class Attempt:
    """One reply to one request, and what is wrong with it; None: it can be used.

    round: from 0
    messages: of the first attempt at a step; the later ones repeat them
    """

    step: Kind
    round: int
    principle: str | None
    model: str
    seed: int
    temperature: float
    messages_sha256: str
    reply: str
    problem: str | None
    messages: Messages | None = None

    def to_json(self) -> dict[str, Any]:
        row: dict[str, Any] = {
            "step": self.step,
            "round": self.round,
            "principle": self.principle,
            "model": self.model,
            "seed": self.seed,
            "temperature": self.temperature,
            "messages_sha256": self.messages_sha256,
            "reply": self.reply,
            "fault": self.problem,
        }
        return row if self.messages is None else row | {"messages": [list(m) for m in self.messages]}

    def lineage_step(self) -> dict[str, Any]:
        """The request as a step in the lineage of an example."""
        names = ("step", "principle", "model", "seed", "messages_sha256")
        return {name: getattr(self, name) for name in names}


@dataclass
class ExampleOutcome:
    """What became of one prompt: an example, or the reason why there is none.

    example: as it will be written, not yet checked by the data gate
    failures: (step, problem) of every reply that could not be used, even if a later attempt succeeded
    principles: ids of those that were chosen
    attempts: every request and reply, in order; not read back from disk
    """

    id: str
    language: str
    example: dict[str, Any] | None = None
    reason: str | None = None
    failures: list[tuple[str, str]] = field(default_factory=list)
    principles: list[str] = field(default_factory=list)
    attempts: list[Attempt] = field(default_factory=list)

    @classmethod
    def from_json(cls, raw: dict[str, Any]) -> ExampleOutcome:
        failures = [(str(step), str(problem)) for step, problem in raw["failures"]]
        return cls(raw["id"], raw["language"], raw["record"], raw["reason"], failures, list(raw["tried"]))

    def to_json(self) -> dict[str, Any]:
        return {
            "id": self.id,
            "language": self.language,
            "record": self.example,
            "reason": self.reason,
            "failures": [list(f) for f in self.failures],
            "tried": self.principles,
            "trace": [attempt.to_json() for attempt in self.attempts],
        }


class _LeftOut(Exception):
    """The example can't be made; the message gives the reason."""


@dataclass
class ExampleMaker:
    """Makes examples; many may be in progress at once in one event loop."""

    constitution: Constitution
    model: ModelClient
    critic: ModelClient
    shots: dict[str, Shots]
    cache: ReplyCache
    settings: Settings
    on_reply: Callable[[int], None] = lambda tokens: None

    async def make(self, prompt: Prompt) -> ExampleOutcome:
        """The chain of one prompt.

        Raises:
            EndpointDownError: an endpoint no longer answers. CapError: the cap is reached. ModelError: a key or model
                is refused.
        """
        outcome = ExampleOutcome(prompt.id, prompt.language)
        try:
            initial = await self._initial(prompt, outcome)
            answer = initial
            critiques: list[str] = []
            principles: list[Principle] = []
            for number in range(self.settings.rounds):
                principle = draw(self.constitution, prompt, self.settings.seed, number, principles)
                outcome.principles.append(principle.id)
                critique, answer = await self._round(prompt, outcome, principle, answer, number)
                critiques.append(critique)
                principles.append(principle)
        except _LeftOut as reason:
            outcome.reason = str(reason)
        else:
            outcome.example = self._example(prompt, outcome, initial, critiques, answer, principles)
        return outcome

    async def criticise(self, prompt: Prompt, outcome: ExampleOutcome, principle: Principle, answer: str) -> str | None:
        """A critique alone; None, with the outcome's reason, if none can be used."""
        try:
            return await self._critique(prompt, outcome, principle, answer, 0)
        except _LeftOut as reason:
            outcome.reason = str(reason)
            return None

    async def _initial(self, prompt: Prompt, outcome: ExampleOutcome) -> str:
        work = Work("initial", prompt.prompt, prompt.language, prompt.stance)
        tokens = self.settings.answer_tokens
        return await self._ask(prompt, outcome, self.model, tuple(prompt.dialogue), tokens, work, 0)

    async def _round(
        self, prompt: Prompt, outcome: ExampleOutcome, principle: Principle, answer: str, number: int
    ) -> tuple[str, str]:
        """(critique, revised answer)"""
        language, tokens = prompt.language, self.settings.answer_tokens
        critique = await self._critique(prompt, outcome, principle, answer, number)
        shots = self.shots[language]
        messages = revision_messages(shots, prompt.dialogue, answer, critique, principle, language, words=tokens // 2)
        work = Work("revision", prompt.prompt, language, prompt.stance, answer, critique)
        reviser = self.critic if self.settings.reviser == "critic" else self.model
        revised = await self._ask(prompt, outcome, reviser, messages, tokens, work, number, principle.id)
        return critique, revised

    async def _critique(
        self, prompt: Prompt, outcome: ExampleOutcome, principle: Principle, answer: str, number: int
    ) -> str:
        language, tokens = prompt.language, self.settings.critique_tokens
        messages = critique_messages(self.shots[language], prompt.dialogue, answer, principle, language)
        work = Work("critique", prompt.prompt, language, prompt.stance, answer)
        return await self._ask(prompt, outcome, self.critic, messages, tokens, work, number, principle.id)

    async def _ask(
        self,
        prompt: Prompt,
        outcome: ExampleOutcome,
        client: ModelClient,
        messages: Messages,
        tokens: int,
        work: Work,
        number: int,
        principle: str | None = None,
    ) -> str:
        """A reply that can be used, cleaned, from up to `attempts` requests."""
        step, settings = work.kind, self.settings

        def request(attempt: int, problem: str) -> ModelRequest:
            seed = seed_of(settings.seed, prompt, step, number, attempt)
            return ModelRequest(messages, {}, tokens, seed, attempt, settings.temperature)

        def read(reply: ModelReply, attempt: int) -> str:
            text = clean_reply(reply.text)
            if reply.finish == "length" and step != "revision" and (whole := up_to_a_sentence(text)):
                reply, text = replace(reply, finish="stop"), whole  # a revision must end by itself
            problem = reply_problem(reply, text, work, self.constitution)
            outcome.attempts.append(
                Attempt(
                    step=step,
                    round=number,
                    principle=principle,
                    model=client.name,
                    seed=request(attempt, "").seed,
                    temperature=settings.temperature,
                    messages_sha256=sha256_json(messages),
                    reply=reply.text,
                    problem=problem,
                    messages=messages if attempt == 0 else None,
                )
            )
            if problem is not None:
                outcome.failures.append((step, problem))
                raise UnusableReplyError(problem)
            return text

        cached = CachedClient(client, self.cache, lambda reply: self.on_reply(reply.completion_tokens))
        try:
            return await cached.ask_until_usable(request, read, attempts=settings.attempts)
        except EndpointDownError:
            raise
        except NoReplyError as error:
            outcome.failures.append((step, UNANSWERED))
            raise _LeftOut(f"{step}: {UNANSWERED} ({error})") from None
        except UnusableReplyError as error:
            raise _LeftOut(f"{step}: {error}, {settings.attempts} times") from None

    def _example(
        self,
        prompt: Prompt,
        outcome: ExampleOutcome,
        initial: str,
        critiques: list[str],
        answer: str,
        principles: list[Principle],
    ) -> dict[str, Any]:
        reason = {"pt": "Revisão gerada por um modelo segundo: ", "en": "Revision generated by a model after: "}[
            prompt.language
        ]
        example: dict[str, Any] = {
            "id": f"gen_{prompt.id}_{self.settings.seed}",
            "language": prompt.language,
            "category": prompt.category,
            "prompt": prompt.prompt,
            "response_initial": initial,
            "critique": "\n\n".join(critiques),
            "response_revised": answer,
            "reasoning": reason + " / ".join(p.text(prompt.language) for p in principles),
            "values_applied": list(dict.fromkeys(p.value for p in principles)),
            "difficulty": prompt.difficulty,
            "principles": list(dict.fromkeys(p.id for p in principles)),
            "generated": True,
            "lineage": self.lineage(prompt, outcome, "critique-revision").to_json(),
        }
        if prompt.turns:
            example["turns"] = [turn.to_json() for turn in prompt.turns]
        if prompt.stance:
            example["stance"] = prompt.stance
        return example

    def lineage(self, prompt: Prompt, outcome: ExampleOutcome, method: str) -> Lineage:
        """Where the outcome's example comes from."""
        return Lineage(
            method=method,
            model=self.model.name,
            critic=self.critic.name,
            source=prompt.id,
            constitution_sha256=self.constitution.requests_digest(),
            seed=self.settings.seed,
            settings=self.settings.to_json() | {"shot_ids": list(self.shots[prompt.language].ids)},
            steps=[attempt.lineage_step() for attempt in outcome.attempts if attempt.problem is None],
        )


def draw(constitution: Constitution, prompt: Prompt, seed: int, number: int, before: list[Principle]) -> Principle:
    """The principle of one round, drawn uniformly from those that the prompt allows and no earlier round had."""
    allowed = [
        p for p in constitution.principles if (not prompt.principles or p.id in prompt.principles) and p not in before
    ]
    generator = random.Random(f"{seed}:{prompt.language}:{prompt.id}:{number}")  # noqa: S311  (not a secret)
    return generator.choice(allowed or list(constitution.principles))


def seed_of(seed: int, prompt: Prompt, step: str, number: int, attempt: int) -> int:
    """A seed of 31 bits for one reply; the same in every run of the same plan."""
    return request_seed(seed, prompt.language, prompt.id, step, number, attempt)
