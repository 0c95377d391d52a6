"""How a pair of answers gets its soft label, and how a model is made to give two answers. `prefer.py` is the command.

The critic's next token after both answers is looked at, not drawn: the probability of A against B, in both orders.
"""

from __future__ import annotations

import math
import random
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from noesis.constitution.document import Constitution, Principle
from noesis.core.errors import ModelError
from noesis.llm.clients.cached_client import CachedClient, UnusableReplyError, request_seed
from noesis.llm.clients.protocol import EndpointDownError, ModelClient, ModelReply, ModelRequest, NoReplyError
from noesis.llm.clients.reply_cache import ReplyCache
from noesis.synthesis.prompt_file import Prompt
from noesis.synthesis.prompt_templates import WORDS, Messages, comparison
from noesis.synthesis.reply_checks import Work, clean_reply, reply_problem, up_to_a_sentence

ALTERNATIVES = 20  # as many as endpoints give
CLAMP = (0.4, 0.6)  # of labels after reasoning
LETTER_TOKENS, THOUGHT_TOKENS = 4, 200
LEAST_MASS = 0.01  # probability of both letters together, under which they say nothing


class NoLabel(Exception):
    """A pair that gets no label; the message says why."""


@dataclass(frozen=True)
class AnswerPair:
    """Two answers to one prompt; lineage: where each comes from."""

    prompt: Prompt
    a: str
    b: str
    lineage: dict[str, Any]


@dataclass(frozen=True)
class PreferencesRequest:
    """What was asked for on the command line: `pairs`, or `prompts` and a `model` that answers each twice."""

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


@dataclass
class Answerer:
    """Has a model answer a prompt twice, at two seeds."""

    constitution: Constitution
    model: ModelClient
    cache: ReplyCache
    ask: PreferencesRequest

    async def pair(self, prompt: Prompt) -> AnswerPair:
        first = await self._answer(prompt, 0, ())
        second = await self._answer(prompt, 1, (first,))
        return AnswerPair(prompt, first, second, {"kinds": ["a", "b"], "source": prompt.id, "model": self.model.name})

    async def _answer(self, prompt: Prompt, which: int, others: tuple[str, ...]) -> str:
        ask = self.ask

        def request(attempt: int, problem: str) -> ModelRequest:
            seed = request_seed(ask.seed, prompt.language, prompt.id, which, attempt)
            return ModelRequest(tuple(prompt.dialogue), {}, ask.answer_tokens, seed, attempt, ask.temperature)

        def read(reply: ModelReply, attempt: int) -> str:
            text = clean_reply(reply.text)
            if reply.finish == "length" and (whole := up_to_a_sentence(text)):
                reply, text = replace(reply, finish="stop"), whole
            work = Work("initial", prompt.prompt, prompt.language)
            wrong = reply_problem(reply, text, work, self.constitution) or ("the same twice" if text in others else "")
            if wrong:
                raise UnusableReplyError(wrong)
            return text

        client = CachedClient(self.model, self.cache)
        try:
            return await client.ask_until_usable(request, read, attempts=ask.attempts)
        except EndpointDownError:
            raise
        except NoReplyError as error:
            raise NoLabel(f"unanswered ({error})") from None
        except UnusableReplyError as error:
            raise NoLabel(f"answer: {error}") from None


@dataclass
class Labeller:
    """Compares pairs."""

    constitution: Constitution
    critic: ModelClient
    cache: ReplyCache
    ask: PreferencesRequest

    async def label(self, pair: AnswerPair) -> dict[str, Any]:
        """The pair with its soft label.

        Raises:
            NoLabel: the letters were not among the likeliest tokens, or both orders cancel out. ModelError: there are no log-probabilities.
        """
        prompt, principle = pair.prompt, drawn(self.constitution, pair.prompt, self.ask.seed)
        forward = await self._p_first(pair.a, pair.b, prompt, principle)
        backward = 1 - await self._p_first(pair.b, pair.a, prompt, principle)
        p = (forward + backward) / 2
        if self.ask.reasoning:
            p = min(max(p, CLAMP[0]), CLAMP[1])
        if p == 0.5:
            raise NoLabel("neither is preferred")
        chosen, rejected, kind = (
            (pair.a, pair.b, pair.lineage["kinds"][0]) if p > 0.5 else (pair.b, pair.a, pair.lineage["kinds"][1])
        )
        row: dict[str, Any] = {
            "id": f"pref_{prompt.id}_{self.ask.seed}",
            "language": prompt.language,
            "prompt": prompt.prompt,
        }
        if prompt.turns:
            row["turns"] = [t.model_dump() for t in prompt.turns]
        return row | {
            "chosen": chosen,
            "rejected": rejected,
            "p_chosen": round(max(p, 1 - p), 6),
            "principle": principle.id,
            "generated": True,
            "lineage": {
                "method": "preference",
                "model": pair.lineage["model"],
                "critic": self.critic.name,
                "source": pair.lineage["source"],
                "constitution_sha256": self.constitution.requests_digest(),
                "seed": self.ask.seed,
                "settings": {
                    "reasoning": self.ask.reasoning,
                    "orders": [round(forward, 6), round(backward, 6)],
                    "chosen_is": kind,
                },
                "steps": [],
            },
        }

    async def _p_first(self, first: str, second: str, prompt: Prompt, principle: Principle) -> float:
        """Probability of the letter A against B, `first` standing as A."""
        words, dialogue = WORDS[prompt.language], prompt.dialogue
        messages = comparison(dialogue, first, second, principle, prompt.language, question="letter")
        if self.ask.reasoning:
            thinking = comparison(dialogue, first, second, principle, prompt.language, question="think")
            seed = request_seed(self.ask.seed, prompt.language, prompt.id, first)
            thought = await _reply(self.critic, self.cache, ModelRequest(thinking, {}, THOUGHT_TOKENS, seed, 0, 0.7))
            messages = (*thinking, ("assistant", thought.text.strip() or "…"), ("user", words["letter"]))
        return await self._p_letter(messages, words["verdict"])

    async def _p_letter(self, messages: Messages, verdict: str) -> float:
        prefills = getattr(self.critic, "prefills", False)
        if prefills:  # the model goes on from "The answer … is (", so that its next token is the letter
            messages = (*messages, ("assistant", verdict))
        request = ModelRequest(messages, {}, 1 if prefills else LETTER_TOKENS, self.ask.seed, logprobs=ALTERNATIVES)
        reply = await _reply(self.critic, self.cache, request)
        if not reply.top_logprobs:
            raise ModelError(
                f"{self.critic.name} gives no log-probabilities, which soft labels are made of: "
                "use a gguf: or torch: model, or an endpoint that supports logprobs"
            )
        return p_of_a(reply)


async def _reply(client: ModelClient, cache: ReplyCache, request: ModelRequest) -> ModelReply:
    try:
        return await CachedClient(client, cache).ask(request)
    except EndpointDownError:
        raise
    except NoReplyError as error:
        raise NoLabel(f"unanswered ({error})") from None


def p_of_a(reply: ModelReply) -> float:
    """P(A) / (P(A) + P(B)) at the first token that may be one of the letters, however it is written: `A`, ` A`, `(A`, `**A**`.

    Raises:
        NoLabel: no token has them among its likeliest.
    """
    for alternatives in reply.top_logprobs:
        mass = {"A": 0.0, "B": 0.0}
        for token, logprob in alternatives:
            letter = token.strip(" \t\n()*\"'.:")
            if letter in mass:
                mass[letter] += math.exp(logprob)
        if sum(mass.values()) >= LEAST_MASS:
            return mass["A"] / sum(mass.values())
    raise NoLabel("neither letter is among the likeliest tokens")


def drawn(constitution: Constitution, prompt: Prompt, seed: int) -> Principle:
    """The principle of one comparison."""
    allowed = [p for p in constitution.principles if not prompt.principles or p.id in prompt.principles]
    return random.Random(f"{seed}:{prompt.language}:{prompt.id}:prefer").choice(allowed)  # noqa: S311  (a draw, not a secret)
