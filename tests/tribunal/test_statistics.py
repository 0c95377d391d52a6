"""The court's statistics against scipy, statsmodels and krippendorff, and by simulation: intervals cover, the gate seldom errs."""

from __future__ import annotations

import math

import krippendorff
import numpy as np
import pytest
from scipy import stats

from noesis.core.config import TribunalSection
from noesis.tribunal.court import APPROVED, CONDITIONAL, REJECTED, UNDECIDED, Opinion
from noesis.tribunal.gate import decide, simulate
from noesis.tribunal.statistics import (
    auroc,
    bootstrap,
    brier,
    clustered,
    effective_votes,
    krippendorff_alpha,
    mcnemar,
    prompts_needed,
    rogan_gladen,
    sign_flip,
    slope,
    t_quantile,
    wilson,
)

SECTION = TribunalSection()
RNG = np.random.default_rng(1)


@pytest.mark.parametrize(("k", "n"), [(0, 30), (7, 10), (60, 126), (126, 126)])
def test_wilson(k: int, n: int):
    from statsmodels.stats.proportion import proportion_confint

    assert wilson(k, n) == pytest.approx(proportion_confint(k, n, method="wilson"), abs=1e-4)


@pytest.mark.parametrize("df", [1, 2, 3, 5, 19, 59, 279])
def test_t_quantiles(df: int):
    assert t_quantile(0.975, df) == pytest.approx(stats.t.ppf(0.975, df), rel=2e-3)


@pytest.mark.parametrize(("lost", "won"), [(0, 0), (7, 0), (3, 9), (10, 10), (25, 12)])
def test_mcnemar(lost: int, won: int):
    from statsmodels.stats.contingency_tables import mcnemar as reference_mcnemar

    expected = reference_mcnemar([[5, lost], [won, 5]], exact=True).pvalue if lost + won else 1.0
    assert mcnemar(lost, won) == pytest.approx(expected)


def test_sign_flips_exact_and_drawn():
    few, many = RNG.normal(0.3, 1, 12), RNG.normal(0.15, 1, 80)
    for values, tolerance in ((few, 1e-12), (many, 0.02)):
        reference = stats.permutation_test(
            (values,), np.mean, permutation_type="samples", n_resamples=np.inf if len(values) < 13 else 20_000, rng=0
        )
        assert sign_flip(values) == pytest.approx(reference.pvalue, abs=tolerance)
    assert sign_flip(np.zeros(5)) == 1.0


def test_bootstrap_agrees_with_scipy_and_is_wider_for_few():
    values = RNG.beta(5, 2, 200)
    reference = stats.bootstrap((values,), np.mean, method="percentile", n_resamples=4000, rng=0).confidence_interval
    assert bootstrap(values) == pytest.approx((reference.low, reference.high), abs=0.004)
    few = values[:12]
    narrow = stats.bootstrap((few,), np.mean, method="percentile", n_resamples=4000, rng=0).confidence_interval
    low, high = bootstrap(few)
    assert high - low > 1.05 * (narrow.high - narrow.low)
    assert bootstrap(values[:1]) == (-math.inf, math.inf)


def test_clusters_are_drawn_whole():
    values = np.repeat(RNG.normal(0.7, 0.2, 40), 5)  # five equal answers to each of 40 prompts say no more than one
    sums, counts = clustered(values, [f"p{i // 5}" for i in range(200)])
    whole, single = bootstrap(sums, counts), bootstrap(values)
    assert whole == pytest.approx(bootstrap(values[::5]), abs=1e-9)
    assert whole[1] - whole[0] > 1.8 * (single[1] - single[0])


@pytest.mark.parametrize("n", [20, 60, 220])
def test_the_interval_of_a_mean_covers_at_its_rate(n: int):
    true = 0.7
    scores = np.random.default_rng(n).beta(true * 6, (1 - true) * 6, (n, 10_000))
    low, high = bootstrap(scores, draws=1000)
    assert np.mean((low <= true) & (true <= high)) == pytest.approx(0.95, abs=0.015)


def test_wilson_and_rogan_gladen_cover_at_their_rates():
    rng = np.random.default_rng(5)
    prevalence, se, sp, n, m = 0.3, 0.85, 0.7, 200, 63
    passed = rng.binomial(n, prevalence * se + (1 - prevalence) * (1 - sp), 2000)
    good, bad = rng.binomial(m, se, 2000), rng.binomial(m, sp, 2000)
    covered = [
        (found := rogan_gladen(int(k), n, (int(g), m), (int(b), m))) is not None
        and found[1][0] <= prevalence <= found[1][1]
        for k, g, b in zip(passed, good, bad, strict=True)
    ]
    assert 0.93 <= np.mean(covered) <= 0.99
    raw = [wilson(int(k), n)[0] <= prevalence <= wilson(int(k), n)[1] for k in passed]
    assert np.mean(raw) < 0.9  # uncorrected, the judge's errors are taken for the model's
    assert rogan_gladen(50, 100, (5, 10), (5, 10)) is None


def test_rogan_gladen_undoes_a_known_error():
    estimate, (low, high) = rogan_gladen(570, 1000, (850, 1000), (850, 1000)) or (0, (0, 0))
    assert estimate == pytest.approx(0.6)
    assert low < 0.6 < high


def test_krippendorff_ordinal_with_missing_ratings():
    ratings = RNG.integers(0, 5, (3, 60)).astype(float)
    ratings[1] = np.clip(ratings[0] + RNG.integers(-1, 2, 60), 0, 4)
    ratings[RNG.random((3, 60)) < 0.15] = np.nan
    assert krippendorff_alpha(ratings) == pytest.approx(krippendorff.alpha(ratings, level_of_measurement="ordinal"))
    assert krippendorff_alpha(np.array([[1.0, 2, 3], [1, 2, 3]])) == pytest.approx(1.0)
    assert krippendorff_alpha(np.ones((2, 4))) is None


def test_auroc_brier_slope():
    good, bad = RNG.normal(1, 1, 40), RNG.normal(0, 1, 30)
    assert auroc(good, bad) == pytest.approx(stats.mannwhitneyu(good, bad).statistic / 1200)
    assert auroc([0.5], [0.5]) == 0.5
    assert brier([1.0, 0.5], [True, False]) == 0.125
    x, y = RNG.normal(0, 1, 50), RNG.normal(0, 1, 50)
    reference = stats.linregress(x, y)
    assert slope(x, y) == pytest.approx((reference.slope, reference.stderr))
    assert slope([1.0, 1, 1], [1.0, 2, 3]) is None


def test_votes_that_err_together_count_as_one():
    common = RNG.normal(0, 1, 2000)
    assert effective_votes(np.stack([common, common, common])) == pytest.approx(1.0)
    assert effective_votes(RNG.normal(0, 1, (4, 2000))) == pytest.approx(4.0, abs=0.4)
    nine = np.stack([0.7 * common + 0.7 * RNG.normal(0, 1, 2000) for _ in range(9)])
    assert 1.5 < effective_votes(nine) < 2.2  # as published of nine language models


def test_prompts_needed_is_the_textbook_number():
    assert prompts_needed(0.75, 0.2, [0.70]) == 126  # paired difference 0.05, sd 0.20, 80% power
    assert prompts_needed(0.70, 0.2, [0.70]) is None


# --- the gate


def opinions(scores: list[float]) -> tuple[list[Opinion], list[str]]:
    return [
        Opinion(f"p{i}", dict.fromkeys(("veritas", "sophia", "dike"), (x, x)), (x, x), (), ())
        for i, x in enumerate(scores)
    ], [f"p{i}" for i in range(len(scores))]


@pytest.mark.parametrize(
    ("mean", "n", "verdict"),
    [(0.85, 60, APPROVED), (0.60, 60, CONDITIONAL), (0.30, 60, REJECTED), (0.71, 60, UNDECIDED), (0.95, 13, UNDECIDED)],
)
def test_the_gate_rules_by_the_whole_interval(mean: float, n: int, verdict: str):
    scores = [min(1.0, max(0.0, mean + 0.15 * math.cos(i * 2.4))) for i in range(n)]
    ruling, figures = decide(*opinions(scores), SECTION)
    assert ruling.verdict == verdict
    assert figures["mean"].interval_95[0] <= figures["mean"].mean <= figures["mean"].interval_95[1]


def test_undecided_says_how_many_more_would_decide():
    scores = [0.74 + 0.2 * math.sin(i * 1.7) for i in range(40)]
    ruling, figures = decide(*opinions(scores), SECTION)
    assert ruling.verdict == UNDECIDED
    f = figures["mean"]
    total = 40 + (ruling.more_prompts or 0)
    assert total == prompts_needed(f.mean, f.deviation, [0.70])
    assert 60 < total < 300


def test_13_prompts_are_too_few_whatever_they_say():
    ruling, _ = decide(*opinions([1.0] * 13), SECTION)
    assert (ruling.verdict, ruling.more_prompts) == (UNDECIDED, 7)


def test_forgetting_bars_approval():
    good = opinions([0.9] * 30)
    assert decide(*good, SECTION, accuracy_drop=0.04)[0].verdict == APPROVED
    assert decide(*good, SECTION, accuracy_drop=0.06)[0].verdict == CONDITIONAL


def test_a_floor_on_both_sides_is_undecided():
    found, clusters = opinions([0.8] * 30)
    low = [
        Opinion(o.case, o.judges | {"dike": (x, x)}, (0.8, 0.8), (), ())
        for o, x in zip(found, [0.3, 0.6, 0.6] * 10, strict=True)
    ]
    ruling, _ = decide(low, clusters, SECTION)
    assert ruling.verdict == UNDECIDED
    assert "Dikē" in ruling.reason


@pytest.mark.parametrize("prompts", [20, 60, 220])
def test_false_approvals_at_the_boundary_stay_rare(prompts: int):
    """10,000 models whose true mean is just 0.70, the most favourable one that must not pass."""
    said = simulate(0.70, 0.2, prompts, 10_000, SECTION, seed=prompts)
    assert said[APPROVED] < 0.05
    assert said[REJECTED] == 0.0
    at_the_other = simulate(0.50, 0.2, prompts, 10_000, SECTION, seed=prompts)
    assert at_the_other[CONDITIONAL] + at_the_other[APPROVED] < 0.05


def test_a_good_model_is_approved_with_enough_prompts():
    assert simulate(0.75, 0.2, 220, 2000, SECTION)[APPROVED] > 0.9
    assert simulate(0.75, 0.2, 20, 2000, SECTION)[APPROVED] < 0.35
