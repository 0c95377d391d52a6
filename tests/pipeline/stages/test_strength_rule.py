"""At which strength the adapter is used: the largest that does not break too much, beyond chance; said in words."""

from __future__ import annotations

import numpy as np
import pytest

from noesis.pipeline.stages.strength.rule import Measured, choose_strength, strength_figures

GRID = (0.25, 0.5, 0.75, 1.0, 1.25)
IDS = [f"e{i}" for i in range(10)]
RIGHT = (True,) * 30 + (False,) * 10


def measured(lost: int = 0, *, margin: float = 0.0, loss: float = 2.0, right: tuple[bool, ...] = RIGHT) -> Measured:
    noise = np.random.default_rng(0).normal(0, 0.02, len(IDS))
    scores = {
        "revised": [(-100 * (loss + x), 100) for x in noise],
        "initial": [(-100 * (loss + x + margin), 100) for x in noise],
    }
    kept = tuple(value and i >= lost for i, value in enumerate(right))
    return Measured(scores, kept, drift=lost / 100)


def choose(*lost: int, ids: list[str] = IDS, **more: object) -> tuple[float, str]:
    """lost: keyed items of 40 that each strength of the grid loses; margins grow with it."""
    by_strength = {x: measured(n, margin=0.1 * x, **more) for x, n in zip(GRID, lost, strict=True)}  # type: ignore[arg-type]
    return choose_strength(ids, {0.0: measured(**more)} | by_strength, 0.05)  # type: ignore[arg-type]


def test_the_largest_strength_whose_losses_stay_within_the_bound_is_used():
    strength, why = choose(0, 1, 2, 9, 12)
    assert strength == 0.75
    assert why.startswith("1 loses 0.2250 [")
    assert why.endswith("of the 40 keyed items, more than 0.05; 0.75 is the largest within the bound")


def test_a_loss_that_may_be_chance_takes_no_strength_away():
    strength, why = choose(0, 0, 0, 3, 12)  # 3 of 40 is above the bound, and its interval reaches 0
    assert strength == 1.0
    assert "above 0.05 but not beyond chance" in why


def test_a_strength_above_one_that_is_out_hides_none_below_it():
    assert choose(0, 9, 0, 0, 0)[0] == 0.25  # what comes after it is luck


def test_a_larger_strength_has_to_help_beyond_chance_at_no_higher_loss():
    strength, why = choose(0, 0, 0, 0, 0)
    assert (strength, "1.25 helps beyond chance" in why) == (1.25, True)
    by_strength = {x: measured(margin=0.1 * x, loss=2.0 + 0.01 * (x > 1)) for x in GRID}
    strength, why = choose_strength(IDS, {0.0: measured()} | by_strength, 0.05)
    assert strength == 1.0
    assert "1.25 does not help beyond chance" in why
    strength, why = choose(0, 0, 0, 0, 12)
    assert strength == 1.0
    assert "1.25 loses 0.3000" in why


def test_where_little_is_known_it_is_said():
    strength, why = choose(0, 0, 0, 0, 0, ids=["a", "b"] * 5)
    assert (strength, "2 held-out pairs are too few" in why) == (1.0, True)
    strength, why = choose(0, 0, 0, 0, 0, ids=["a", "b"] * 5, right=(False,) * 40)
    assert "the base has none of the 40 keyed items right: nothing can be lost" in why
    assert "no keyed items were at hand" in choose(0, 0, 0, 0, 0, right=())[1]
    strength, why = choose(9, 9, 9, 9, 9)
    assert strength == 0.25
    assert why.endswith("even the smallest strength breaks too much, and it is used")


def test_the_curve_counts_what_was_kept_lost_and_gained():
    base, tuned = measured(), measured(2, margin=0.1, right=(True,) * 30 + (True,) * 4 + (False,) * 6)
    curve = strength_figures(IDS, {1.0: tuned, 0.0: base})
    assert [f.strength for f in curve] == [0.0, 1.0]
    assert (curve[1].kept, curve[1].lost, curve[1].gained, curve[1].right) == (28, 2, 4, 32)
    assert curve[1].mean_margin == pytest.approx(0.1, abs=1e-4)
    assert curve[1].preferred == 10
