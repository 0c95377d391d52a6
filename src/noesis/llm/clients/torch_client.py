"""Who writes and who criticises: `--model SPEC`, `--critic SPEC`. An endpoint, a GGUF file, or weights in this process, many requests at once.

`openai:BASE_URL:MODEL` and `gguf:PATH` are those of the Tribunal's judges. `torch:NAME` (smollm2, a model folder, a Hub name) answers
packed: requests that wait together share each pass through the weights, and what they all begin with is read once (`serve.batch`). On a
processor that is several times the speed of one request after another (`python benchmarks/constitution.py`).
"""

from __future__ import annotations

import asyncio
from collections import Counter
from pathlib import Path
from typing import Any

from noesis.core.config import Quantization
from noesis.core.errors import ModelError
from noesis.llm.clients.protocol import ModelReply, ModelRequest, NoReplyError
from noesis.llm.hub import find_model
from noesis.llm.tokenizer import load_tokenizer

PACK = 32  # requests that share a pass
GATHER_S = 0.02  # how long the first request of a pass waits for others


class TorchClient:
    """A model of transformers in this process; use it inside one event loop."""

    prefills = True

    def __init__(self, name: str, *, pack: int = PACK) -> None:
        """Load the model.

        Args:
            name: as for `--model` elsewhere.
            pack: requests that share a pass; 1 answers one after another.

        Raises:
            ModelError: there is no such model.
        """
        from noesis.core.libraries import quiet_libraries
        from noesis.llm.torch_generate import load_merged_model

        quiet_libraries()
        found = find_model(name)
        self._tokenizer = load_tokenizer(found.path)
        self._model = load_merged_model(
            found.path, None, quantization=Quantization(load_in_4bit=False), dtype="bfloat16"
        )
        self.name, self.identity = (
            Path(name).name,
            f"torch:{found.name if '/' not in found.name else Path(found.name).name}@{found.revision}",
        )
        self.concurrency = pack
        self._waiting: list[tuple[ModelRequest, asyncio.Future[ModelReply]]] = []
        self._worker: asyncio.Task[None] | None = None

    async def ask(self, request: ModelRequest) -> ModelReply:
        """The model's reply. Raises Unanswered where the request does not fit the model's window."""
        future: asyncio.Future[ModelReply] = asyncio.get_running_loop().create_future()
        self._waiting.append((request, future))
        if self._worker is None or self._worker.done():
            self._worker = asyncio.create_task(self._work())
        return await future

    async def close(self) -> None:
        if self._worker is not None:
            await self._worker

    async def _work(self) -> None:
        while self._waiting:
            await asyncio.sleep(GATHER_S)
            await self._serve(self._next())

    async def _serve(self, batch: list[tuple[ModelRequest, asyncio.Future[ModelReply]]]) -> None:
        try:
            replies = await asyncio.to_thread(self._answer, [request for request, _ in batch])
        except Exception as error:  # whoever waits must hear of it
            if (
                isinstance(error, ModelError) and len(batch) > 1
            ):  # one of them does not fit; the others must not suffer for it
                for each in batch:
                    await self._serve([each])
                return
            for _, future in batch:
                future.set_exception(NoReplyError(str(error)) if isinstance(error, ModelError) else error)
            return
        for (_, future), reply in zip(batch, replies, strict=True):
            if not future.done():
                future.set_result(reply)

    def _next(self) -> list[tuple[ModelRequest, asyncio.Future[ModelReply]]]:
        """The requests of the next pass: of one kind and one beginning, the kind of which most wait."""
        (kind, _), *_ = Counter(_kind(request) for request, _ in self._waiting).most_common(1)
        batch = [entry for entry in self._waiting if _kind(entry[0]) == kind][: self.concurrency]
        taken = {id(future) for _, future in batch}
        self._waiting = [entry for entry in self._waiting if id(entry[1]) not in taken]
        return batch

    def _answer(self, requests: list[ModelRequest]) -> list[ModelReply]:
        from noesis.llm.torch_generate import generate_batch, next_tokens

        talks, first = [request.as_messages() for request in requests], requests[0]
        if first.logprobs:
            tops = next_tokens(self._model, self._tokenizer, talks, first.logprobs)
            return [ModelReply(top[0][0], "length", 0, 1, 0.0, top_logprobs=(tuple(top),)) for top in tops]
        texts = generate_batch(
            self._model,
            self._tokenizer,
            talks,
            max_tokens=first.max_tokens,
            temperature=first.temperature,
            seeds=[request.seed for request in requests],
            batch=self.concurrency,
        )
        counts = [len(self._tokenizer(text)["input_ids"]) for text in texts]
        return [
            ModelReply(text, "length" if n >= first.max_tokens - 1 else "stop", 0, n, 0.0)
            for text, n in zip(texts, counts, strict=True)
        ]


def _kind(request: ModelRequest) -> tuple[Any, ...]:
    """What requests of one pass have in common."""
    return (
        request.max_tokens,
        request.temperature,
        request.logprobs,
        request.messages[0] if len(request.messages) > 1 else None,
    )
