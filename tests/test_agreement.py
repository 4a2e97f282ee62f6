"""Kappa and alpha: by hand, by a published example, beside independent tools, and their intervals."""

from __future__ import annotations

import krippendorff
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import cohen_kappa_score

from reason2decide.evaluation.agreement import Level, alpha_interval, cohen_kappa, kappa_interval, krippendorff_alpha
from reason2decide.evaluation.results import MetricValue

NAN = np.nan
LEVELS: tuple[Level, ...] = ("nominal", "interval", "ordinal")
# Krippendorff 2011, "Computing Krippendorff's alpha-reliability", section D: four observers, twelve units, gaps.
PUBLISHED = [
    [1, 2, 3, 3, 2, 1, 4, 1, 2, NAN, NAN, NAN],
    [1, 2, 3, 3, 2, 2, 4, 1, 2, 5, NAN, 3],
    [NAN, 3, 3, 3, 2, 3, 4, 2, 2, 5, 1, NAN],
    [1, 2, 3, 3, 2, 4, 4, 1, 2, 5, 1, NAN],
]


def ends(own: MetricValue) -> tuple[float, float]:
    """The interval, which must be there."""
    assert own.low is not None and own.high is not None
    return own.low, own.high


def covers(own: MetricValue, value: float) -> bool:
    low, high = ends(own)
    return low <= value <= high


def width(own: MetricValue) -> float:
    low, high = ends(own)
    return high - low


def test_kappa_by_hand():
    # Pairs: 11 twice, 12, 22. O(different) = 1/4; margins (3/4, 1/4) and (1/2, 1/2): E(different) = 3/8 + 1/8 = 1/2.
    assert cohen_kappa([1, 1, 1, 2], [1, 1, 2, 2], "none") == pytest.approx(1 / 2)
    # (1, 3) among equals: quadratic O = 4/3. Margins (2/3, 0, 1/3) and (1/3, 0, 2/3): E = 4 (4/9 + 1/9) = 20/9.
    assert cohen_kappa([1, 1, 3], [1, 3, 3]) == pytest.approx(1 - 12 / 20)
    # Linear: 2/3 over 10/9.
    assert cohen_kappa([1, 1, 3], [1, 3, 3], "linear") == pytest.approx(1 - 6 / 10)
    assert cohen_kappa([1, 2, 3], [3, 2, 1]) == pytest.approx(-1)
    assert cohen_kappa([1, 5], [1, 5]) == 1
    assert cohen_kappa([1, 1, 1], [1, 2, 3]) == 0  # one who always says the same agrees by chance only
    assert np.isnan(cohen_kappa([2, 2], [2, 2]))


def test_alpha_by_hand():
    # Two raters, units (1, 1), (1, 2), (2, 2). Coincidences: 11 two, 12 and 21 one each, 22 two; n = 6, three of each.
    # D_o = 2/6, D_e = 2 * 3 * 3 / (6 * 5) = 18/30, so alpha = 1 - 10/18.
    for level in LEVELS:
        assert krippendorff_alpha([[1, 1, 2], [1, 2, 2]], level) == pytest.approx(1 - 10 / 18)
    # Values 1, 4 for one unit, 4, 4 for the other: D_o = 2 * 9 / 4, D_e = 2 * 1 * 3 * 9 / (4 * 3): none beyond chance.
    assert krippendorff_alpha([[1, 4], [4, 4]], "interval") == pytest.approx(0)
    # A unit that one rater alone saw changes nothing.
    assert krippendorff_alpha([[1.0, 1.0, 2.0, 5.0], [1, 2, 2, NAN]], "ordinal") == pytest.approx(1 - 10 / 18)
    assert krippendorff_alpha([[1, 2, 3], [1, 2, 3]]) == 1
    for level in LEVELS:
        assert np.isnan(krippendorff_alpha([[0.1, 0.1, 0.1], [0.1, 0.1, 0.1]], level))
        assert np.isnan(krippendorff_alpha([[1, NAN], [NAN, 2]], level))


@pytest.mark.parametrize(("level", "published"), [("nominal", 0.743), ("ordinal", 0.815), ("interval", 0.849)])
def test_alpha_of_the_published_example(level, published):
    assert krippendorff_alpha(PUBLISHED, level) == pytest.approx(published, abs=5e-4)


scores = st.lists(st.integers(1, 5), min_size=2, max_size=30)


@settings(max_examples=150, deadline=None)
@given(st.data(), scores, st.sampled_from([("none", None), ("linear", "linear"), ("quadratic", "quadratic")]))
def test_kappa_is_that_of_scikit_learn(data, a, weights):
    b = data.draw(st.lists(st.integers(1, 5), min_size=len(a), max_size=len(a)))
    own = cohen_kappa(a, b, weights[0])
    if len({*a, *b}) == 1:
        assert np.isnan(own)
    else:
        # All levels named: left to itself it would call neighbours what the data leave no level between.
        assert own == pytest.approx(cohen_kappa_score(a, b, weights=weights[1], labels=[1, 2, 3, 4, 5]), abs=1e-9)


@settings(max_examples=150, deadline=None)
@given(st.integers(2, 5), st.integers(1, 12), st.data(), st.sampled_from(["nominal", "ordinal", "interval"]))
def test_alpha_is_that_of_an_independent_tool(raters, units, data, level):
    row = st.lists(st.sampled_from([1, 2, 3, 5, NAN]), min_size=units, max_size=units)
    ratings = np.array(data.draw(st.lists(row, min_size=raters, max_size=raters)), float)
    own = krippendorff_alpha(ratings, level)
    counted = ratings[:, (~np.isnan(ratings)).sum(0) > 1]
    if len(np.unique(counted[~np.isnan(counted)])) < 2:
        assert np.isnan(own)
    else:
        assert own == pytest.approx(krippendorff.alpha(reliability_data=counted, level_of_measurement=level), abs=1e-9)


def test_intervals_are_those_of_resampled_units():
    rng = np.random.default_rng(1)
    truth = rng.integers(1, 6, 120)
    a, b = (np.clip(truth + rng.integers(-1, 2, 120), 1, 5) for _ in range(2))
    ratings = np.stack((a, b)).astype(float)
    ratings[1, :20] = NAN

    def resampled(statistic):
        draws = [statistic(rng.integers(120, size=120)) for _ in range(1500)]
        return np.quantile(draws, [0.025, 0.975])

    own = kappa_interval(a, b, resamples=1500)
    assert own.value == pytest.approx(cohen_kappa(a, b)) and own.n == 120
    assert [own.low, own.high] == pytest.approx(resampled(lambda i: cohen_kappa(a[i], b[i])), abs=0.02)
    for level in ("ordinal", "interval"):
        own = alpha_interval(ratings, level, resamples=1500)
        assert own.value == pytest.approx(krippendorff_alpha(ratings, level)) and own.n == 100
        naive = resampled(lambda i, level=level: krippendorff_alpha(ratings[:, i], level))
        assert [own.low, own.high] == pytest.approx(naive, abs=0.03)


def test_the_interval_covers_the_true_agreement():
    rng = np.random.default_rng(7)

    def sample(n):
        truth = rng.integers(1, 6, n)
        return [np.where(rng.random(n) < 0.7, truth, rng.integers(1, 6, n)) for _ in range(2)]

    truth = cohen_kappa(*sample(400_000))
    true_alpha = krippendorff_alpha(np.stack(sample(400_000)).astype(float), "interval")
    kappas = [kappa_interval(*sample(150), resamples=300) for _ in range(200)]
    alphas = [alpha_interval(np.stack(sample(150)), "interval", resamples=300) for _ in range(200)]
    # 95 % of 200 with a standard deviation of 3.1: 178 to 200 are within four of these.
    assert 178 <= sum(covers(own, truth) for own in kappas) <= 200
    assert 178 <= sum(covers(own, true_alpha) for own in alphas) <= 200


def test_whole_groups_are_resampled():
    # Ten patients with twenty equal visits each are ten cases, not two hundred.
    rng = np.random.default_rng(3)
    a, b = rng.integers(1, 6, 10), rng.integers(1, 6, 10)
    groups = np.repeat(np.arange(10), 20)
    single = kappa_interval(a.tolist(), b.tolist())
    visits = np.repeat(a, 20).tolist(), np.repeat(b, 20).tolist()
    repeated = kappa_interval(*visits, group_of=groups)
    assert (repeated.low, repeated.high) == pytest.approx((single.low, single.high), abs=0.05)
    naive = kappa_interval(*visits)
    assert width(naive) < width(single) / 2
    grouped = alpha_interval(np.repeat([a, b], 20, axis=1), "interval", group_of=groups)
    alone = alpha_interval([a, b], "interval")
    assert width(grouped) > 0.7 * width(alone)


def test_what_is_not_defined_is_no_number():
    for own in (kappa_interval([3, 3], [3, 3]), alpha_interval([[3, 3], [3, 3]]), alpha_interval([[1, NAN], [NAN, 2]])):
        assert (own.value, own.low, own.high) == (None, None, None)
    # Resamples of one score alone are left out.
    own = kappa_interval([1, 2], [1, 2])
    assert (own.value, own.low, own.high) == (1, 1, 1)
