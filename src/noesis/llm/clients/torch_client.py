"""A transformers model in this process that writes (`--model torch:NAME`, `--critic torch:NAME`) or is read as a judge
(`--judge torch:NAME --ask score`); on a GPU where there is one.

Requests that wait together are batched: they share each pass through the weights, and a prefix that all have is
computed once (`llm/generation/batch.py`). On a CPU that is several times the speed of one request after another
(`python benchmarks/constitution.py`).
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from noesis.core.config import Quantization
from noesis.core.errors import ModelError
from noesis.core.signals import native_request
from noesis.llm.clients.protocol import ModelReply, ModelRequest, NoReplyError, ScoreRequest
from noesis.llm.clients.thoughts import without_thought
from noesis.llm.hub import find_model
from noesis.llm.tokenizer import load_tokenizer

BATCH = 32  # requests that share a pass
GATHER_S = 0.02  # seconds that the first request of a batch waits for others
Waiting = tuple[ModelRequest | ScoreRequest, "asyncio.Future[list[ModelReply]]"]


class TorchClient:
    """A transformers model in this process; use it inside one event loop.

    It continues a last message whose role is assistant.
    """

    prefills = True

    def __init__(self, name: str, *, batch: int = BATCH) -> None:
        """Load the model.

        Args:
            name: smollm2, a model folder, or a name on the Hub.
            batch: requests that share a pass; 1 answers them one by one.

        Raises:
            ModelError: there is no such model.
        """
        import torch

        from noesis.core.libraries import quiet_libraries
        from noesis.llm.causal_model import load_merged_model

        quiet_libraries()
        found = find_model(name)
        self._tokenizer = load_tokenizer(found.path)
        self._model = load_merged_model(
            found.path,
            None,
            quantization=Quantization(load_in_4bit=False),
            dtype="bfloat16",
            device="cuda" if torch.cuda.is_available() else "cpu",
        )
        self.name = Path(name).name
        self.identity = f"torch:{found.name if '/' not in found.name else Path(found.name).name}@{found.revision}"
        self.concurrency = batch
        # the endings of one request fill a processor, and a stop loses no more than that
        self._most_scored = batch if self._model.device.type == "cuda" else 1
        self._waiting: list[Waiting] = []
        self._worker: asyncio.Task[None] | None = None
        self._pool = ThreadPoolExecutor(1)

    async def ask(self, request: ModelRequest) -> ModelReply:
        """The model's reply. Raises NoReplyError where the request is longer than the model's context."""
        (reply,) = await self._queued(request)
        return reply

    async def scores(self, request: ScoreRequest, keep: Callable[[int, ModelReply], None]) -> None:
        """How likely the choices are after each ending. Raises NoReplyError as `ask` does."""
        for number, reply in enumerate(await self._queued(request)):
            keep(number, reply)

    async def _queued(self, request: ModelRequest | ScoreRequest) -> list[ModelReply]:
        future: asyncio.Future[list[ModelReply]] = asyncio.get_running_loop().create_future()
        self._waiting.append((request, future))
        if self._worker is None or self._worker.done():
            self._worker = asyncio.create_task(self._work())
        return await future

    async def close(self) -> None:
        """Stop; a batch under way is not waited for."""
        if self._worker is not None:
            self._worker.cancel()
        self._pool.shutdown(wait=False, cancel_futures=True)

    async def _work(self) -> None:
        while self._waiting:
            await asyncio.sleep(GATHER_S)
            if batch := self._next_batch():
                await self._serve(batch)

    async def _serve(self, batch: list[Waiting]) -> None:
        loop = asyncio.get_running_loop()
        try:
            replies = await loop.run_in_executor(self._pool, self._answer, [request for request, _ in batch])
        except Exception as error:  # passed to the requests that wait for it
            if isinstance(error, ModelError) and len(batch) > 1:  # one of them is too long; the others may not be
                for each in batch:
                    await self._serve([each])
                return
            for _, future in batch:
                if not future.done():
                    future.set_exception(NoReplyError(str(error)) if isinstance(error, ModelError) else error)
            return
        for (_, future), found in zip(batch, replies, strict=True):
            if not future.done():
                future.set_result(found)

    def _next_batch(self) -> list[Waiting]:
        """The requests of the next pass: of one kind, that of which most are waiting."""
        self._waiting = [entry for entry in self._waiting if not entry[1].done()]  # without the cancelled ones
        if not self._waiting:
            return []
        (kind, _), *_ = Counter(_kind(request) for request, _ in self._waiting).most_common(1)
        batch = [entry for entry in self._waiting if _kind(entry[0]) == kind]
        batch = batch[: self._most_scored if isinstance(batch[0][0], ScoreRequest) else self.concurrency]
        taken = {id(future) for _, future in batch}
        self._waiting = [entry for entry in self._waiting if id(entry[1]) not in taken]
        return batch

    def _answer(self, requests: list[ModelRequest | ScoreRequest]) -> list[list[ModelReply]]:
        """The replies to each request; all requests are of one kind."""
        scored = [request for request in requests if isinstance(request, ScoreRequest)]
        written = [request for request in requests if isinstance(request, ModelRequest)]
        with native_request(self.name):
            return self._score(scored) if scored else [[reply] for reply in self._write(written)]

    def _score(self, requests: list[ScoreRequest]) -> list[list[ModelReply]]:
        from noesis.llm.generation.scores import score_endings

        groups = [[request.as_messages(ending) for ending in request.endings] for request in requests]
        return [
            [ModelReply("", "length", one.tokens, 1, 0.0, top_logprobs=(one.likely,)) for one in endings]
            for endings in score_endings(self._model, self._tokenizer, groups, requests[0].choices)
        ]

    def _write(self, requests: list[ModelRequest]) -> list[ModelReply]:
        from noesis.llm.generation.batch import generate_batch, next_tokens

        conversations, first = [request.as_messages() for request in requests], requests[0]
        if first.logprobs:
            tops = next_tokens(self._model, self._tokenizer, conversations, first.logprobs)
            return [ModelReply(top[0][0], "length", 0, 1, 0.0, top_logprobs=(tuple(top),)) for top in tops]
        texts = generate_batch(
            self._model,
            self._tokenizer,
            conversations,
            max_tokens=first.max_tokens,
            temperature=first.temperature,
            seeds=[request.seed for request in requests],
            batch=self.concurrency,
        )
        counts = [len(self._tokenizer(text)["input_ids"]) for text in texts]
        return [
            ModelReply(without_thought(text), "length" if n >= first.max_tokens - 1 else "stop", 0, n, 0.0)
            for text, n in zip(texts, counts, strict=True)
        ]


def _kind(request: ModelRequest | ScoreRequest) -> tuple[Any, ...]:
    """What the requests of one batch must have in common: lengths, sampling, and the first of several messages."""
    if isinstance(request, ScoreRequest):
        return (request.choices,)
    return (
        request.max_tokens,
        request.temperature,
        request.logprobs,
        request.messages[0] if len(request.messages) > 1 else None,
    )
