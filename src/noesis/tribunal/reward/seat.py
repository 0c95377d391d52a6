"""A reward model judges one answer, and sits beside the judges (`tribunal: reward` in training_config.yaml)."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from noesis.core.i18n import N_, _
from noesis.llm.clients.cached_client import CachedClient, UnusableReplyError
from noesis.llm.clients.protocol import ModelReply, ModelRequest, NoReplyError
from noesis.llm.clients.reply_cache import ReplyCache
from noesis.tribunal.calibration_store import load_calibration, unfit_reason
from noesis.tribunal.judge import JudgeCase
from noesis.tribunal.reward.client import RewardClient
from noesis.tribunal.reward.scale import Scale
from noesis.tribunal.rubric import RubricSet
from noesis.tribunal.verdict import Unscored, Verdict

ONE_NUMBER = N_("one number of a reward model, which quotes nothing")
KIN = N_("judge trained on the same examples")


@dataclass(frozen=True)
class RewardSeat:
    """A reward model that was shown fit, and its place.

    scale: from its rewards to 0..1
    """

    client: RewardClient
    role: Literal["tie_breaker", "seat"]
    scale: Scale

    def describe(self) -> str:
        role = N_("breaks ties") if self.role == "tie_breaker" else N_("has a seat")
        return N_(
            "{name} {role} beside the judges: {note_on}", name=self.client.name, role=role, note_on=note_on(self.client)
        )


def note_on(client: RewardClient) -> str:
    """What every verdict of a reward model says about it."""
    return f"{ONE_NUMBER}; {KIN}" if client.kin else ONE_NUMBER


async def reward_of(client: RewardClient, case: JudgeCase, cache: ReplyCache) -> float:
    """The reward of one answer, as the model gives it.

    Raises:
        NoReplyError: there is none: the conversation is too long.
    """
    request = ModelRequest((*case.dialogue, ("assistant", case.answer)), {}, 0)

    def read(reply: ModelReply, attempt: int) -> float:
        try:
            found = float(reply.text)
        except ValueError:
            found = math.nan
        if not math.isfinite(found):
            raise UnusableReplyError(_("its reward is not a finite number"))
        return found

    try:
        return await CachedClient(client, cache).ask_until_usable(lambda attempt, _: request, read, attempts=1)
    except UnusableReplyError as error:
        raise NoReplyError(str(error)) from None


async def judge_by_reward(
    client: RewardClient, judge: str, rubric_sha256: str, case: JudgeCase, cache: ReplyCache, scale: Scale
) -> Verdict | Unscored:
    """The verdict of a reward model on one answer: a score without items.

    Args:
        judge: whose place it takes; a benchmark asks it in the place of each judge.
    """
    try:
        reward = await reward_of(client, case, cache)
    except NoReplyError as error:
        return Unscored(case.id, judge, client.name, rubric_sha256, str(error))
    note = N_("{note_on}; reward {reward:.4f}", note_on=note_on(client), reward=reward)
    score = scale.score(reward)
    return Verdict(case.id, judge, client.name, rubric_sha256, (), None, note, scalar=score)


def stored_scale(folder: Path, identity: str, rubrics: RubricSet) -> Scale | None:
    """The scale that was fitted on the dev half; None where it was not calibrated there."""
    found = load_calibration(folder, identity, rubrics, parts=("dev",))
    try:
        return None if found is None else Scale.from_json(found.details["scale"])
    except (KeyError, TypeError, ValueError):
        return None


def why_not_seated(folder: Path, client: RewardClient, spec: str, rubrics: RubricSet) -> str | None:
    """Why a reward model may not sit beside the judges; None if it may."""
    unfit = unfit_reason([load_calibration(folder, client.identity, rubrics)], [f"reward:{spec}"])
    if unfit is None and stored_scale(folder, client.identity, rubrics) is None:
        return N_("judge not fit: reward:{spec} has no scale, since it was not calibrated on the dev half", spec=spec)
    return unfit


async def rewards_of(client: RewardClient, cases: Sequence[JudgeCase], cache: ReplyCache) -> list[float | None]:
    """The reward of each case, None where there is none; in order, so that batches are the same every time."""

    async def one(case: JudgeCase) -> float | None:
        try:
            return await reward_of(client, case, cache)
        except NoReplyError:
            return None

    return list(await asyncio.gather(*(one(case) for case in cases)))
