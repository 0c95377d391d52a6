"""Which epoch is used: only what can be told apart counts, the earliest of equals, a risen loss is out; in words."""

from __future__ import annotations

import math

import numpy as np
import pytest

from noesis.pipeline.results import CheckpointScore, Choice
from noesis.pipeline.stages.epoch_rule import Scores, choose_epoch, loss_difference, margin_difference
from noesis.tribunal.heldout import compare

IDS = [f"e{i}" for i in range(13)]
TOKENS = 100


def scores(losses: list[float], margins: list[float]) -> Scores:
    """Scores of answers of 100 tokens: nats per token of the revised one, and its margin over the initial one."""
    return {
        "revised": [(-TOKENS * x, TOKENS) for x in losses],
        "initial": [(-TOKENS * (x + m), TOKENS) for x, m in zip(losses, margins, strict=True)],
    }


def noise(seed: int, scale: float) -> np.ndarray:
    return np.random.default_rng(seed).normal(0, scale, len(IDS))


BASE_LOSS, BASE_MARGIN = 2.9 + noise(1, 0.3), -0.2 + noise(2, 0.3)


def epoch(seed: int, *, loss: float = 0.0, margin: float = 0.0, scale: float = 0.05) -> Scores:
    return scores(list(BASE_LOSS + loss + noise(seed, scale)), list(BASE_MARGIN + margin + noise(seed + 99, scale)))


def choose(*epochs: Scores, tribunal: dict[str, CheckpointScore] | None = None) -> tuple[str, str]:
    return choose_epoch(IDS, {f"epoch_{i}": one for i, one in enumerate(epochs)}, tribunal or {}, 0.05)


def test_epochs_that_cannot_be_told_apart_leave_the_earliest():
    name, why = choose(epoch(6), epoch(7), epoch(8, margin=0.01))
    assert name == "epoch_0"
    assert why == (
        "epoch_0, epoch_1 and epoch_2 can't be told apart on 13 held-out examples: the earliest is used "
        "(no judge is set)"
    )


def test_one_more_preferred_example_does_not_outweigh_a_loss_that_rose_twice():
    """Measured on Qwen2.5-Coder-1.5B: losses 2.918, 2.950, 3.040 and 2, 2, 3 of 13; the third epoch was taken."""
    epochs = epoch(3), epoch(4, loss=0.032), epoch(5, loss=0.122, margin=0.15)
    preferred = [compare(IDS, epochs[0], one).tuned.preferred for one in epochs]
    assert preferred[2] > preferred[0]
    name, why = choose(*epochs)
    assert name == "epoch_0"
    assert "epoch_2 is out: its held-out loss is 0.1" in why and "above that of epoch_0" in why


def test_a_later_epoch_is_used_where_it_is_better_beyond_chance():
    name, why = choose(epoch(3, loss=0.2, margin=-0.3), epoch(4, margin=-0.2), epoch(5))
    assert name == "epoch_2"
    assert "epoch_0 is out" in why and "epoch_1 prefers the revisions by 0." in why
    assert "epoch_2 is used, better than the others on 13 held-out examples" in why


def test_a_single_epoch_or_example_needs_no_interval():
    assert choose(epoch(3)) == ("epoch_0", "the only epoch")
    two = {f"epoch_{i}": scores([3.0 - i], [0.5 * i]) for i in range(2)}
    assert choose_epoch(["e"], two, {}, 0.05)[0] == "epoch_0"


def test_both_languages_of_an_example_are_one_observation():
    a, b = epoch(3, margin=0.2), epoch(4)
    twice = [{part: [*one[part], *one[part]] for part in one} for one in (a, b)]
    once = margin_difference(IDS, a, b)
    assert margin_difference(IDS * 2, *twice).interval_95 == pytest.approx(once.interval_95)
    assert loss_difference(IDS * 2, *twice).interval_95 == pytest.approx(loss_difference(IDS, a, b).interval_95)
    assert math.isclose(loss_difference(IDS, a, b).mean, -float(np.mean(noise(4, 0.05) - noise(3, 0.05))), abs_tol=1e-9)


def heard(means: list[float], *, vetoed: bool = False) -> CheckpointScore:
    return CheckpointScore(sum(means) / len(means), 0.0, vetoed, prompts={f"p{i}": x for i, x in enumerate(means)})


def test_the_tribunal_decides_beyond_chance_and_the_loss_guards_among_its_equals():
    low, high = [0.5, 0.6, 0.4, 0.7] * 6, [0.7, 0.75, 0.6, 0.9] * 6
    epochs = epoch(3), epoch(4), epoch(5, loss=0.4)
    worse_loss = {"epoch_0": heard(low), "epoch_1": heard(low), "epoch_2": heard(high)}
    assert choose(*epochs, tribunal=worse_loss)[0] == "epoch_2"  # the judges see what the loss doesn't
    equal = {name: heard(low) for name in worse_loss}
    assert choose(*epochs, tribunal=equal)[0] == "epoch_0"
    early = epoch(3, loss=0.4), epoch(4), epoch(5)
    name, why = choose(*early, tribunal=equal)
    assert name == "epoch_1" and "epoch_0 is out: its held-out loss" in why
    vetoed = worse_loss | {"epoch_2": heard(high, vetoed=True)}
    assert choose(*epochs, tribunal=vetoed)[1].startswith("the Tribunal's scores, among 2 of 3 epochs")


def test_the_choice_is_read_as_it_was_written_and_an_early_one_too():
    choice = Choice("epoch_0", "why", False, {}, by_significance=True)
    assert Choice.from_json(choice.to_json()) == choice
    early = {"adapter": "epoch_0", "by": "why", "heard": False, "epochs": {}}
    assert Choice.from_json(early).to_json() == early
