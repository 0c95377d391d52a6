"""The models of a chat with a run: the tuned one, and the base once it is asked for."""

from __future__ import annotations

from pathlib import Path

from noesis.core.console import say
from noesis.core.errors import UsageError
from noesis.core.i18n import _
from noesis.llm.clients.chat_client import LLMClient
from noesis.llm.llama_cpp import LlamaServer
from noesis.pipeline.served.files import certified_gguf, find_base_gguf, served_files
from noesis.run.directory import Run
from noesis.serving.chat import CONTEXT, Answer, answer_function

STOP_S = 10.0  # for an answer under way


class ChatModels:
    """Each in a process of its own, until `close`."""

    def __init__(self, run: Run, *, quant: str | None = None, base: Path | None = None) -> None:
        """Load the tuned model.

        Args:
            quant: the kind of GGUF file; default: the best that passed the parity check.
            base: a GGUF file of the base; default: looked for when it is needed.

        Raises:
            RunError: the run holds no certified GGUF file. ModelError: it can't be loaded.
        """
        self._run, self._base = run, base
        self._files = served_files(run, quant=quant, base=base, lazy=True)
        self._started: list[tuple[LlamaServer, LLMClient]] = []
        say(_("  loading {name} …", name=(self._files.adapter or self._files.tuned or run.path).name))
        if self._files.tuned is None:
            self._tuned = self._start(self._files.base or certified_gguf(run), self._files.adapter)
        else:
            self._tuned = self._start(self._files.tuned)

    def answers(self, *, max_tokens: int, temperature: float) -> Answer:
        """The function that answers in a `ChatSession`."""
        return answer_function(
            self._tuned,
            self._base_client,
            max_tokens=max_tokens,
            temperature=temperature,
            scales=self._files.adapter is not None,
            special=self._started[0][0].special,
        )

    def close(self) -> None:
        """Free them."""
        for server, client in self._started:
            client.close()
            server.stop(STOP_S)
        self._started = []

    def _start(self, model: Path, adapter: Path | None = None) -> LLMClient:
        server = LlamaServer(model, adapter=adapter, parallel=1, context=CONTEXT)
        client = LLMClient(server.url + "/v1", server.key, "noesis", timeout_s=600, socket=server.socket)
        self._started.append((server, client))
        return client

    def _base_client(self) -> LLMClient:
        """One model with its adapter, which each request switches, or a second one."""
        if self._files.tuned is None or len(self._started) > 1:
            return self._started[-1][1]
        file = self._base or find_base_gguf(self._run)
        if file is None:
            raise UsageError(_("no GGUF file of the base model was found: name it with --base when you start the chat"))
        return self._start(file)
