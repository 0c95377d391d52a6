"""One example: initial answer → critique by a drawn principle → revision, for so many rounds (Constitutional AI, arXiv 2212.08073).

The model answers as it would (no system prompt: its own habits are what there is to revise). A reply that can't be used is asked for
again with another seed; after the last attempt the example is left out, with the reason. Draws depend on seed and prompt alone.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

from noesis.constitution.document import Constitution, Principle
from noesis.core.files import sha256_json
from noesis.llm.clients.cached_client import CachedClient, UnusableReplyError, request_seed
from noesis.llm.clients.protocol import EndpointDownError, ModelClient, ModelReply, ModelRequest, NoReplyError
from noesis.llm.clients.reply_cache import ReplyCache
from noesis.synthesis.prompt_file import Prompt
from noesis.synthesis.prompt_templates import Messages, Shots, critique_messages, revision_messages
from noesis.synthesis.reply_checks import Kind, Work, clean_reply, reply_problem, up_to_a_sentence

UNANSWERED = "unanswered"


@dataclass(frozen=True)
class Settings:
    """What decides a chain, beside models, prompts and constitution.

    temperature: of all replies; tokens: the longest answer and the longest critique
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

    def as_json(self) -> dict[str, Any]:
        return dict(vars(self))


@dataclass
class ExampleOutcome:
    """What became of one prompt: a record, or the reason why not.

    failures: (step, reason) of every reply that could not be used, also of those that a later attempt made good
    tried: the principles that were drawn
    trace: everything asked and said, in order
    """

    prompt: Prompt
    record: dict[str, Any] | None = None
    reason: str | None = None
    failures: list[tuple[str, str]] = field(default_factory=list)
    tried: list[str] = field(default_factory=list)
    trace: list[dict[str, Any]] = field(default_factory=list)

    def as_json(self) -> dict[str, Any]:
        return {
            "id": self.prompt.id,
            "language": self.prompt.language,
            "record": self.record,
            "reason": self.reason,
            "failures": [list(f) for f in self.failures],
            "tried": self.tried,
            "trace": self.trace,
        }


class _LeftOut(Exception):
    """The example can't be made; the message says why."""


@dataclass
class ExampleMaker:
    """Makes examples one by one; many may be under way at once in one event loop."""

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
            Gone: an endpoint is dead. CapError: the cap is reached. ModelError: a key or model is refused.
        """
        outcome = ExampleOutcome(prompt)
        try:
            initial = await self._initial(outcome)
            answer = initial
            critiques: list[str] = []
            principles: list[Principle] = []
            for number in range(self.settings.rounds):
                principle = draw(self.constitution, prompt, self.settings.seed, number, principles)
                outcome.tried.append(principle.id)
                critique, answer = await self._round(outcome, principle, answer, number)
                critiques.append(critique)
                principles.append(principle)
        except _LeftOut as why:
            outcome.reason = str(why)
        else:
            outcome.record = self._record(outcome, initial, critiques, answer, principles)
        return outcome

    async def criticise(self, outcome: ExampleOutcome, principle: Principle, answer: str) -> str | None:
        """A critique alone; None with the outcome's reason where there is none that can be used."""
        try:
            return await self._critique(outcome, principle, answer, 0)
        except _LeftOut as why:
            outcome.reason = str(why)
            return None

    async def _initial(self, outcome: ExampleOutcome) -> str:
        prompt = outcome.prompt
        work = Work("initial", prompt.prompt, prompt.language, prompt.stance)
        return await self._ask(
            outcome, "initial", self.model, tuple(prompt.dialogue), self.settings.answer_tokens, work, 0
        )

    async def _round(self, outcome: ExampleOutcome, principle: Principle, answer: str, number: int) -> tuple[str, str]:
        prompt, language = outcome.prompt, outcome.prompt.language
        shots = self.shots[language]
        critique = await self._critique(outcome, principle, answer, number)
        asked = revision_messages(
            shots, prompt.dialogue, answer, critique, principle, language, words=self.settings.answer_tokens // 2
        )
        work = Work("revision", prompt.prompt, language, prompt.stance, answer, critique)
        reviser = self.critic if self.settings.reviser == "critic" else self.model
        return critique, await self._ask(
            outcome, "revision", reviser, asked, self.settings.answer_tokens, work, number, principle.id
        )

    async def _critique(self, outcome: ExampleOutcome, principle: Principle, answer: str, number: int) -> str:
        prompt, language = outcome.prompt, outcome.prompt.language
        asked = critique_messages(self.shots[language], prompt.dialogue, answer, principle, language)
        work = Work("critique", prompt.prompt, language, prompt.stance, answer)
        return await self._ask(
            outcome, "critique", self.critic, asked, self.settings.critique_tokens, work, number, principle.id
        )

    async def _ask(
        self,
        outcome: ExampleOutcome,
        step: Kind,
        client: ModelClient,
        messages: Messages,
        tokens: int,
        work: Work,
        number: int,
        principle: str | None = None,
    ) -> str:
        """A reply that can be used, cleaned; asked for up to `attempts` times."""
        settings = self.settings

        def request(attempt: int, problem: str) -> ModelRequest:
            seed = seed_of(settings.seed, outcome.prompt, step, number, attempt)
            return ModelRequest(messages, {}, tokens, seed, attempt, settings.temperature)

        def read(reply: ModelReply, attempt: int) -> str:
            text = clean_reply(reply.text)
            if reply.finish == "length" and step != "revision" and (whole := up_to_a_sentence(text)):
                reply, text = replace(reply, finish="stop"), whole  # a revision must end by itself
            found = reply_problem(reply, text, work, self.constitution)
            outcome.trace.append(
                {
                    "step": step,
                    "round": number,
                    "principle": principle,
                    "model": client.name,
                    "seed": request(attempt, "").seed,
                    "temperature": settings.temperature,
                }
                | {"messages_sha256": sha256_json(messages), "reply": reply.text, "fault": found}
                | ({"messages": [list(m) for m in messages]} if attempt == 0 else {})
            )
            if found is not None:
                outcome.failures.append((step, found))
                raise UnusableReplyError(found)
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

    def _record(
        self, outcome: ExampleOutcome, initial: str, critiques: list[str], answer: str, principles: list[Principle]
    ) -> dict[str, Any]:
        prompt = outcome.prompt
        reason = {"pt": "Revisão gerada por um modelo segundo: ", "en": "Revision generated by a model after: "}[
            prompt.language
        ]
        record: dict[str, Any] = {
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
            "lineage": self.lineage(outcome, "critique-revision"),
        }
        if prompt.turns:
            record["turns"] = [t.model_dump() for t in prompt.turns]
        if prompt.stance:
            record["stance"] = prompt.stance
        return record

    def lineage(self, outcome: ExampleOutcome, method: str) -> dict[str, Any]:
        """Where an outcome comes from, as `data.record.Lineage` has it."""
        steps = [
            {name: t[name] for name in ("step", "principle", "model", "seed", "messages_sha256")}
            for t in outcome.trace
            if t["fault"] is None
        ]
        return {
            "method": method,
            "model": self.model.name,
            "critic": self.critic.name,
            "source": outcome.prompt.id,
            "constitution_sha256": self.constitution.requests_digest(),
            "seed": self.settings.seed,
            "settings": self.settings.as_json() | {"shot_ids": list(self.shots[outcome.prompt.language].ids)},
            "steps": steps,
        }


def draw(constitution: Constitution, prompt: Prompt, seed: int, number: int, before: list[Principle]) -> Principle:
    """The principle of one round: evenly among those that the prompt allows and no earlier round drew."""
    allowed = [
        p for p in constitution.principles if (not prompt.principles or p.id in prompt.principles) and p not in before
    ]
    drawn = random.Random(f"{seed}:{prompt.language}:{prompt.id}:{number}")  # noqa: S311  (a draw, not a secret)
    return drawn.choice(allowed or list(constitution.principles))


def seed_of(seed: int, prompt: Prompt, step: str, number: int, attempt: int) -> int:
    """A seed of 31 bits for one reply; the same in every run of the same plan."""
    return request_seed(seed, prompt.language, prompt.id, step, number, attempt)
