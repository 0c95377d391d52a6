"""Which seed's adapter is used, where several were trained, and whether the seeds say the same.

Each seed has its epoch chosen as if it were alone. Between seeds the held-out loss decides, as between epochs: beyond
chance, and of those that can't be told apart the first, so that no seed is picked for its luck.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from noesis.core.i18n import N_
from noesis.pipeline.stages.epoch_rule import Scores, loss_difference, margin_difference

ROSE, FELL = N_("it rose with {seeds}"), N_("it fell with {seeds}")
UNCHANGED = N_("it did not change beyond chance with {seeds}")


def choose_seed(
    ids: Sequence[str], scores: Mapping[str, Scores], chosen: Mapping[str, tuple[str, str]]
) -> tuple[str, str]:
    """(adapter, why, in words).

    Args:
        ids: of the held-out examples.
        scores: of each adapter.
        chosen: seed → (the adapter of the epoch that was chosen of it, why), the run's first seed first.
    """
    names = {seed: adapter for seed, (adapter, _why) in chosen.items()}
    lowest = min(names, key=lambda seed: -sum(total for total, _ in scores[names[seed]]["revised"]))
    higher = {seed: loss_difference(ids, scores[name], scores[names[lowest]]) for seed, name in names.items()}
    tied = [seed for seed in names if seed == lowest or not higher[seed].above]
    used = tied[0]
    said = [
        N_("the held-out loss of seed {seed} is {d} above that of {lowest}", seed=seed, d=higher[seed], lowest=lowest)
        for seed in names
        if seed not in tied
    ]
    if len(tied) > 1:
        told = ", ".join(tied)
        said.append(N_("seeds {seeds} can't be told apart by it: the first of them is used", seeds=told))
    adapter, reason = chosen[used]
    return adapter, N_(
        "of {count} seeds {seed}: {said}. Of its epochs {adapter}: {reason}",
        count=len(names),
        seed=used,
        said="; ".join(said),
        adapter=adapter,
        reason=reason,
    )


def disagreement(ids: Sequence[str], base: Scores, scores: Mapping[str, Scores], names: Mapping[str, str]) -> str:
    """Where one seed alone would have said something else than another; empty where they agree.

    Args:
        names: seed → the adapter of the epoch that was chosen of it.
    """
    said: dict[str, list[str]] = {}
    for seed, name in names.items():
        found = margin_difference(ids, scores[name], base)
        verdict = ROSE if found.above else FELL if found.interval_95[1] < 0 else UNCHANGED
        said.setdefault(verdict, []).append(seed)
    if len(said) == 1:
        return ""
    parts = [N_(verdict, seeds=", ".join(seeds)) for verdict, seeds in said.items()]
    return N_("the seeds disagree on whether the margin rose above the base's: {said}", said="; ".join(parts))
