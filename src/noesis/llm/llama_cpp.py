"""A GGUF model in llama.cpp (https://github.com/xorbitsai/xllamacpp), in a process of its own.

`LlamaServer` answers over HTTP; `LlamaEngine` answers calls.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

from noesis.core.console import Progress
from noesis.core.errors import ModelError
from noesis.core.i18n import _
from noesis.core.messages import Message
from noesis.core.text import any_of, break_control_tokens
from noesis.llm.gguf.header import REMAKE, read_header
from noesis.llm.gguf.tokens import special_tokens
from noesis.llm.isolated.llama_process import LlamaProcess

IDLE_POLL_S = 0.1
UBATCH = 512  # tokens that llama.cpp computes at once


def load_llama_server(
    model: Path, *, adapter: Path | None = None, parallel: int = 1, context: int = 4096
) -> LlamaProcess:
    """Start an xllamacpp server for `model`.

    Args:
        adapter: a GGUF adapter for the model, at scale 1 unless a request says otherwise.
        parallel: how many requests are served at once.
        context: tokens of prompt and answer of each request.

    Raises:
        ModelError: a file is missing, not GGUF or truncated, or of another architecture or base.
    """
    for file in (model, adapter):
        if file is not None:
            read_header(file)
    settings: dict[str, Any] = {
        "model": {"path": str(model)},
        "n_ctx": context * parallel,
        "n_parallel": parallel,
        "n_threads_http": parallel + 4,  # one for each request under way, and some for /slots
        "n_batch": UBATCH,  # long prompts are computed in pieces, and others' answers go on in between
        "cache_ram_mib": 0,  # else up to 8 GB of old prompts are cached, whatever adapter they were computed with
    }
    if adapter is not None:
        settings["lora_adapters"] = [{"path": str(adapter), "scale": 1.0}]
    try:
        return LlamaProcess(settings)
    except ModelError as error:
        what = _("{model} with the adapter {adapter}", model=model, adapter=adapter) if adapter else str(model)
        raise ModelError(
            _(
                "llama.cpp can't load {what} (truncated, too large for the memory, or of an unknown architecture): "
                "{error}; {remake}",
                what=what,
                error=error,
                remake=REMAKE,
            )
        ) from None


class LlamaServer:
    """A loaded model that answers over HTTP at `url` with the key `key`, on the Unix socket `socket` if not None."""

    def __init__(self, model: Path, *, adapter: Path | None = None, parallel: int = 8, context: int = 4096) -> None:
        """Load the model, which takes seconds for a small one. Raises ModelError as `load_llama_server` does."""
        self._load = partial(load_llama_server, model, adapter=adapter, parallel=parallel, context=context)
        self._server = self._load()
        self.special = special_tokens(model)  # what no text of a conversation may contain

    @property
    def url(self) -> str:
        return self._server.url

    @property
    def key(self) -> str:
        return self._server.key

    @property
    def socket(self) -> str | None:
        return self._server.socket

    @property
    def running(self) -> bool:
        """Whether the process still is."""
        return self._server.running

    def restart(self) -> None:
        """Load the model again, in a new process with another socket and key. Raises ModelError as at first."""
        self._server.close()
        self._server = self._load()

    def busy(self) -> int:
        """The number of requests under way; 0 where the process has ended."""
        return sum(bool(slot["is_processing"]) for slot in self._server.get("/slots")) if self._server.running else 0

    def stop(self, patience_s: float) -> bool:
        """Free the model once it is idle, or after `patience_s` seconds; whether it was idle."""
        end = time.monotonic() + patience_s
        while (busy := self.busy()) and time.monotonic() < end:
            time.sleep(IDLE_POLL_S)
        self._server.close()
        return not busy


# Small models fall into loops under greedy decoding. The same mild penalty applies to every model and answer.
REPEAT_PENALTY = 1.1


class LlamaEngine:
    """A loaded GGUF model, with a LoRA adapter that each request switches on or off."""

    def __init__(self, model: Path, *, adapter: Path | None = None, parallel: int = 1, context: int = 4096) -> None:
        """Load `model`.

        Args:
            adapter: a GGUF adapter for it.
            parallel: requests at once.
            context: tokens of prompt and answer for each of them.

        Raises:
            ModelError: the file can't be loaded.
        """
        self._adapted = adapter is not None
        self.parallel = parallel
        self._server = load_llama_server(model, adapter=adapter, parallel=parallel, context=context)
        self._special = any_of(special_tokens(model))

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
        """The model's answer; `on_token` is called with each piece of text as it comes.

        Control tokens in `messages` are broken up, so that no text forges a message.

        Raises:
            ModelError: llama.cpp refuses the request (a prompt longer than the context, for instance).
        """
        request: dict[str, Any] = {
            "messages": [m | {"content": break_control_tokens(m["content"], self._special)} for m in messages],
            "max_tokens": max_tokens,
            "temperature": temperature,
            "seed": seed,
            "repeat_penalty": REPEAT_PENALTY,
            "stream": on_token is not None,
            "cache_prompt": False,  # else an answer could depend on earlier requests
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
            _(
                "llama.cpp refuses the request: {why}",
                why=error.get("message", error) if isinstance(error, dict) else error,
            )
        )
