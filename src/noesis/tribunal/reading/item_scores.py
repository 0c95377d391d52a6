"""A judge is read instead of asked: what would it say next, 0, 1 or 2? Nothing is generated.

Question and answer stand first, and are read once for all items of all three judges; each item follows alone with its
anchors. The score is the expected value over the three digits in all their spellings (the mean of the distribution
beats the printed score: arXiv 2503.03064). An item on whose digits too little probability falls abstains. The answer is
hostile text here as in `judge.py`, and is treated the same.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from noesis.core.i18n import N_
from noesis.core.text import fill_template
from noesis.llm.clients.cached_client import CachedClient
from noesis.llm.clients.protocol import ModelClient, ModelReply, NoReplyError, ScoreRequest, probabilities
from noesis.llm.clients.reply_cache import ReplyCache
from noesis.tribunal.judge import SCORES, JudgeCase, case_fields
from noesis.tribunal.reading.asking import Asking, Reading
from noesis.tribunal.rubric import RubricItem, RubricSet
from noesis.tribunal.verdict import ItemScore, Unscored, Verdict

READ = N_("read from what it would say next; nothing is quoted")
MOST_ABSTENTIONS = 0.5  # share of a judge's items; with more it gives no verdict


def score_request(
    wording: Reading, rubrics: RubricSet, case: JudgeCase, judges: Sequence[str]
) -> tuple[ScoreRequest, list[tuple[str, RubricItem]]]:
    """The request for all items of `judges` that apply to `case`, and the judge and item of each ending."""
    words = wording[case.language]
    asked = [(name, item) for name in judges for item in rubrics.rubrics[name].applicable_items(dict(case.record))]
    endings = tuple("\n" + fill_template(words.item, _item_fields(item, case.language)) for _, item in asked)
    user = fill_template(words.user, case_fields(rubrics, case))
    return ScoreRequest((("user", user),), endings, SCORES, words.opening), asked


def _item_fields(item: RubricItem, language: str) -> dict[str, str]:
    anchors = {f"anchor_{score}": item.anchors[score][language] for score in SCORES}
    return {"question": item.question(language), **anchors}


async def read_judges(
    client: ModelClient,
    asking: Asking,
    rubrics: RubricSet,
    case: JudgeCase,
    judges: Sequence[str],
    cache: ReplyCache,
) -> list[Verdict | Unscored]:
    """The verdict of `client` on one answer as each of `judges`, read.

    Raises:
        CapError: the cap is reached. ModelError: the key or the model is refused, or it can't be read.
    """
    assert asking.wording is not None
    request, asked = score_request(asking.wording, rubrics, case, judges)
    try:
        replies = await CachedClient(client, cache).scores(request)
    except NoReplyError as error:
        return [Unscored(case.id, name, client.name, rubrics.digest(name), str(error)) for name in judges]
    verdicts: list[Verdict | Unscored] = []
    for name in judges:
        own = [(item, reply) for (of, item), reply in zip(asked, replies, strict=True) if of == name]
        items = tuple(_item_score(item, reply, asking, name) for item, reply in own)
        verdicts.append(_verdict(items, [reply for _, reply in own], client, rubrics, case, name, asking))
    return verdicts


def _verdict(
    items: tuple[ItemScore, ...],
    replies: Sequence[ModelReply],
    client: ModelClient,
    rubrics: RubricSet,
    case: JudgeCase,
    name: str,
    asking: Asking,
) -> Verdict | Unscored:
    who: dict[str, Any] = {"case": case.id, "judge": name, "model": client.name, "rubric_sha256": rubrics.digest(name)}
    abstained = [item for item in items if item.how == "abstained"]
    if len(abstained) > MOST_ABSTENTIONS * len(items) or len(abstained) == len(items):
        least = min(sum(item.read or ()) for item in abstained)
        return Unscored(
            **who,
            reason=N_(
                "{abstained} of {items} items abstain: as little as {least:.2f} of the next word's "
                "probability is on 0, 1 and 2 (tribunal: min_mass {min_mass:g})",
                abstained=len(abstained),
                items=len(items),
                least=least,
                min_mass=asking.section.min_mass,
            ),
        )
    return Verdict(
        **who,
        items=items,
        veto=None,  # a veto needs evidence
        reasoning=READ,
        prompt_tokens=sum(reply.prompt_tokens for reply in replies),
        completion_tokens=sum(reply.completion_tokens for reply in replies),
        usd=sum(reply.usd or 0.0 for reply in replies),
    )


def _item_score(item: RubricItem, reply: ModelReply, asking: Asking, judge: str) -> ItemScore:
    zero, one, two = (round(p, 4) for p in probabilities(reply, SCORES))
    read, weight = (zero, one, two), asking.weight(judge, item.id)
    likeliest = max(range(3), key=lambda score: read[score])
    if sum(read) < max(asking.section.min_mass, 1e-3):
        return ItemScore(item.id, 0.0, likeliest, "", False, "abstained", read, weight)
    return ItemScore(item.id, expected(read), likeliest, "", False, "read", read, weight)


def expected(read: tuple[float, float, float]) -> float:
    """The expected score, 0..2, given that it is 0, 1 or 2."""
    return round((read[1] + 2 * read[2]) / sum(read), 4)
