"""`serve` and `chat`: use the model of a run from the same program."""

from __future__ import annotations

import asyncio
import importlib.util
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from noesis.core.errors import MissingExtra, ModelError
from noesis.core.i18n import _
from noesis.core.messages import Message
from noesis.run.directory import Run, load_run

if TYPE_CHECKING:
    from noesis.llm.clients.chat_client import LLMClient
    from noesis.pipeline.served.chat_models import ChatModels
    from noesis.pipeline.served.open_server import OpenServer

START_S = 60.0  # from loaded models to accepted requests


class RunningServer:
    """A server in a thread of this program. Close it, or use it in a `with` block.

    Attributes:
        url: of the API, for every OpenAI client: `http://127.0.0.1:8017/v1`.
        key: to be sent as bearer token.
        models: ids of the tuned model and, where it is at hand, its base.
    """

    def __init__(self, opened: OpenServer) -> None:
        self._opened = opened
        self.url, self.key, self.models = f"{opened.server.url}/v1", opened.key, opened.server.models
        self.page = f"{opened.server.url}/"
        self._loop, self._stop, up = asyncio.new_event_loop(), asyncio.Event(), threading.Event()
        self._failure: BaseException | None = None

        async def work() -> None:
            try:
                await opened.server.run(up.set, self._stop)
            finally:
                if opened.live:
                    await opened.live.close()

        def run() -> None:
            try:
                self._loop.run_until_complete(work())
            except BaseException as error:
                self._failure = error
            finally:
                up.set()

        self._thread = threading.Thread(target=run, daemon=True, name="noesis-serve")
        self._thread.start()
        up.wait(START_S)
        if self._failure is not None:
            self.close()
            raise ModelError(_("the server could not start: {failure}", failure=self._failure)) from self._failure

    def client(self, model: str | None = None) -> LLMClient:
        """A client of one of its models; default: the tuned one."""
        from noesis.llm.clients.chat_client import LLMClient

        return LLMClient(self.url, self.key, model or self.models[0])

    def close(self) -> None:
        """Finish the requests in progress, then free the port and the models."""
        if not self._loop.is_closed():
            if self._thread.is_alive():
                self._loop.call_soon_threadsafe(self._stop.set)
            self._thread.join()
            self._opened.server.free()
            self._loop.close()

    def __enter__(self) -> RunningServer:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class Conversation:
    """A conversation with the tuned model. Close it, or use it in a `with` block.

    Attributes:
        messages: the system prompt and what was said since; may be changed.
    """

    def __init__(self, models: ChatModels, system: str, *, max_tokens: int, temperature: float) -> None:
        self._models, self._max_tokens = models, max_tokens
        self._answer = models.answers(max_tokens=max_tokens, temperature=temperature)
        self.messages: list[Message] = [{"role": "system", "content": system}]

    def ask(self, text: str, *, on_token: Callable[[str], None] | None = None) -> str:
        """The model's answer, without its analysis; `on_token` is called with each piece as it comes.

        Raises:
            ModelError: it gave none.
        """
        asked = [*self.messages, {"role": "user", "content": text}]
        answer = self._send(asked, base=False, on_token=on_token)
        self.messages = [*asked, {"role": "assistant", "content": answer}]
        return answer

    def ask_base(self, text: str, *, on_token: Callable[[str], None] | None = None) -> str:
        """What the base would answer here; it does not enter the conversation.

        Raises:
            UsageError: no GGUF file of the base was found. ModelError: it gave no answer.
        """
        return self._send([*self.messages, {"role": "user", "content": text}], base=True, on_token=on_token)

    def _send(self, messages: list[Message], *, base: bool, on_token: Callable[[str], None] | None) -> str:
        from noesis.serving.chat import fit_context

        return self._answer(fit_context(messages, self._max_tokens), base, on_token or (lambda _: None))

    def close(self) -> None:
        """Free the models."""
        self._models.close()

    def __enter__(self) -> Conversation:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def serve(
    run: Run | str | Path,
    *,
    host: str = "127.0.0.1",
    port: int = 0,
    key: str | None = None,
    ui: bool = False,
    judges: Sequence[str] = (),
    language: str | None = None,
    quant: str | None = None,
    base: str | Path | None = None,
    parallel: int = 8,
    context: int = 4096,
    max_tokens: int = 1024,
    timeout_s: float = 600.0,
    max_usd: float | None = None,
    project: str | Path | None = None,
) -> RunningServer:
    """Serve the tuned model and its base over an OpenAI-compatible API, until the result is closed.

    >>> with noesis.serve(run) as server:
    ...     client = server.client()
    ...     answer = client.complete([{"role": "user", "content": "What is courage?"}], max_tokens=8)
    >>> answer.completion_tokens <= 8
    True

    Args:
        port: 0 picks a free one.
        key: default: NOESIS_API_KEY, else a generated one.
        ui: also serve the page where base and tuned model answer side by side, at `page`.
        judges: SPECs of judges that the page may ask.
        language: of the system prompt; default: the run's.
        quant: the kind of GGUF file; default: the best that passed the parity check.
        base: a GGUF file of the base; default: looked for.
        parallel: requests at once; more get status 429.
        context: tokens of prompt and answer together.
        max_tokens: of an answer, at most.
        timeout_s: seconds of an answer, at most.
        max_usd: stop before the judges cost more than this.
        project: where the page keeps examples, and the judges' rubrics are.

    Raises:
        RunError: the run holds no certified GGUF file.
        UsageError: the port is in use, or the key too short.
        MissingExtra: the packages for serving are not installed.
    """
    require_serving_extra()
    from noesis.pipeline.served.open_server import open_server
    from noesis.serving.protocol import Limits

    opened = open_server(
        run if isinstance(run, Run) else load_run(run),
        host=host,
        port=port,
        key=key,
        ui=ui,
        judges=judges,
        language=language,
        quant=quant,
        base=None if base is None else Path(base),
        limits=Limits(parallel=parallel, context=context, max_tokens=max_tokens, request_s=timeout_s),
        max_usd=max_usd,
        project=None if project is None else Path(project),
    )
    return RunningServer(opened)


def chat(
    run: Run | str | Path,
    *,
    language: str | None = None,
    max_tokens: int = 400,
    temperature: float = 0.7,
    quant: str | None = None,
    base: str | Path | None = None,
) -> Conversation:
    """A conversation with the tuned model, which is loaded until the result is closed.

    >>> with noesis.chat(run, max_tokens=8, temperature=0) as conversation:
    ...     answer = conversation.ask("What is courage?")
    >>> [message["role"] for message in conversation.messages]
    ['system', 'user', 'assistant']

    Args:
        language: of the system prompt; default: the run's.
        max_tokens: of an answer.
        quant: the kind of GGUF file; default: the best that passed the parity check.
        base: a GGUF file of the base; default: looked for when it is asked.

    Raises:
        RunError: the run holds no certified GGUF file.
        MissingExtra: the packages for serving are not installed.
    """
    require_serving_extra()
    from noesis.pipeline.served.chat_models import ChatModels
    from noesis.pipeline.served.open_server import constitution_and_language

    found = run if isinstance(run, Run) else load_run(run)
    constitution, spoken = constitution_and_language(found, language)
    models = ChatModels(found, quant=quant, base=None if base is None else Path(base))
    return Conversation(models, constitution.system_prompt[spoken], max_tokens=max_tokens, temperature=temperature)


def require_serving_extra(*more: str) -> None:
    """Raise MissingExtra before any model is loaded, if a package for serving is not installed."""
    for package in ("aiohttp", "xllamacpp", *more):
        if importlib.util.find_spec(package) is None:
            raise MissingExtra(package, "gguf")
