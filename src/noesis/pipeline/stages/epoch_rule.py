"""Which epoch is used, by what can be told apart on so few examples; the rule in words goes into the run.

A difference counts if its paired 95% interval (bootstrap over examples or prompts) leaves out 0. Of epochs that can't
be told apart the earliest is used: it has seen the data least often. An epoch whose held-out loss is higher than the
lowest is out, whatever its margins, which keep growing while a model overfits. Where the Tribunal may decide it does,
and the loss only guards among those that it can't tell apart.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from noesis.core.i18n import N_
from noesis.pipeline.results import CheckpointScore
from noesis.tribunal.heldout import Score, margins
from noesis.tribunal.statistics import Interval, bootstrap, clustered

Scores = dict[str, list[Score]]  # "revised" and "initial" → a score for each held-out example


@dataclass(frozen=True)
class Difference:
    """A paired difference of two epochs, with its 95% interval."""

    mean: float
    interval_95: Interval

    @property
    def above(self) -> bool:
        """Whether it is above 0 beyond chance."""
        return self.interval_95[0] > 0

    def __str__(self) -> str:
        low, high = self.interval_95
        return f"{self.mean:.4f} [{low:.4f}, {high:.4f}]"


Compare = Callable[[str, str], Difference]  # (a, b) → by how much a is better than b


def choose_epoch(
    ids: Sequence[str], scores: Mapping[str, Scores], tribunal: Mapping[str, CheckpointScore], max_drop: float
) -> tuple[str, str]:
    """(epoch, why, in words).

    Args:
        ids: of the held-out examples; the same id in two languages is one observation.
        scores: of each epoch, the earliest first.
        tribunal: of each epoch; none where no judge is set.
        max_drop: most that right answers to keyed items may fall, base to tuned.
    """
    epochs = list(scores)
    if len(epochs) == 1:
        return epochs[0], N_("the only epoch")

    def loss(a: str, b: str) -> Difference:
        return loss_difference(ids, scores[b], scores[a])

    def margin(a: str, b: str) -> Difference:
        return margin_difference(ids, scores[a], scores[b])

    why = N_("no judge is set")
    if tribunal:
        why = next((score.unfit_reason for score in tribunal.values() if score.unfit_reason), "") or ""
        sound = [name for name in epochs if _sound(tribunal[name], max_drop)]
        if not why and sound:
            return _by_tribunal(sound, len(epochs), tribunal, loss, max_drop)
        why = why or N_("the Tribunal found a veto or forgetting in every epoch")
    left, said = _guard(epochs, scores, loss)
    best = max(left, key=lambda name: sum(margins(scores[name])))
    tied, worse = _told_apart(left, best, margin)
    said += [
        N_("{name} prefers the revisions by {d} nats a token less than {best}", name=name, d=d, best=best)
        for name, d in worse.items()
    ]
    said.append(_conclusion(tied, left, N_("{count} held-out examples", count=len(ids))))
    return tied[0], f"{'; '.join(said)} ({why})"


def _by_tribunal(
    sound: list[str], of: int, tribunal: Mapping[str, CheckpointScore], loss: Compare, max_drop: float
) -> tuple[str, str]:
    def score(a: str, b: str) -> Difference:
        return prompt_difference(tribunal[a].prompts, tribunal[b].prompts)

    best = max(sound, key=lambda name: tribunal[name].mean or 0.0)
    tied, worse = _told_apart(sound, best, score)
    said = [N_("the Tribunal scores {name} {d} below {best}", name=name, d=d, best=best) for name, d in worse.items()]
    lowest = next(name for name in tied if not any(loss(other, name).mean > 0 for other in tied))
    out = {name: d for name in tied if (d := loss(lowest, name)).above}
    left = [name for name in tied if name not in out]
    said += [_out(name, d, lowest) for name, d in out.items()]
    among = N_(
        "{sound} of {of} epochs without a veto or forgetting beyond {max_drop:g}",
        sound=len(sound),
        of=of,
        max_drop=max_drop,
    )
    said.append(_conclusion(left, tied, N_("its prompts")))
    return left[0], N_("the Tribunal's scores, among {among}: {said}", among=among, said="; ".join(said))


def _sound(score: CheckpointScore, max_drop: float) -> bool:
    kept = score.accuracy_drop is None or score.accuracy_drop <= max_drop
    return score.mean is not None and not score.vetoed and kept


def _guard(epochs: list[str], scores: Mapping[str, Scores], loss: Compare) -> tuple[list[str], list[str]]:
    """The epochs whose loss is not higher than the lowest beyond chance, and what is said of the others."""
    lowest = min(epochs, key=lambda name: -sum(total for total, _ in scores[name]["revised"]))
    out = {name: d for name in epochs if (d := loss(lowest, name)).above}
    return [name for name in epochs if name not in out], [_out(name, d, lowest) for name, d in out.items()]


def _out(name: str, d: Difference, lowest: str) -> str:
    return N_("{name} is out: its held-out loss is {d} above that of {lowest}", name=name, d=d, lowest=lowest)


def _told_apart(names: list[str], best: str, better: Compare) -> tuple[list[str], dict[str, Difference]]:
    """Those that can't be told apart from the best, and by how much the others are worse."""
    worse = {name: d for name in names if name != best and (d := better(best, name)).above}
    return [name for name in names if name not in worse], worse


def _conclusion(tied: list[str], among: list[str], on: str) -> str:
    if len(tied) > 1:
        return N_(
            "{names} and {last} can't be told apart on {on}: the earliest is used",
            names=", ".join(tied[:-1]),
            last=tied[-1],
            on=on,
        )
    if len(among) == 1:
        return N_("{name} is used, the only one left on {on}", name=tied[0], on=on)
    return N_("{name} is used, better than the others on {on}", name=tied[0], on=on)


def loss_difference(ids: Sequence[str], a: Scores, b: Scores) -> Difference:
    """Held-out loss of `a` minus that of `b`, nats per token of all revised answers."""
    sums, _ = clustered([y - x for (x, _), (y, _) in zip(a["revised"], b["revised"], strict=True)], ids)
    tokens, _ = clustered([float(n) for _, n in a["revised"]], ids)
    return Difference(float(sums.sum() / tokens.sum()), bootstrap(sums, tokens))


def margin_difference(ids: Sequence[str], a: Scores, b: Scores) -> Difference:
    """Mean margin of `a` minus that of `b`, nats per token."""
    sums, counts = clustered([x - y for x, y in zip(margins(a), margins(b), strict=True)], ids)
    return Difference(float(sums.sum() / counts.sum()), bootstrap(sums, counts))


def prompt_difference(a: Mapping[str, float], b: Mapping[str, float]) -> Difference:
    """Mean of `a` minus that of `b` on the prompts that both have a score on; nothing is known without one."""
    shared = sorted(a.keys() & b.keys())
    if not shared:
        return Difference(0.0, (-1.0, 1.0))
    sums, counts = clustered([a[name] - b[name] for name in shared], shared)
    return Difference(float(sums.sum() / counts.sum()), bootstrap(sums, counts))
