"""llama.cpp behind one small class: several answers at once, streaming, base and tuned from one process.

xllamacpp always opens a port; here it is one on 127.0.0.1 with a random key, and requests do not go through it.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from noesis.console import Progress
from noesis.constitution.conversation import Message
from noesis.errors import ModelError
from noesis.serve.backend import load

# Small models fall into loops under greedy decoding; the same mild penalty for every model and answer.
REPEAT_PENALTY = 1.1


class Engine:
    """A loaded GGUF model, with a LoRA adapter that each request switches on or off."""

    def __init__(self, model: Path, *, adapter: Path | None = None, parallel: int = 1, context: int = 4096) -> None:
        """Load `model`.

        Args:
            adapter: a GGUF adapter for it.
            parallel: how many requests are served at once.
            context: tokens of prompt and answer for each of them.

        Raises:
            ModelError: the file can't be loaded.
        """
        self._adapted = adapter is not None
        self.parallel = parallel
        self._server = load(model, key=secrets.token_urlsafe(24), adapter=adapter, parallel=parallel, context=context)

    def chat(
        self,
        messages: list[Message],
        *,
        max_tokens: int = 512,
        temperature: float = 0.0,
        seed: int = 0,
        adapter: bool = True,
        on_token: Callable[[str], None] | None = None,
    ) -> str:
        """The model's answer; with `on_token` each piece is handed over as it comes.

        Raises:
            ModelError: llama.cpp refuses the request (a prompt longer than the context, say).
        """
        request: dict[str, Any] = {
            "messages": messages,
            "max_tokens": max_tokens,
            "temperature": temperature,
            "seed": seed,
            "repeat_penalty": REPEAT_PENALTY,
            "stream": on_token is not None,
            "cache_prompt": False,  # else an answer could depend on what was asked before
        }
        if self._adapted:
            request["lora"] = [{"id": 0, "scale": 1.0 if adapter else 0.0}]
        pieces: list[str] = []

        def receive(chunk: Any) -> None:
            _raise_on_error(chunk)
            for choice in chunk.get("choices", []) if isinstance(chunk, dict) else []:
                if text := choice["delta"].get("content"):
                    pieces.append(text)
                    if on_token is not None:
                        on_token(text)

        if on_token is not None:
            self._server.handle_chat_completions(request, receive)
            return "".join(pieces)
        answer = self._server.handle_chat_completions(request)
        _raise_on_error(answer)
        return str(answer["choices"][0]["message"]["content"])

    def answer_all(
        self, conversations: list[list[Message]], *, max_tokens: int, adapter: bool, progress: Progress | None = None
    ) -> list[str]:
        """One greedy answer to each conversation, `parallel` at a time, in order."""

        def one(messages: list[Message]) -> str:
            text = self.chat(messages, max_tokens=max_tokens, adapter=adapter)
            if progress is not None:
                progress.advance(1)
            return text

        with ThreadPoolExecutor(self.parallel) as pool:
            return list(pool.map(one, conversations))


def _raise_on_error(answer: Any) -> None:
    if isinstance(answer, dict) and ("error" in answer or "choices" not in answer):
        error = answer.get("error", answer)
        raise ModelError(
            f"llama.cpp refuses the request: {error.get('message', error) if isinstance(error, dict) else error}"
        )
