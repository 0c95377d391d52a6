"""A reward model as a client, `--judge reward:PATH[@BASE]` or `reward:HUB_NAME`: the reply is the number that it gives.

Requests that wait together are scored together; the same conversation is scored once, whoever asks.
"""

from __future__ import annotations

import asyncio
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from noesis.core.errors import ModelError
from noesis.core.files import sha256_json
from noesis.core.signals import native_request
from noesis.llm.clients.protocol import ModelReply, ModelRequest, NoReplyError
from noesis.llm.hub import is_hub_name
from noesis.llm.reward.folder import read_judge_folder, split_name

BATCH = 32  # conversations that are scored together
GATHER_S = 0.02  # seconds that the first of a batch waits for others
Waiting = dict[str, tuple[ModelRequest, "asyncio.Future[ModelReply]"]]


class RewardClient:
    """Use it inside one event loop. The last message of a request is the answer, whose role is assistant.

    kin: whether it was trained on the examples that the models which it judges are trained on
    words: the file of the bag of words that it has to beat; None for a model of others
    """

    concurrency = BATCH

    def __init__(self, name: str) -> None:
        """Load the model.

        Raises:
            ModelError: there is no such reward model.
        """
        from noesis.llm.reward.model import load_classifier, load_judge

        own = split_name(name)
        if own is not None:
            folder, base = own
            judge = read_judge_folder(folder)
            self._model, self.identity = load_judge(judge, base), judge.identity
            self.name, self.kin = judge.record.name, bool(judge.record.trained_on)
            self.words: Path | None = judge.words
        else:
            self._model, revision = load_classifier(name)
            self.name, self.kin, self.words = Path(name).name, False, None
            self.identity = f"reward:{name if is_hub_name(name) else self.name}@{revision}"
        self._waiting: Waiting = {}
        self._worker: asyncio.Task[None] | None = None
        self._pool = ThreadPoolExecutor(1)

    async def ask(self, request: ModelRequest) -> ModelReply:
        """The reward as text, which `float` reads to the same bits. Raises NoReplyError where there is none."""
        key = sha256_json(request.messages)
        if key not in self._waiting:
            self._waiting[key] = (request, asyncio.get_running_loop().create_future())
        if self._worker is None or self._worker.done():
            self._worker = asyncio.create_task(self._work())
        return await asyncio.shield(self._waiting[key][1])

    async def close(self) -> None:
        """Stop; a batch under way is not waited for."""
        if self._worker is not None:
            self._worker.cancel()
        self._pool.shutdown(wait=False, cancel_futures=True)

    async def _work(self) -> None:
        while self._waiting:
            await asyncio.sleep(GATHER_S)
            batch = list(self._waiting)[:BATCH]
            await self._serve(batch)
            for key in batch:
                del self._waiting[key]

    async def _serve(self, keys: list[str]) -> None:
        requests = [self._waiting[key][0] for key in keys]
        try:
            replies = await asyncio.get_running_loop().run_in_executor(self._pool, self._score, requests)
        except Exception as error:  # passed to the requests that wait for it
            if isinstance(error, ModelError) and len(keys) > 1:  # one of them is too long; the others may not be
                for key in keys:
                    await self._serve([key])
                return
            failure = NoReplyError(str(error)) if isinstance(error, ModelError) else error
            for key in keys:
                self._waiting[key][1].set_exception(failure)
            return
        for key, reply in zip(keys, replies, strict=True):
            self._waiting[key][1].set_result(reply)

    def _score(self, requests: list[ModelRequest]) -> list[ModelReply]:
        with native_request(self.name):
            conversations = [request.as_messages() for request in requests]
            found = self._model.rewards([(messages[:-1], messages[-1]["content"]) for messages in conversations])
            return [ModelReply(repr(reward), "stop", 0, 0, 0.0) for reward in found]
