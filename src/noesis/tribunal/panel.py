"""The panel: which models judge, by which rubrics, and whether they may decide; `open_panel` makes one from SPECs."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

from noesis.core.config import RewardSection, TribunalSection
from noesis.core.console import Progress, say
from noesis.core.errors import UsageError
from noesis.core.machine.folders import cache_folder
from noesis.core.project import Project
from noesis.llm.clients.open import close_clients, open_clients
from noesis.llm.clients.protocol import ModelClient
from noesis.llm.clients.reply_cache import ReplyCache, open_cache
from noesis.llm.clients.spec import ModelSpec
from noesis.llm.clients.spending import Spending
from noesis.tribunal.calibration_store import Calibration, grown_since, load_calibration, unfit_reason
from noesis.tribunal.court import REWARD
from noesis.tribunal.judge import JudgeCase, judge
from noesis.tribunal.reward.client import RewardClient
from noesis.tribunal.reward.scale import Scale
from noesis.tribunal.reward.seat import RewardSeat, judge_by_reward, stored_scale, why_not_seated
from noesis.tribunal.rubric import JUDGES, RubricSet, load_rubrics
from noesis.tribunal.verdict import Unscored, Verdict


@dataclass(frozen=True)
class JudgePanel:
    """Models that judge. Each takes all three roles: three roles of one model are three criteria, not three judges.

    Use it as `async with panel:` to close its clients at the end, inside the event loop that they were used in.

    calibrations: of each client; None where it was never calibrated with these rubrics
    scales: of reward models among the clients, by identity
    seat: a reward model beside the judges; its verdict follows theirs
    """

    rubrics: RubricSet
    clients: Sequence[ModelClient]
    cache: ReplyCache
    calibrations: Sequence[Calibration | None] = ()
    scales: Mapping[str, Scale] = field(default_factory=dict)
    seat: RewardSeat | None = None

    @property
    def names(self) -> list[str]:
        return [client.name for client in self.clients]

    @property
    def unfit_reason(self) -> str | None:
        """Why these judges may not decide; None if they may."""
        return unfit_reason(self.calibrations or [None] * len(self.clients), self.names)

    async def judge(
        self, cases: Sequence[JudgeCase], judges: Sequence[Sequence[str]] | None = None, *, what: str = "judge"
    ) -> list[list[Verdict | Unscored]]:
        """All verdicts on each case, in the order of the cases.

        Args:
            judges: the judges of each case; all three where None.
            what: the work's name on the progress bar.

        Raises:
            CapError: the cap is reached; what was judged is in the cache.
        """
        jobs: list[tuple[int, ModelClient, str]] = [
            (i, client, name)
            for i in range(len(cases))
            for name in (judges[i] if judges else JUDGES)
            for client in self.clients
        ]
        # one rubric in one language after another: their prompts share a prefix, which servers cache
        jobs.sort(key=lambda job: (JUDGES.index(job[2]), cases[job[0]].language))
        if self.seat is not None:
            jobs += [(i, self.seat.client, REWARD) for i in range(len(cases))]
        slots = {id(client): asyncio.Semaphore(2 * client.concurrency) for client in self._all}
        errors: list[BaseException] = []
        with Progress(what, len(jobs), "verdicts") as progress:

            async def work(i: int, client: ModelClient, name: str) -> Verdict | Unscored:
                async with slots[id(client)]:
                    if errors:
                        raise errors[0]
                    try:
                        verdict = await self._verdict(client, name, cases[i])
                    except BaseException as error:  # requests under way are paid for and may finish; no other starts
                        errors.append(error)
                        raise
                progress.advance(1)
                return verdict

            results = await asyncio.gather(*(work(*job) for job in jobs), return_exceptions=True)
        if errors:
            raise errors[0]
        verdicts: list[list[Verdict | Unscored]] = [[] for _ in cases]
        for (i, _, _), verdict in zip(jobs, results, strict=True):
            assert not isinstance(verdict, BaseException)
            verdicts[i].append(verdict)
        return verdicts

    async def _verdict(self, client: ModelClient, name: str, case: JudgeCase) -> Verdict | Unscored:
        if isinstance(client, RewardClient):
            scale = self.seat.scale if name == REWARD and self.seat else self.scales.get(client.identity, Scale())
            digest = "" if name == REWARD else self.rubrics.digest(name)
            return await judge_by_reward(client, name, digest, case, self.cache, scale)
        return await judge(client, self.rubrics, self.rubrics.rubrics[name], case, self.cache)

    @property
    def _all(self) -> list[ModelClient]:
        return [*self.clients, *([self.seat.client] if self.seat else [])]

    async def close(self) -> None:
        await close_clients(self._all)

    async def __aenter__(self) -> JudgePanel:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()


def read_rubrics(project: Project) -> RubricSet:
    """The project's three rubrics. Raises ConfigError."""
    return load_rubrics(project.tribunal / "judges")


def make_panel(
    project: Project, clients: Sequence[ModelClient], cache: ReplyCache, rubrics: RubricSet | None = None
) -> JudgePanel:
    """A panel of clients that are open already, with what the project knows of them.

    Args:
        rubrics: the project's, if they have been read before.
    """
    rubrics = rubrics or read_rubrics(project)
    found = [load_calibration(project.calibrations, client.identity, rubrics) for client in clients]
    for client, calibration in zip(clients, found, strict=True):
        if calibration and (date := grown_since(calibration, project.tribunal)):
            say(f"  {client.name}: its calibration ({calibration.pairs} pairs) is of the benchmark before {date}")
    scales = {client.identity: stored_scale(project.calibrations, client.identity, rubrics) for client in clients}
    return JudgePanel(
        rubrics, clients, cache, found, {identity: scale for identity, scale in scales.items() if scale is not None}
    )


def take_seat(project: Project, section: RewardSection, rubrics: RubricSet) -> RewardSeat | None:
    """The reward model that the settings seat beside the judges; None if they seat none, or it may not decide.

    Raises:
        ModelError: there is no such reward model.
    """
    if section.role == "off" or section.path is None:
        return None
    inside = project.root / section.path
    client = RewardClient(str(inside if inside.is_dir() else section.path))
    if why := why_not_seated(project.calibrations, client, section.path, rubrics):
        say(f"  tribunal.reward has no say: {why}")
        return None
    scale = stored_scale(project.calibrations, client.identity, rubrics)
    assert scale is not None
    seat = RewardSeat(client, section.role, scale)
    say(f"  {seat.describe()}")
    return seat


@contextmanager
def open_panel(
    project: Project,
    specs: Sequence[ModelSpec],
    section: TribunalSection,
    spending: Spending,
    *,
    own: Path | None = None,
    replies: Path | None = None,
    rubrics: RubricSet | None = None,
) -> Iterator[JudgePanel]:
    """The panel of the judges that `specs` name; the reply cache is closed at the end of the block.

    Args:
        own: the GGUF file that `self` means.
        replies: the reply cache, whose earlier spending the cap counts; where None, the one that all projects share,
            and the cap counts this command's alone.
        rubrics: the project's, if they have been read before.

    Raises:
        UsageError: the same judge twice. ConfigError: a rubric is wrong.
        ModelError: a judge can't be loaded, or has no price though there is a cap.
    """
    rubrics = rubrics or read_rubrics(project)
    others = iter(open_clients([spec for spec in specs if spec.kind != "reward"], section, spending, own=own))
    clients = [RewardClient(spec.model) if spec.kind == "reward" else next(others) for spec in specs]
    if len({client.identity for client in clients}) < len(clients):
        raise UsageError("the same judge is named twice: one model has one vote")
    with open_cache(replies or cache_folder() / "tribunal" / "replies.sqlite") as cache:
        if replies is not None:
            spending.resume(cache)
        panel = make_panel(project, clients, cache, rubrics)
        yield replace(panel, seat=take_seat(project, section.reward, rubrics))
