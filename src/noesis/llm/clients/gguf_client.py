"""A GGUF model in a process of its own, by xllamacpp: several requests at once, structured output by a grammar of the
schema.

llama.cpp does not show the schema to the model, so the prompt repeats it. The requests of one judge share a prefix,
which llama.cpp keeps in its cache.
"""

from __future__ import annotations

import asyncio
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from noesis.core.device import usable_threads
from noesis.core.errors import ModelError
from noesis.core.files import sha256_file
from noesis.core.signals import native_request
from noesis.core.text import any_of, break_control_tokens
from noesis.llm.clients.chat_reply import read_chat_reply, read_usage
from noesis.llm.clients.protocol import ModelReply, ModelRequest, NoReplyError
from noesis.llm.gguf.tokens import special_tokens
from noesis.llm.isolated.llama_process import LlamaProcess

REASONING, SPAN = 240, 100  # characters at most
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
            "cpuparams": {"n_threads": usable_threads()},
            "cpuparams_batch": {"n_threads": usable_threads()},
        }
        try:
            self._server = LlamaProcess(settings)
        except ModelError as error:
            raise ModelError(f"llama.cpp can't load the judge {path}: {error}") from None
        self._special = any_of(special)
        self.name = name or path.name
        self.identity = f"gguf:{sha256_file(path)}"
        self.concurrency = parallel
        self._pool = ThreadPoolExecutor(parallel)

    async def ask(self, request: ModelRequest) -> ModelReply:
        """The model's reply. Raises NoReplyError where llama.cpp refuses (a prompt longer than the context, say)."""
        return await asyncio.get_running_loop().run_in_executor(self._pool, self._ask, request)

    def _ask(self, request: ModelRequest) -> ModelReply:
        body: dict[str, Any] = {
            "messages": [
                m | {"content": break_control_tokens(m["content"], self._special)} for m in request.as_messages()
            ],
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
            error = answer.get("error", answer) if isinstance(answer, dict) else answer
            raise NoReplyError(
                f"llama.cpp refuses the request: {error.get('message', error) if isinstance(error, dict) else error}"
            )
        try:
            reply = read_chat_reply(answer, logprobs=bool(request.logprobs), max_tokens=request.max_tokens)
        except ValueError as error:
            raise NoReplyError(f"llama.cpp gives {error}") from None
        usage = read_usage(answer, reply.text)
        prompt, completion = (usage.prompt_tokens, usage.completion_tokens) if usage else (0, 0)
        return ModelReply(reply.answer, reply.ending, prompt, completion, 0.0, top_logprobs=reply.top_logprobs)

    async def close(self) -> None:
        self._server.close()
        self._pool.shutdown(wait=False, cancel_futures=True)
