"""Who judges."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass

from noesis.core.console import Progress
from noesis.llm.clients.protocol import ModelClient
from noesis.llm.clients.reply_cache import ReplyCache
from noesis.tribunal.judge import JudgeCase, judge
from noesis.tribunal.rubric import JUDGES, RubricSet
from noesis.tribunal.verdict import Unscored, Verdict


@dataclass
class JudgePanel:
    """Who judges: every model sits in all three seats; three roles on one model are criteria, not three judges."""

    rubrics: RubricSet
    clients: list[ModelClient]
    cache: ReplyCache

    async def judge(
        self, cases: Sequence[JudgeCase], judges: Sequence[Sequence[str]] | None = None, *, what: str = "judge"
    ) -> list[list[Verdict | Unscored]]:
        """All verdicts on each case, in order.

        Args:
            judges: which judges each case goes before; all three where None.

        Raises:
            CapError: the cap is reached; what was judged is in the cache.
        """
        asked = [
            (i, client, name)
            for i in range(len(cases))
            for name in (judges[i] if judges else JUDGES)
            for client in self.clients
        ]
        # one rubric in one language after the other: their prompts begin alike, and servers keep that beginning
        asked.sort(key=lambda one: (JUDGES.index(one[2]), cases[one[0]].language))
        found: list[list[Verdict | Unscored]] = [[] for _ in cases]
        slots = {id(client): asyncio.Semaphore(2 * client.concurrency) for client in self.clients}
        with Progress(what, len(asked), "verdicts") as progress:
            ended: list[BaseException] = []

            async def one(i: int, client: ModelClient, name: str) -> Verdict | Unscored:
                async with slots[id(client)]:
                    if ended:
                        raise ended[0]
                    try:
                        verdict = await judge(client, self.rubrics, self.rubrics.rubrics[name], cases[i], self.cache)
                    except BaseException as error:  # the others under way are paid for: they may finish, none begins
                        ended.append(error)
                        raise
                progress.advance(1)
                return verdict

            results = await asyncio.gather(*(one(i, client, name) for i, client, name in asked), return_exceptions=True)
        if ended:
            raise ended[0]
        for (i, _, _), verdict in zip(asked, results, strict=True):
            assert not isinstance(verdict, BaseException)
            found[i].append(verdict)
        return found
