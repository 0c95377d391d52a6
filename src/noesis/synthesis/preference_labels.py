"""How a pair of answers gets its soft label, and how a model gives two answers. `make_preferences.py` is the command.

The critic's next token after both answers is not sampled: its probabilities of A and B are read, in both orders.
"""

from __future__ import annotations

import math
import random
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from noesis.constitution.document import Constitution, Principle
from noesis.core.errors import ModelError
from noesis.core.i18n import _
from noesis.dataset.schema import Lineage
from noesis.llm.clients.cached_client import CachedClient, UnusableReplyError, request_seed
from noesis.llm.clients.protocol import EndpointDownError, ModelClient, ModelReply, ModelRequest, NoReplyError
from noesis.llm.clients.reply_cache import ReplyCache
from noesis.synthesis.prompt_file import Prompt
from noesis.synthesis.prompt_templates import Messages, comparison, words_in
from noesis.synthesis.reply_checks import Work, clean_reply, reply_problem, up_to_a_sentence

TOP_LOGPROBS = 20  # the most that endpoints give
CLAMP = (0.4, 0.6)  # of labels after reasoning
LETTER_TOKENS, THOUGHT_TOKENS = 4, 200
LEAST_MASS = 0.01  # probability of both letters together, below which they mean nothing


class NoLabel(Exception):
    """A pair that gets no label; the message gives the reason."""


@dataclass(frozen=True)
class AnswerPair:
    """Two answers to one prompt.

    kinds: what each answer is: a and b, or revised and initial
    model: that wrote them; "as given" if unknown
    """

    prompt: Prompt
    a: str
    b: str
    kinds: tuple[str, str] = ("a", "b")
    model: str = "as given"


@dataclass(frozen=True)
class PreferencesRequest:
    """Options of `noesis constitution prefer`: `pairs`, or `prompts` and a `model` that answers each twice."""

    critic: str
    out: Path
    pairs: Path | None = None
    prompts: Path | None = None
    model: str | None = None
    reasoning: bool = False
    seed: int = 0
    temperature: float = 1.0
    answer_tokens: int = 400
    attempts: int = 3
    count: int | None = None
    max_usd: float | None = None


@dataclass(frozen=True)
class SoftLabel:
    """A labelled pair: a line of pairs.jsonl. p_chosen: probability that the chosen answer is better, 0.5 to 1."""

    prompt: Prompt
    chosen: str
    rejected: str
    p_chosen: float
    principle: str
    lineage: Lineage

    def to_json(self) -> dict[str, Any]:
        row: dict[str, Any] = {
            "id": f"pref_{self.prompt.id}_{self.lineage.seed}",
            "language": self.prompt.language,
            "prompt": self.prompt.prompt,
        }
        if self.prompt.turns:
            row["turns"] = [turn.to_json() for turn in self.prompt.turns]
        return row | {
            "chosen": self.chosen,
            "rejected": self.rejected,
            "p_chosen": self.p_chosen,
            "principle": self.principle,
            "generated": True,
            "lineage": self.lineage.to_json(),
        }


@dataclass
class Answerer:
    """Has a model answer a prompt twice, at two seeds."""

    constitution: Constitution
    model: ModelClient
    cache: ReplyCache
    request: PreferencesRequest

    async def pair(self, prompt: Prompt) -> AnswerPair:
        first = await self._answer(prompt, 0, ())
        second = await self._answer(prompt, 1, (first,))
        return AnswerPair(prompt, first, second, model=self.model.name)

    async def _answer(self, prompt: Prompt, which: int, others: tuple[str, ...]) -> str:
        settings = self.request

        def request(attempt: int, problem: str) -> ModelRequest:
            seed = request_seed(settings.seed, prompt.language, prompt.id, which, attempt)
            return ModelRequest(tuple(prompt.dialogue), {}, settings.answer_tokens, seed, attempt, settings.temperature)

        def read(reply: ModelReply, attempt: int) -> str:
            text = clean_reply(reply.text)
            if reply.finish == "length" and (whole := up_to_a_sentence(text)):
                reply, text = replace(reply, finish="stop"), whole
            work = Work("initial", prompt.prompt, prompt.language)
            problem = reply_problem(reply, text, work, self.constitution)
            if problem := problem or ("the same twice" if text in others else None):
                raise UnusableReplyError(problem)
            return text

        try:
            client = CachedClient(self.model, self.cache)
            return await client.ask_until_usable(request, read, attempts=settings.attempts)
        except EndpointDownError:
            raise
        except NoReplyError as error:
            raise NoLabel(_("unanswered ({error})", error=error)) from None
        except UnusableReplyError as error:
            raise NoLabel(_("answer: {error}", error=error)) from None


@dataclass
class Labeller:
    """Compares pairs."""

    constitution: Constitution
    critic: ModelClient
    cache: ReplyCache
    request: PreferencesRequest

    async def label(self, pair: AnswerPair) -> SoftLabel:
        """The soft label of a pair.

        Raises:
            NoLabel: the letters were not among the likeliest tokens, or the two orders cancel out.
            ModelError: the critic gives no log-probabilities.
        """
        principle = draw_principle(self.constitution, pair.prompt, self.request.seed)
        forward = await self._p_first(pair.a, pair.b, pair.prompt, principle)
        backward = 1 - await self._p_first(pair.b, pair.a, pair.prompt, principle)
        p = (forward + backward) / 2
        if self.request.reasoning:
            p = min(max(p, CLAMP[0]), CLAMP[1])
        if p == 0.5:
            raise NoLabel(_("neither is preferred"))
        lineage = Lineage(
            method="preference",
            model=pair.model,
            critic=self.critic.name,
            source=pair.prompt.id,
            constitution_sha256=self.constitution.requests_digest(),
            seed=self.request.seed,
            settings={
                "reasoning": self.request.reasoning,
                "orders": [round(forward, 6), round(backward, 6)],
                "chosen_is": pair.kinds[0] if p > 0.5 else pair.kinds[1],
            },
            steps=[],
        )
        chosen, rejected = (pair.a, pair.b) if p > 0.5 else (pair.b, pair.a)
        return SoftLabel(pair.prompt, chosen, rejected, round(max(p, 1 - p), 6), principle.id, lineage)

    async def _p_first(self, first: str, second: str, prompt: Prompt, principle: Principle) -> float:
        """Probability of the letter A against B, where `first` is answer A."""
        words, dialogue = words_in(prompt.language), prompt.dialogue
        messages = comparison(dialogue, first, second, principle, prompt.language, question="letter")
        if self.request.reasoning:
            thinking = comparison(dialogue, first, second, principle, prompt.language, question="think")
            seed = request_seed(self.request.seed, prompt.language, prompt.id, first)
            thought = await _reply(self.critic, self.cache, ModelRequest(thinking, {}, THOUGHT_TOKENS, seed, 0, 0.7))
            messages = (*thinking, ("assistant", thought.text.strip() or "…"), ("user", words["letter"]))
        return await self._p_letter(messages, words["verdict"])

    async def _p_letter(self, messages: Messages, verdict: str) -> float:
        prefills = getattr(self.critic, "prefills", False)
        if prefills:  # the model continues "The answer … is (", so its next token is the letter
            messages = (*messages, ("assistant", verdict))
        request = ModelRequest(messages, {}, 1 if prefills else LETTER_TOKENS, self.request.seed, logprobs=TOP_LOGPROBS)
        reply = await _reply(self.critic, self.cache, request)
        if not reply.top_logprobs:
            raise ModelError(
                _(
                    "{name} gives no log-probabilities, which soft labels are made of: "
                    "use a gguf: or torch: model, or an endpoint that supports logprobs",
                    name=self.critic.name,
                )
            )
        return p_of_a(reply)


async def _reply(client: ModelClient, cache: ReplyCache, request: ModelRequest) -> ModelReply:
    try:
        return await CachedClient(client, cache).ask(request)
    except EndpointDownError:
        raise
    except NoReplyError as error:
        raise NoLabel(_("unanswered ({error})", error=error)) from None


def p_of_a(reply: ModelReply) -> float:
    """P(A) / (P(A) + P(B)) at the first token that can be a letter, in any spelling: `A`, ` A`, `(A`, `**A**`.

    Raises:
        NoLabel: no token has the letters among its likeliest.
    """
    for alternatives in reply.top_logprobs:
        mass = {"A": 0.0, "B": 0.0}
        for token, logprob in alternatives:
            letter = token.strip(" \t\n()*\"'.:")
            if letter in mass:
                mass[letter] += math.exp(logprob)
        if sum(mass.values()) >= LEAST_MASS:
            return mass["A"] / sum(mass.values())
    raise NoLabel(_("neither letter is among the likeliest tokens"))


def draw_principle(constitution: Constitution, prompt: Prompt, seed: int) -> Principle:
    """The principle of one comparison, drawn uniformly from those that the prompt allows."""
    allowed = [p for p in constitution.principles if not prompt.principles or p.id in prompt.principles]
    return random.Random(f"{seed}:{prompt.language}:{prompt.id}:prefer").choice(allowed)  # noqa: S311  (not a secret)
