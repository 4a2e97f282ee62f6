"""The bootstrap against a plain loop, against SciPy, and against what a 95 % interval promises."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats
from sklearn.metrics import f1_score

from reason2decide import statistics
from reason2decide.metrics import Accuracy, Examples, MacroF1, SufficientStatistics
from reason2decide.predictions import Prediction
from reason2decide.records import LabelSet, Record

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
