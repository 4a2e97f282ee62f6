"""The bootstrap against a plain loop, against SciPy, and against what a 95 % interval promises."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats
from sklearn.metrics import f1_score

from reason2decide.data.predictions import Prediction
from reason2decide.data.records import LabelSet, Record
from reason2decide.evaluation import statistics
from reason2decide.evaluation.metrics import Accuracy, Examples, MacroF1, SufficientStatistics

LABELS = ("a", "b", "c")


def examples_of(gold, predicted):
    records = [Record(str(i), "t", label) for i, label in enumerate(gold)]
    return Examples(records, [Prediction(str(i), label) for i, label in enumerate(predicted)], LabelSet(LABELS))


def counted(right):
    right = np.asarray(right, np.int64)
    return SufficientStatistics(np.array([[0.0, 1.0], [1.0, 1.0]]), right, np.arange(len(right)))


def unpooled(statistics_):
    n = len(statistics_)
    return SufficientStatistics(statistics_.rows[statistics_.row_of], np.arange(n), np.arange(n))


def test_bootstrap_equals_a_plain_loop_over_the_same_draws():
    rng = np.random.default_rng(3)
    gold, predicted = rng.choice(LABELS, 60), rng.choice(LABELS, 60)
    sums = unpooled(MacroF1().statistics(examples_of(gold, predicted)))
    values = statistics.bootstrap(sums, MacroF1().aggregate, resamples=40, seed=7)
    weights = statistics.draw_weights(np.arange(60), 60, 40, np.random.default_rng(7)).astype(int)
    for value, row in zip(values, weights, strict=True):
        drawn = np.repeat(np.arange(60), row)
        expected = f1_score(gold[drawn], predicted[drawn], labels=list(LABELS), average="macro", zero_division=0)
        assert value == pytest.approx(expected, abs=1e-12)


def test_group_bootstrap_equals_a_plain_loop_over_the_same_draws():
    right = np.array([1, 0, 1, 1, 0, 0, 1, 1])
    group_of = np.array([5, 5, 2, 2, 2, 9, 7, 7])
    pooled = statistics.pool_groups(counted(right), group_of)
    values = statistics.bootstrap(counted(right), Accuracy().aggregate, group_of=group_of, resamples=30, seed=1)
    weights = statistics.draw_weights(pooled.row_of, len(pooled.rows), 30, np.random.default_rng(1))
    # Group sums by hand, in order of group: 2 -> (2, 3), 5 -> (1, 2), 7 -> (2, 2), 9 -> (0, 1).
    assert pooled.rows[pooled.row_of].tolist() == [[2, 3], [1, 2], [2, 2], [0, 1]]
    for value, row in zip(values, weights, strict=True):
        hits = sum(count * sums[0] for count, sums in zip(row, pooled.rows, strict=True))
        size = sum(count * sums[1] for count, sums in zip(row, pooled.rows, strict=True))
        assert value == pytest.approx(hits / size)


def test_groups_of_examples_left_out_do_not_take_part():
    left_out = SufficientStatistics(np.eye(2), np.array([0, 1]), np.array([0, 3]))
    assert len(statistics.pool_groups(left_out, np.array([0, 1, 2, 0]))) == 1


@pytest.mark.parametrize("n", [15, 400])  # the first draws examples, the second counts of the two pooled rows
def test_pooling_equal_rows_keeps_the_distribution(n):
    right = (np.arange(n) % 5 > 0).astype(int)
    values = statistics.bootstrap(counted(right), Accuracy().aggregate, resamples=4000, seed=0)
    # The number right of a resample is binomial(n, 0.8): exact, whatever the pooling.
    assert values.mean() == pytest.approx(0.8, abs=4 * np.sqrt(0.16 / n / 4000))
    assert values.std() == pytest.approx(np.sqrt(0.16 / n), rel=0.05)
    ranks = np.arange(0, n + 1)
    empirical = np.searchsorted(np.sort(values * n), ranks + 0.5) / len(values)
    assert np.abs(empirical - stats.binom.cdf(ranks, n, 0.8)).max() < 1.63 / np.sqrt(4000)  # Kolmogorov, 1 %


def test_every_resample_draws_n():
    rng = np.random.default_rng(0)
    for row_of, rows in [(np.arange(7), 7), (np.zeros(50, int), 2), (np.array([0, 0, 1, 2, 2]), 3)]:
        weights = statistics.draw_weights(row_of, rows, 20, rng)
        assert weights.shape == (20, rows) and (weights.sum(1) == len(row_of)).all()


def test_interval_agrees_with_scipy():
    right = np.random.default_rng(5).random(300) < 0.7
    ours = statistics.percentile_interval(
        statistics.bootstrap(counted(right), Accuracy().aggregate, resamples=4000, seed=0)
    )
    theirs = stats.bootstrap((right.astype(float),), np.mean, n_resamples=4000, method="percentile", rng=0)
    assert ours == pytest.approx(tuple(theirs.confidence_interval), abs=0.008)


def test_coverage_of_the_interval():
    rng, covered = np.random.default_rng(11), 0
    for simulation in range(300):
        values = statistics.bootstrap(counted(rng.random(200) < 0.8), Accuracy().aggregate, seed=simulation)
        low, high = statistics.percentile_interval(values)
        covered += low <= 0.8 <= high
    assert 0.91 <= covered / 300 <= 0.985


def test_groups_widen_the_interval_of_dependent_examples():
    rng = np.random.default_rng(2)
    group_of = np.repeat(np.arange(100), 10)
    right = (rng.random(100) < 0.7).astype(int)[group_of]  # a patient's ten calls are all right or all wrong
    alone = statistics.bootstrap(counted(right), Accuracy().aggregate)
    grouped = statistics.bootstrap(counted(right), Accuracy().aggregate, group_of=group_of)
    assert grouped.std() / alone.std() == pytest.approx(np.sqrt(10), rel=0.12)


def test_groups_of_one_are_examples():
    right = np.random.default_rng(2).random(500) < 0.7
    alone = statistics.bootstrap(counted(right), Accuracy().aggregate, seed=4)
    grouped = statistics.bootstrap(counted(right), Accuracy().aggregate, group_of=np.arange(500), seed=4)
    assert (alone == grouped).all()


@pytest.mark.parametrize("right", [[1], [0], [1] * 50])
def test_degenerate_intervals_are_points(right):
    values = statistics.bootstrap(counted(right), Accuracy().aggregate, resamples=100)
    assert statistics.percentile_interval(values) == (np.mean(right), np.mean(right))


def test_no_examples_are_our_own_mistake():
    with pytest.raises(AssertionError):
        statistics.bootstrap(counted([]), Accuracy().aggregate)


def test_seed_decides_and_chunks_do_not(monkeypatch):
    right = np.random.default_rng(1).random(40) < 0.5
    rows = unpooled(counted(right))
    first = statistics.bootstrap(rows, Accuracy().aggregate, resamples=50, seed=1)
    assert (first == statistics.bootstrap(rows, Accuracy().aggregate, resamples=50, seed=1)).all()
    assert (first != statistics.bootstrap(rows, Accuracy().aggregate, resamples=50, seed=2)).any()
    monkeypatch.setattr(statistics, "CHUNK_CELLS", 100)
    assert (first == statistics.bootstrap(rows, Accuracy().aggregate, resamples=50, seed=1)).all()


# ---- several metrics at once, BCa


def test_metrics_over_the_same_examples_share_their_draws():
    rng = np.random.default_rng(0)
    gold, predicted = rng.choice(LABELS, 60), rng.choice(LABELS, 60)
    one, other = (unpooled(metric.statistics(examples_of(gold, predicted))) for metric in (MacroF1(), Accuracy()))
    alone = [
        statistics.bootstrap(own, metric.aggregate, resamples=30, seed=5)
        for own, metric in ((one, MacroF1()), (other, Accuracy()))
    ]
    part = one.subset(np.arange(60) < 30)
    together = statistics.bootstrap_all(
        [(one, MacroF1().aggregate), (part, MacroF1().aggregate), (other, Accuracy().aggregate)], resamples=30, seed=5
    )
    np.testing.assert_allclose(together[0], alone[0], atol=1e-12)
    np.testing.assert_allclose(together[2], alone[1], atol=1e-12)
    np.testing.assert_allclose(together[1], statistics.bootstrap(part, MacroF1().aggregate, resamples=30, seed=5))


def test_bca_agrees_with_scipy():
    values = np.random.default_rng(3).exponential(size=80)  # skewed, where it differs from the percentile interval
    own = SufficientStatistics(np.stack((values, np.ones(80)), -1), np.arange(80), np.arange(80))
    draws = statistics.bootstrap(own, Accuracy().aggregate, resamples=20_000, seed=0)
    ours = statistics.bca_interval(draws, own, Accuracy().aggregate)
    theirs = stats.bootstrap((values,), np.mean, n_resamples=20_000, method="BCa", rng=0).confidence_interval
    assert ours == pytest.approx(tuple(theirs), abs=0.012)
    assert statistics.percentile_interval(draws)[1] < ours[1] - 0.015


def test_bca_of_groups_and_of_pooled_rows():
    right = np.random.default_rng(4).random(300) < 0.85
    draws = statistics.bootstrap(counted(right), Accuracy().aggregate, resamples=5000)
    pooled = statistics.bca_interval(draws, counted(right), Accuracy().aggregate)
    assert pooled == pytest.approx(statistics.bca_interval(draws, unpooled(counted(right)), Accuracy().aggregate))
    alone = statistics.bca_interval(draws, counted(right), Accuracy().aggregate, group_of=np.arange(300))
    assert alone == pytest.approx(pooled)


@pytest.mark.parametrize("right", [[1], [0, 0], [1] * 50])
def test_bca_without_spread_is_a_point(right):
    draws = statistics.bootstrap(counted(right), Accuracy().aggregate, resamples=100)
    assert statistics.bca_interval(draws, counted(right), Accuracy().aggregate) == (np.mean(right), np.mean(right))


# ---- two systems


def test_paired_statistics_keep_the_examples_that_both_count():
    one = SufficientStatistics(np.array([[1.0], [2.0]]), np.array([0, 1, 1]), np.array([0, 2, 5]))
    other = SufficientStatistics(np.array([[10.0], [20.0]]), np.array([1, 0, 0]), np.array([5, 2, 3]))
    both = statistics.paired(one, other)
    assert both.positions.tolist() == [2, 5]
    assert both.rows[both.row_of].tolist() == [[2, 10], [2, 20]]


def test_paired_bootstrap_is_that_of_the_differences():
    rng = np.random.default_rng(6)
    one, other = rng.random(200) < 0.8, rng.random(200) < 0.7
    both = statistics.paired(counted(one), counted(other))
    gap = statistics.difference(Accuracy().aggregate, Accuracy().aggregate, 2)
    draws = statistics.bootstrap(both, gap, resamples=8000, seed=0)
    expected = stats.bootstrap((one.astype(float) - other,), np.mean, n_resamples=8000, method="percentile", rng=0)
    assert statistics.percentile_interval(draws) == pytest.approx(tuple(expected.confidence_interval), abs=0.01)


@pytest.mark.parametrize("shift", [0.0, 0.25, 0.6])
def test_randomization_p_agrees_with_scipy(shift):
    rng = np.random.default_rng(9)
    one, other = rng.normal(shift, 1, 60), rng.normal(0, 1, 60)
    both = statistics.paired(
        *(
            SufficientStatistics(np.stack((values, np.ones(60)), -1), np.arange(60), np.arange(60))
            for values in (one, other)
        )
    )
    ours = statistics.randomization_p(both, Accuracy().aggregate, resamples=9999, seed=0)
    theirs = stats.permutation_test(
        (one, other), lambda a, b: a.mean() - b.mean(), permutation_type="samples", n_resamples=9999, rng=0
    ).pvalue
    assert ours == pytest.approx(theirs, abs=0.02)
    draws = statistics.bootstrap(both, statistics.difference(Accuracy().aggregate, Accuracy().aggregate, 2), seed=0)
    assert statistics.bootstrap_p(draws, one.mean() - other.mean()) == pytest.approx(theirs, abs=0.06)


def test_randomization_swaps_whole_groups():
    """Ten calls a patient, all alike: with 8 patients no p can be under 2 in 2^8, however many calls there are."""
    one, other, group_of = np.repeat([1] * 8, 10), np.repeat([0] * 8, 10), np.repeat(np.arange(8), 10)
    both = statistics.paired(counted(one), counted(other))
    p = statistics.randomization_p(both, Accuracy().aggregate, group_of=group_of, resamples=20_000, seed=0)
    assert p == pytest.approx(2 / 2**8, abs=0.003)
    assert statistics.randomization_p(both, Accuracy().aggregate, resamples=2000, seed=0) < 0.001


def test_equal_systems_have_a_p_of_one():
    both = statistics.paired(counted([1, 0, 1]), counted([1, 0, 1]))
    assert statistics.randomization_p(both, Accuracy().aggregate, resamples=50) == 1
    assert statistics.mcnemar_p(0, 0) == 1


@pytest.mark.parametrize(("only_one", "only_other"), [(0, 1), (3, 9), (40, 22), (500, 610), (7, 7)])
def test_mcnemar_equals_the_binomial_test(only_one, only_other):
    expected = stats.binomtest(only_one, only_one + only_other).pvalue
    assert statistics.mcnemar_p(only_one, only_other) == pytest.approx(expected, rel=1e-9)


def test_holm_by_hand():
    # Sorted 0.01, 0.02, 0.03, 0.5 times 4, 3, 2, 1, then never less than the one before: 0.04, 0.06, 0.06, 0.5.
    assert statistics.holm([0.03, 0.5, 0.01, 0.02]) == pytest.approx([0.06, 0.5, 0.04, 0.06])
    assert statistics.holm([0.9, 0.8]) == [1.0, 1.0] and statistics.holm([]) == []
