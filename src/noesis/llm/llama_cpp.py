"""A GGUF model in llama.cpp inside this process (https://github.com/xorbitsai/xllamacpp).

`LlamaServer` answers over HTTP on 127.0.0.1, with a key of its own; `LlamaEngine` answers calls. Freeing a server while
a request is under way never returns, and signals are then ignored: a server is freed once `/slots` reports it idle.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from noesis.core.console import Progress
from noesis.core.device import usable_threads
from noesis.core.errors import MissingExtra, ModelError
from noesis.core.messages import Message
from noesis.llm.http import Http
from noesis.llm.http_reply import parse_json

IDLE_POLL_S, SLOTS_S = 0.1, 10.0
REMAKE = "make it again with  noesis gguf RUN --again"


def load_llama_server(
    model: Path, *, key: str, adapter: Path | None = None, parallel: int = 1, context: int = 4096
) -> Any:
    """Start an xllamacpp server for `model`.

    Args:
        key: the API key that its port requires.
        adapter: a GGUF adapter for the model, at scale 1 unless a request says otherwise.
        parallel: how many requests are served at once.
        context: tokens of prompt and answer of each request.

    Raises:
        ModelError: a file is missing, not GGUF or truncated, or of another architecture or base.
    """
    try:
        import xllamacpp
    except ImportError:
        raise MissingExtra("xllamacpp", "gguf") from None
    for file in (model, adapter):
        if file is not None:
            check_gguf(file)
    params = xllamacpp.CommonParams()
    params.model.path = str(model)
    params.n_ctx, params.n_parallel = context * parallel, parallel
    params.n_threads_http = parallel + 4  # one for each request under way, and some for /slots
    params.cache_ram_mib = 0  # else up to 8 GB of old prompts are cached, whatever adapter they were computed with
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = usable_threads()
    params.hostnames, params.port = ["127.0.0.1"], 0
    params.api_keys = [key]
    params.offline, params.ui, params.verbosity = True, False, 0
    if adapter is not None:
        lora = xllamacpp.CommonAdapterLoraInfo()
        lora.path, lora.scale = str(adapter), 1.0
        params.lora_adapters = [lora]
    try:
        return xllamacpp.Server(params)
    except RuntimeError as error:
        what = f"{model} with the adapter {adapter}" if adapter else str(model)
        raise ModelError(
            f"llama.cpp can't load {what} (truncated, too large for the memory, or of an unknown architecture): "
            f"{error}; {REMAKE}"
        ) from None


def check_gguf(file: Path) -> None:
    """Check the first bytes of `file`.

    Raises:
        ModelError: the file is missing, or is not GGUF.
    """
    if not file.is_file():
        raise ModelError(f"{file} does not exist: make it with  noesis gguf RUN")
    with open(file, "rb") as f:
        head = f.read(8)
    if head[:4] != b"GGUF" or int.from_bytes(head[4:8], "little") not in (2, 3):
        raise ModelError(f"{file} is not a GGUF file (it begins with {head[:4]!r}); {REMAKE}")


class LlamaServer:
    """A loaded model that answers over HTTP at `url` with the API key `key`."""

    def __init__(self, model: Path, *, adapter: Path | None = None, parallel: int = 8, context: int = 4096) -> None:
        """Load the model, which takes seconds for a small one. Raises ModelError as `load_llama_server` does."""
        self.key = secrets.token_urlsafe(24)
        self._server = load_llama_server(model, key=self.key, adapter=adapter, parallel=parallel, context=context)
        self.url = str(self._server.listening_address)
        self._http = Http(self.url, {"Authorization": f"Bearer {self.key}"}, timeout_s=SLOTS_S)

    def busy(self) -> int:
        """The number of requests under way."""
        reply = self._http.request("GET", self.url + "/slots", deadline_s=SLOTS_S)
        return sum(bool(slot["is_processing"]) for slot in parse_json(reply.body))

    def stop(self, patience_s: float) -> bool:
        """Free the model once it is idle; False, and it stays, if it is not idle within `patience_s` seconds."""
        end = time.monotonic() + patience_s
        while self.busy():
            if time.monotonic() > end:
                return False
            time.sleep(IDLE_POLL_S)
        self._http.close()
        self._server = None
        return True


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
        self._server = load_llama_server(
            model, key=secrets.token_urlsafe(24), adapter=adapter, parallel=parallel, context=context
        )

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

        Raises:
            ModelError: llama.cpp refuses the request (a prompt longer than the context, for instance).
        """
        request: dict[str, Any] = {
            "messages": messages,
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
            f"llama.cpp refuses the request: {error.get('message', error) if isinstance(error, dict) else error}"
        )
