"""The panel: which models judge, by which rubrics, and whether they may decide; `open_panel` makes one from SPECs."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

from noesis.core.config import RewardSection, TribunalSection
from noesis.core.console import Progress, say
from noesis.core.errors import UsageError
from noesis.core.i18n import _, retold
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
from noesis.tribunal.reading.asking import Asking, asking_of, open_asking, way_of
from noesis.tribunal.reading.evidence import quote_what_decides
from noesis.tribunal.reading.item_scores import read_judges
from noesis.tribunal.reward.client import RewardClient
from noesis.tribunal.reward.scale import Scale
from noesis.tribunal.reward.seat import RewardSeat, judge_by_reward, stored_scale, why_not_seated
from noesis.tribunal.rubric import JUDGES, RubricSet, load_rubrics
from noesis.tribunal.verdict import Unscored, Verdict

Job = tuple[int, ModelClient, Sequence[str]]  # an answer's number, who judges it, as which judges


@dataclass(frozen=True)
class JudgePanel:
    """Models that judge. Each takes all three roles: three roles of one model are three criteria, not three judges.

    Use it as `async with panel:` to close its clients at the end, inside the event loop that they were used in.

    calibrations: of each client; None where it was never calibrated with these rubrics
    askings: how each client is asked; empty: all of them quote
    scales: of reward models among the clients, by identity
    seat: a reward model beside the judges; its verdict follows theirs
    """

    rubrics: RubricSet
    clients: Sequence[ModelClient]
    cache: ReplyCache
    calibrations: Sequence[Calibration | None] = ()
    askings: Sequence[Asking] = ()
    scales: Mapping[str, Scale] = field(default_factory=dict)
    seat: RewardSeat | None = None

    @property
    def names(self) -> list[str]:
        return [client.name for client in self.clients]

    @property
    def identities(self) -> list[str]:
        """Of the judges: the same model, asked in another way, is another judge."""
        return [self._asking(client).identity(client.identity) for client in self.clients]

    @property
    def unfit_reason(self) -> str | None:
        """Why these judges may not decide; None if they may."""
        known = self.calibrations or [None] * len(self.clients)
        return unfit_reason(known, self.names, [way_of(identity) for identity in self.identities])

    def _asking(self, client: ModelClient) -> Asking:
        asked = {id(c): asking for c, asking in zip(self.clients, self.askings, strict=False)}
        return asked.get(id(client), Asking())

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
        seats: list[Job] = [
            (i, client, tuple(judges[i] if judges else JUDGES)) for i in range(len(cases)) for client in self.clients
        ]
        quoting: list[Job] = [
            (i, client, (name,)) for i, client, names in seats if self._asking(client).wording is None for name in names
        ]
        # one rubric in one language after another: their prompts share a prefix, which servers cache
        quoting.sort(key=lambda job: (JUDGES.index(job[2][0]), cases[job[0]].language))
        reading = [seat for seat in seats if self._asking(seat[1]).wording is not None]
        seated: list[Job] = [(i, self.seat.client, (REWARD,)) for i in range(len(cases))] if self.seat else []
        jobs = [*quoting, *reading, *seated]
        found: dict[tuple[int, int, str], Verdict | Unscored] = {}
        with Progress(what, sum(len(names) for _, _, names in jobs), _("verdicts")) as progress:

            async def work(i: int, client: ModelClient, names: Sequence[str]) -> None:
                for verdict in await self._verdicts(client, cases[i], names):
                    found[i, id(client), verdict.judge] = verdict
                progress.advance(len(names))

            await self._in_slots(jobs, work)
        voices = [
            [(id(c), name) for name in (judges[i] if judges else JUDGES) for c in self.clients]
            for i in range(len(cases))
        ]
        last = [(id(self.seat.client), REWARD)] if self.seat else []
        return [[found[i, *voice] for voice in [*own, *last]] for i, own in enumerate(voices)]

    async def _verdicts(self, client: ModelClient, case: JudgeCase, names: Sequence[str]) -> list[Verdict | Unscored]:
        """The verdicts of one client on one answer, as its `Asking` wants them formed."""
        asking = self._asking(client)
        if asking.wording is None:
            return [await self._verdict(client, name, case) for name in names]
        read = await read_judges(client, asking, self.rubrics, case, names, self.cache)
        if asking.way == "score":
            return read
        return await quote_what_decides(client, self.rubrics, asking.section, read, case, self.cache)

    async def _in_slots(
        self, jobs: Sequence[Job], work: Callable[[int, ModelClient, Sequence[str]], Awaitable[None]]
    ) -> None:
        """`work` on each job, as many at once as its client takes; the first error ends it once those under way end."""
        slots = {id(client): asyncio.Semaphore(2 * client.concurrency) for client in self._all}
        errors: list[BaseException] = []

        async def one(job: Job) -> None:
            async with slots[id(job[1])]:
                if errors:
                    return
                try:
                    await work(*job)
                except BaseException as error:  # requests under way are paid for and may finish; no other starts
                    errors.append(error)
                    raise

        await asyncio.gather(*(one(job) for job in jobs), return_exceptions=True)
        if errors:
            raise errors[0]

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
    project: Project,
    clients: Sequence[ModelClient],
    cache: ReplyCache,
    rubrics: RubricSet | None = None,
    section: TribunalSection | None = None,
) -> JudgePanel:
    """A panel of clients that are open already, with what the project knows of them.

    Args:
        rubrics: the project's, if they have been read before.
        section: says how the judges are asked; where None, they quote.

    Raises:
        ConfigError: the wording is missing or wrong. UsageError: no item weights, though the settings want them.
    """
    rubrics = rubrics or read_rubrics(project)
    asking = open_asking(project, section) if section else Asking()
    askings = [
        Asking() if isinstance(client, RewardClient) else asking_of(asking, project, client.identity, rubrics)
        for client in clients
    ]
    identities = [own.identity(client.identity) for client, own in zip(clients, askings, strict=True)]
    known = [load_calibration(project.calibrations, identity, rubrics) for identity in identities]
    for client, calibration in zip(clients, known, strict=True):
        if calibration and (date := grown_since(calibration, project.tribunal)):
            say(
                _(
                    "  {name}: its calibration ({pairs} pairs) is of the benchmark before {date}",
                    name=client.name,
                    pairs=calibration.pairs,
                    date=date,
                )
            )
    scales = {client.identity: stored_scale(project.calibrations, client.identity, rubrics) for client in clients}
    fitted = {identity: scale for identity, scale in scales.items() if scale is not None}
    return JudgePanel(rubrics, clients, cache, known, askings, fitted)


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
        say(_("  tribunal.reward has no say: {why}", why=retold(why)))
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
        raise UsageError(_("the same judge is named twice: one model has one vote"))
    with open_cache(replies or cache_folder() / "tribunal" / "replies.sqlite") as cache:
        if replies is not None:
            spending.resume(cache)
        panel = make_panel(project, clients, cache, rubrics, section)
        yield replace(panel, seat=take_seat(project, section.reward, rubrics))
