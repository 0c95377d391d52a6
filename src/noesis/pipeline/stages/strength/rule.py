"""Which strength of the adapter is used, by what can be told apart; the rule in words goes into the run.

The largest strength up to the trained one that does not break too much: it is out, with all above it, if it loses more
than `max_forgetting` of the keyed items and the loss is beyond chance (its paired 95% interval leaves out 0). A
strength above the trained one has to help as well: a higher margin beyond chance, at no higher held-out loss.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from noesis.core.i18n import N_
from noesis.pipeline.results import StrengthFigures
from noesis.pipeline.stages.epoch_rule import Difference, Scores, loss_difference, margin_difference
from noesis.tribunal.heldout import compare
from noesis.tribunal.statistics import bootstrap, clustered

BASE = 0.0  # the strength that leaves the base
FEWEST_PAIRS = 8  # below this nothing is said of strengths above the trained one


@dataclass(frozen=True)
class Measured:
    """The adapter at one strength.

    scores: of the held-out pairs
    right: whether it has each keyed item right
    drift: mean KL divergence from the base on the base's own answers, nats per token
    """

    scores: Scores
    right: tuple[bool, ...]
    drift: float


def choose_strength(
    ids: Sequence[str], measured: Mapping[float, Measured], max_forgetting: float, *, trained: float = 1.0
) -> tuple[float, str]:
    """(strength, why, in words).

    Args:
        ids: of the held-out pairs; the same id in two languages is one observation.
        measured: of each strength, 0 among them.
        max_forgetting: most of the share of keyed items that may be lost.
        trained: the strength above which one has to help.
    """
    base = measured[BASE]
    grid = sorted(x for x in measured if x > BASE)
    usual = [x for x in grid if x <= trained] or grid[:1]
    unknown = _nothing_to_lose(base)
    kept, out = _within(usual, measured, max_forgetting)
    if not kept:
        return grid[0], N_("{out}: even the smallest strength breaks too much, and it is used", out=out)
    best = kept[-1]
    if out:
        return best, N_("{out}; {best:g} is the largest within the bound", out=out, best=best)
    why = unknown or _fall(base, measured[best]).describe(best, max_forgetting)
    larger = [x for x in grid if x > best]
    if not larger or best < trained:
        return best, N_("{why}; it is the largest of the grid", why=why)
    if len(set(ids)) < FEWEST_PAIRS:
        return best, N_(
            "{why}; {ids} held-out pairs are too few to show that more would help", why=why, ids=len(set(ids))
        )
    helpful, refused = _helpful(larger, best, ids, measured, max_forgetting)
    return helpful, f"{why}; {refused}" if refused else N_(
        "{why}; {helpful:g} helps beyond chance and is used", why=why, helpful=helpful
    )


def _nothing_to_lose(base: Measured) -> str:
    if not base.right:
        return N_("no keyed items were at hand, so that losses are not known")
    return (
        ""
        if any(base.right)
        else N_("the base has none of the {right} keyed items right: nothing can be lost", right=len(base.right))
    )


@dataclass(frozen=True)
class _Fall:
    share: Difference
    items: int

    def beyond(self, bound: float) -> bool:
        return self.share.mean > bound and self.share.above

    def describe(self, x: float, bound: float) -> str:
        if self.share.mean <= bound:
            return N_(
                "{x:g} loses {share} of the {items} keyed items, within {bound:g}",
                x=x,
                share=self.share,
                items=self.items,
                bound=bound,
            )
        return N_(
            "{x:g} loses {share} of the {items} keyed items, above {bound:g} but not beyond chance",
            x=x,
            share=self.share,
            items=self.items,
            bound=bound,
        )


def _fall(base: Measured, tuned: Measured) -> _Fall:
    """By how much the share of right keyed items falls, base to tuned."""
    if not base.right:
        return _Fall(Difference(0.0, (0.0, 0.0)), 0)
    fell = [float(b) - float(t) for b, t in zip(base.right, tuned.right, strict=True)]
    sums, counts = clustered(fell, [str(i) for i in range(len(fell))])
    return _Fall(Difference(float(sums.sum() / counts.sum()), bootstrap(sums, counts)), len(fell))


def _within(strengths: Sequence[float], measured: Mapping[float, Measured], bound: float) -> tuple[list[float], str]:
    """Those below the first that loses too much, and what is said of that one."""
    for i, x in enumerate(strengths):
        fall = _fall(measured[BASE], measured[x])
        if fall.beyond(bound):
            return list(strengths[:i]), N_(
                "{x:g} loses {share} of the {items} keyed items, more than {bound:g}",
                x=x,
                share=fall.share,
                items=fall.items,
                bound=bound,
            )
    return list(strengths), ""


def _helpful(
    larger: Sequence[float], best: float, ids: Sequence[str], measured: Mapping[float, Measured], bound: float
) -> tuple[float, str]:
    """The last of the larger strengths that helps, and why the next one is not used."""
    for x in larger:
        _, out = _within([x], measured, bound)
        if out:
            return best, out
        margin = margin_difference(ids, measured[x].scores, measured[best].scores)
        loss = loss_difference(ids, measured[x].scores, measured[best].scores)
        if not margin.above or loss.mean > 0:
            return best, N_(
                "{x:g} does not help beyond chance (margin {margin} higher, held-out loss {loss} higher)",
                x=x,
                margin=margin,
                loss=loss,
            )
        best = x
    return best, ""


def strength_figures(ids: list[str], measured: Mapping[float, Measured]) -> tuple[StrengthFigures, ...]:
    """The curve: figures of each strength, ascending."""
    base = measured[BASE]
    found = []
    for x in sorted(measured):
        one = measured[x]
        held_out = compare(ids, base.scores, one.scores).tuned
        pairs = list(zip(base.right, one.right, strict=True))
        found.append(
            StrengthFigures(
                x,
                held_out.preferred,
                held_out.mean_margin,
                held_out.held_out_loss,
                kept=pairs.count((True, True)),
                lost=pairs.count((True, False)),
                gained=pairs.count((False, True)),
                drift=round(one.drift, 5),
            )
        )
    return tuple(found)
