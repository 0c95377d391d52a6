"""Which items that were read have to be quoted (`tribunal: ask: both`): those whose score decides.

A reading says how sure it is: an item's standard deviation over 0, 1, 2. Where a judge's score lies within one standard
deviation of its floor, or the weighted mean within one of a band's edge, the least sure items are quoted until the rest
could not carry it across. An item that could be a veto is quoted, and one that abstained.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

from noesis.core.config import TribunalSection
from noesis.core.i18n import N_
from noesis.llm.clients.protocol import ModelClient
from noesis.llm.clients.reply_cache import ReplyCache
from noesis.tribunal.judge import JudgeCase, judge
from noesis.tribunal.rubric import JUDGES, RubricSet
from noesis.tribunal.verdict import ItemScore, Unscored, Verdict

VETO_DOUBT = 0.25  # probability of a 0 from which an item that can veto is quoted
Doubt = tuple[float, str, str]  # standard deviation of a score that it carries, judge, item


def items_to_quote(
    verdicts: Sequence[Verdict], rubrics: RubricSet, section: TribunalSection
) -> dict[str, frozenset[str]]:
    """Ids of the items to quote, by judge; `verdicts` are those of one model on one answer, each by another judge."""
    chosen: set[tuple[str, str]] = set()
    weights = section.weights.model_dump()
    of_mean: list[Doubt] = []
    for verdict in verdicts:
        vetoing = {item.id for item in rubrics.rubrics[verdict.judge].items if item.veto}
        for item in verdict.items:
            if item.how == "abstained" or (item.id in vetoing and _share_of_zero(item) >= VETO_DOUBT):
                chosen.add((verdict.judge, item.id))
        doubts = _doubts(verdict)
        chosen |= _deciding(doubts, abs(verdict.score - section.judge_floor))
        of_mean += [(weights[verdict.judge] * sd, judge, item) for sd, judge, item in doubts]
    if {verdict.judge for verdict in verdicts} == set(JUDGES):
        mean = sum(weights[verdict.judge] * verdict.score for verdict in verdicts)
        edges = (section.approval_threshold, section.conditional_threshold)
        chosen |= _deciding(of_mean, min(abs(mean - edge) for edge in edges))
    return {
        verdict.judge: ids
        for verdict in verdicts
        if (ids := frozenset(item for judge, item in chosen if judge == verdict.judge))
    }


def _share_of_zero(item: ItemScore) -> float:
    return item.read[0] / sum(item.read) if item.read and sum(item.read) else 1.0


def _doubts(verdict: Verdict) -> list[Doubt]:
    total = 2 * sum(item.weight for item in verdict.items if item.how != "abstained")
    return [
        (item.weight * _deviation(item.read) / total, verdict.judge, item.id)
        for item in verdict.items
        if item.how == "read" and item.read is not None
    ]


def _deviation(read: tuple[float, float, float]) -> float:
    mass = sum(read)
    mean = (read[1] + 2 * read[2]) / mass
    return math.sqrt(max(0.0, (read[1] + 4 * read[2]) / mass - mean * mean))


def _deciding(doubts: Sequence[Doubt], distance: float) -> set[tuple[str, str]]:
    """The least sure, until the standard deviation of the sum of the others is at most `distance`."""
    left = sum(sd * sd for sd, _, _ in doubts)
    chosen = set()
    for sd, judge_name, item in sorted(doubts, reverse=True):
        if math.sqrt(max(0.0, left)) <= distance + 1e-9:
            break
        chosen.add((judge_name, item))
        left -= sd * sd
    return chosen


async def quote_what_decides(
    client: ModelClient,
    rubrics: RubricSet,
    section: TribunalSection,
    read: Sequence[Verdict | Unscored],
    case: JudgeCase,
    cache: ReplyCache,
) -> list[Verdict | Unscored]:
    """The verdicts of one model on one answer, which were read, with what decides in them quoted.

    A judge that could not be read is asked for all of its items.

    Raises:
        As `judge`.
    """
    to_quote = items_to_quote([v for v in read if isinstance(v, Verdict)], rubrics, section)
    verdicts: list[Verdict | Unscored] = []
    for verdict in read:
        rubric = rubrics.rubrics[verdict.judge]
        if isinstance(verdict, Unscored):
            verdicts.append(await judge(client, rubrics, rubric, case, cache))
        elif ids := to_quote.get(verdict.judge):
            quoted = await judge(client, rubrics, rubric, case, cache, only=ids)
            verdicts.append(_joined(verdict, quoted))
        else:
            verdicts.append(verdict)
    return verdicts


def _joined(read: Verdict, quoted: Verdict | Unscored) -> Verdict | Unscored:
    if isinstance(quoted, Unscored):
        return replace(quoted, reason=N_("read, but what decides could not be quoted: {reason}", reason=quoted.reason))
    by_id = {item.id: item for item in quoted.items}
    return replace(
        read,
        items=tuple(
            replace(by_id[item.id], read=item.read, weight=item.weight) if item.id in by_id else item
            for item in read.items
        ),
        veto=quoted.veto,
        reasoning=quoted.reasoning,
        prompt_tokens=read.prompt_tokens + quoted.prompt_tokens,
        completion_tokens=read.completion_tokens + quoted.completion_tokens,
        usd=read.usd + quoted.usd,
    )
