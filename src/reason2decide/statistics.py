"""How sure a number is: the percentile bootstrap, over examples or over groups of them, for any metric.

A resample draws as many examples as there are, with replacement. What a metric sees of it is how often each distinct
row of sufficient statistics was drawn, so examples with equal rows are pooled: their joint count is multinomial, which
is the same distribution, not an approximation. For label metrics the work no longer depends on the number of examples.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from reason2decide.metrics.base import Floats, Integers, SufficientStatistics

RESAMPLES = 1000  # ours: the interval's ends then move by about 2 % of its width from seed to seed
LEVEL = 0.95
CHUNK_CELLS = 1 << 21  # ours: numbers held at once while resampling; about 50 MB whatever the size of the data


def pool_groups(statistics: SufficientStatistics, group_of: Integers) -> SufficientStatistics:
    """Statistics whose examples are groups: the rows of a group's examples summed, equal sums pooled.

    `group_of` has shape (N,): the group of each example in `Examples`, counted or not. Groups without a counted
    example do not take part.
    """
    _, groups = np.unique(group_of[statistics.positions], return_inverse=True)
    groups = groups.reshape(-1)
    columns = [np.bincount(groups, weights=column[statistics.row_of]) for column in statistics.rows.T]
    rows, row_of = np.unique(np.array(columns, np.float64).T, axis=0, return_inverse=True)
    return SufficientStatistics(rows, row_of.reshape(-1), np.arange(len(row_of)))


def draw_weights(row_of: Integers, rows: int, resamples: int, rng: np.random.Generator) -> Floats:
    """How often each distinct row occurs in each resample, shape (resamples, rows); every resample sums to n."""
    n = len(row_of)
    if rows * 10 <= n:  # few rows: their counts at once; many: n draws are faster than as many binomials
        return rng.multinomial(n, np.bincount(row_of, minlength=rows) / n, size=resamples).astype(float)
    drawn = row_of[rng.integers(n, size=(resamples, n), dtype=np.int64)]
    drawn += np.arange(resamples)[:, None] * rows
    return np.bincount(drawn.ravel(), minlength=resamples * rows).reshape(resamples, rows).astype(float)


def bootstrap(
    statistics: SufficientStatistics,
    aggregate: Callable[[Floats], Floats],
    *,
    group_of: Integers | None = None,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> Floats:
    """The metric's value in each resample, shape (resamples,); memory is bounded, the seed decides every draw.

    With `group_of` (N,) whole groups are resampled (cluster bootstrap): examples of one patient are not independent,
    and resampling them one by one would give intervals that are too narrow.

    Source: Efron and Tibshirani 1993, chapters 6 and 13; for groups, Davison and Hinkley 1997, section 3.8.
    """
    assert len(statistics) and resamples >= 1
    units = statistics if group_of is None else pool_groups(statistics, group_of)
    rng = np.random.default_rng(seed)
    values = []
    at_once = max(1, CHUNK_CELLS // max(len(units), units.rows.shape[1]))
    for start in range(0, resamples, at_once):
        weights = draw_weights(units.row_of, len(units.rows), min(at_once, resamples - start), rng)
        values.append(aggregate(weights @ units.rows))
    return np.concatenate(values)


def percentile_interval(values: Floats, level: float = LEVEL) -> tuple[float, float]:
    """The central share `level` of the resampled values, as (low, high).

    It is a point, and understates the doubt, where all resamples agree: one example, one group, or no mistake at all.
    """
    tail = (1 - level) / 2
    low, high = np.quantile(values, [tail, 1 - tail])
    return float(low), float(high)
