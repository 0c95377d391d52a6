"""A GGUF model in a process of its own, by xllamacpp: several requests at once, structured output by a grammar of the
schema.

llama.cpp does not show the schema to the model, so the prompt repeats it. The requests of one judge share a prefix,
which llama.cpp keeps in its cache; the endings of a `ScoreRequest` go through one slot one after another, so that what
they have in common is read once.
"""

from __future__ import annotations

import asyncio
import queue
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from noesis.core.errors import ModelError
from noesis.core.files import sha256_file
from noesis.core.i18n import _
from noesis.core.messages import Message
from noesis.core.signals import native_request
from noesis.core.text import any_of, break_control_tokens
from noesis.llm.clients.chat_reply import TokenEntry, read_chat_reply, read_usage
from noesis.llm.clients.protocol import ModelReply, ModelRequest, NoReplyError, ScoreRequest
from noesis.llm.gguf.tokens import special_tokens
from noesis.llm.isolated.llama_process import LlamaProcess

REASONING, SPAN = 240, 100  # characters at most
MOST_LOGPROBS = 100  # likeliest next tokens among which the choices of a ScoreRequest are looked for
PLACE = "noesis-ending-5e0d"  # where the endings of a ScoreRequest go in the rendered conversation
REPEAT_PENALTY = 1.1  # of free text: small models fall into loops


def bounded(schema: dict[str, Any]) -> dict[str, Any]:
    """The schema with a `maxLength` for free texts, so that a small model that rambles still closes its object."""
    longest = {
        name: REASONING if name == "reasoning" else SPAN
        for name, kind in schema["properties"].items()
        if "enum" not in kind
    }
    return schema | {
        "properties": {
            name: kind | ({"maxLength": longest[name]} if name in longest else {})
            for name, kind in schema["properties"].items()
        }
    }


class GgufClient:
    """A loaded GGUF model that judges or writes. It continues a last message whose role is assistant."""

    prefills = True

    def __init__(self, path: Path, *, name: str | None = None, parallel: int = 2, context: int = 8192) -> None:
        """Load `path`.

        Args:
            parallel: requests at once.
            context: tokens of one request with its reply.

        Raises:
            ModelError: it can't be loaded.
        """
        special = special_tokens(path)
        settings: dict[str, Any] = {
            "model": {"path": str(path)},
            "n_ctx": context * parallel,
            "n_parallel": parallel,
            "swa_full": True,  # else a layer with a window forgets a prefix that the next request shares
        }
        try:
            self._server = LlamaProcess(settings)
        except ModelError as error:
            raise ModelError(_("llama.cpp can't load the judge {path}: {error}", path=path, error=error)) from None
        self._special = any_of(special)
        self.name = name or path.name
        self.identity = f"gguf:{sha256_file(path)}"
        self.concurrency = parallel
        self._pool = ThreadPoolExecutor(parallel)
        self._slots: queue.SimpleQueue[int] = queue.SimpleQueue()  # of llama.cpp, free for a ScoreRequest
        for slot in range(parallel):
            self._slots.put(slot)

    async def ask(self, request: ModelRequest) -> ModelReply:
        """The model's reply. Raises NoReplyError where llama.cpp refuses (a prompt longer than the context, say)."""
        return await asyncio.get_running_loop().run_in_executor(self._pool, self._ask, request)

    async def scores(self, request: ScoreRequest, keep: Callable[[int, ModelReply], None]) -> None:
        """The likeliest next tokens after each ending. Raises NoReplyError as `ask` does."""
        loop = asyncio.get_running_loop()

        def pass_on(number: int, reply: ModelReply) -> None:
            loop.call_soon_threadsafe(keep, number, reply)

        await loop.run_in_executor(self._pool, self._score, request, pass_on)

    def _score(self, request: ScoreRequest, keep: Callable[[int, ModelReply], None]) -> None:
        slot = self._slots.get()
        try:
            with native_request(self.name):
                messages = self._harmless(request.conversation(PLACE))
                rendered = self._posted("/apply-template", {"messages": messages}).get("prompt")
                if not isinstance(rendered, str) or PLACE not in rendered:
                    raise NoReplyError(_("the model's chat template leaves out the end of the user's message"))
                head, _ignored, tail = rendered.rpartition(PLACE)
                for number, ending in enumerate(request.endings):
                    prompt = head + break_control_tokens(ending, self._special) + tail + request.opening
                    keep(number, self._next_tokens(prompt, slot, request.choices))
        finally:
            self._slots.put(slot)

    def _next_tokens(self, prompt: str, slot: int, choices: tuple[str, ...]) -> ModelReply:
        body = {
            "prompt": prompt,
            "n_predict": 1,
            "n_probs": MOST_LOGPROBS,
            "temperature": 0.0,
            "cache_prompt": True,
            "id_slot": slot,
        }
        answer = self._posted("/completion", body)
        try:
            entry = TokenEntry.model_validate(answer["completion_probabilities"][0])
            tokens = int(answer["tokens_evaluated"])
        except (LookupError, TypeError, ValueError):
            raise NoReplyError(_("llama.cpp gives no probabilities of the next token")) from None
        likely = entry.top_logprobs or ()
        found = tuple((t.token, t.logprob) for t in likely if t.logprob is not None and t.token.strip() in choices)
        return ModelReply(entry.token, "length", tokens, 1, 0.0, top_logprobs=(found,))

    def _posted(self, path: str, body: dict[str, Any]) -> dict[str, Any]:
        try:
            answer = self._server.post(path, body)
        except ModelError as ended:
            raise NoReplyError(str(ended)) from None
        if not isinstance(answer, dict) or "error" in answer:
            raise NoReplyError(_refusal(answer))
        return answer

    def _harmless(self, messages: tuple[tuple[str, str], ...]) -> list[Message]:
        """The messages, none of whose texts can begin or end one."""
        return [{"role": role, "content": break_control_tokens(text, self._special)} for role, text in messages]

    def _ask(self, request: ModelRequest) -> ModelReply:
        body: dict[str, Any] = {
            "messages": self._harmless(request.messages),
            "max_tokens": request.max_tokens,
            "temperature": request.temperature,
            "seed": request.seed,
            "cache_prompt": True,
        }
        if request.schema:
            body["response_format"] = {
                "type": "json_schema",
                "json_schema": {"name": "verdict", "strict": True, "schema": bounded(request.schema)},
            }
        elif request.logprobs:
            body |= {"logprobs": True, "top_logprobs": request.logprobs}
        else:
            body["repeat_penalty"] = REPEAT_PENALTY
        with native_request(self.name):
            try:
                answer = self._server.handle_chat_completions(body)
            except ModelError as ended:
                raise NoReplyError(str(ended)) from None
        if not isinstance(answer, dict) or "choices" not in answer:
            raise NoReplyError(_refusal(answer))
        try:
            reply = read_chat_reply(answer, logprobs=bool(request.logprobs), max_tokens=request.max_tokens)
        except ValueError as error:
            raise NoReplyError(_("llama.cpp gives {error}", error=error)) from None
        usage = read_usage(answer, reply.text)
        prompt, completion = (usage.prompt_tokens, usage.completion_tokens) if usage else (0, 0)
        return ModelReply(reply.answer, reply.ending, prompt, completion, 0.0, top_logprobs=reply.top_logprobs)

    async def close(self) -> None:
        self._server.close()
        self._pool.shutdown(wait=False, cancel_futures=True)


def _refusal(answer: Any) -> str:
    error = answer.get("error", answer) if isinstance(answer, dict) else answer
    return f"llama.cpp refuses the request: {error.get('message', error) if isinstance(error, dict) else error}"
