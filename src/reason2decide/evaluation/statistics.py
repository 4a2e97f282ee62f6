"""Uncertainty of a number: the bootstrap for any metric, over examples or groups of them.

A resample of n examples draws n of them with replacement. A metric sees only how often each distinct row of sufficient
statistics was drawn, so examples with equal rows are pooled: their joint count is multinomial, which is the same
distribution, not an approximation. For label metrics the work then does not depend on the number of examples.
Metrics with one row per example share their draws, and one matrix product sums them all.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from statistics import NormalDist

import numpy as np

from reason2decide.evaluation.metrics.base import Floats, Integers, SufficientStatistics
from reason2decide.evaluation.settings import RESAMPLES, IntervalMethod

LEVEL = 0.95
Z = 1.959964  # the 97.5 % point of the normal distribution
CHUNK_CELLS = 1 << 21  # ours: numbers in memory while resampling; about 50 MB for data of any size

Aggregate = Callable[[Floats], Floats]


def pool_groups(statistics: SufficientStatistics, group_of: Integers) -> SufficientStatistics:
    """Turn groups into examples: sum the rows of each group's examples, and pool equal sums.

    `group_of` has shape (N,): the group of each example in `Examples`, counted or not. Groups without a counted
    example are left out; `positions` of the result are the remaining groups.
    """
    present, groups = np.unique(group_of[statistics.positions], return_inverse=True)
    groups = groups.reshape(-1)
    columns = [np.bincount(groups, weights=column[statistics.row_of]) for column in statistics.rows.T]
    rows, row_of = np.unique(np.array(columns, np.float64).T, axis=0, return_inverse=True)
    return SufficientStatistics(rows, row_of.reshape(-1), present)


def draw_weights(row_of: Integers, rows: int, resamples: int, rng: np.random.Generator) -> Floats:
    """How often each distinct row occurs in each resample, shape (resamples, rows); every resample sums to n."""
    n = len(row_of)
    if rows * 10 <= n:  # for few rows, draw their counts; for many, n draws are faster than a binomial for each row
        return rng.multinomial(n, np.bincount(row_of, minlength=rows) / n, size=resamples).astype(float)
    drawn = row_of[rng.integers(n, size=(resamples, n), dtype=np.int64)]
    drawn += np.arange(resamples)[:, None] * rows
    return np.bincount(drawn.ravel(), minlength=resamples * rows).reshape(resamples, rows).astype(float)


def bootstrap(
    statistics: SufficientStatistics,
    aggregate: Aggregate,
    *,
    group_of: Integers | None = None,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> Floats:
    """The metric's value in each resample, shape (resamples,); memory is bounded, and `seed` determines every draw.

    With `group_of` (N,), whole groups are resampled (cluster bootstrap): examples of one patient are not independent,
    and resampling them one by one would make intervals too narrow.

    Source: Efron and Tibshirani 1993, chapters 6 and 13; for groups, Davison and Hinkley 1997, section 3.8.
    """
    return bootstrap_all([(statistics, aggregate)], group_of=group_of, resamples=resamples, seed=seed)[0]


def bootstrap_all(
    metrics: Sequence[tuple[SufficientStatistics, Aggregate]],
    *,
    group_of: Integers | None = None,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> list[Floats]:
    """As `bootstrap` for several metrics; those with one row per example, over the same examples, share draws."""
    assert all(len(statistics) for statistics, _ in metrics) and resamples >= 1
    units = [counts if group_of is None else pool_groups(counts, group_of) for counts, _ in metrics]
    sharing: dict[bytes | int, list[int]] = {}
    for index, unit in enumerate(units):
        many_rows = len(unit.rows) * 10 > len(unit)
        sharing.setdefault(unit.positions.tobytes() if many_rows else index, []).append(index)
    values: list[Floats] = [np.empty(0)] * len(units)
    for members in sharing.values():
        first = units[members[0]]
        if len(members) == 1:
            row_of, rows = first.row_of, first.rows
        else:
            row_of, rows = np.arange(len(first)), np.hstack([units[i].rows[units[i].row_of] for i in members])
        ends = np.cumsum([units[i].rows.shape[1] for i in members])[:-1]
        rng = np.random.default_rng(seed)
        parts: list[list[Floats]] = []
        at_once = max(1, CHUNK_CELLS // max(len(row_of), rows.shape[1]))
        for start in range(0, resamples, at_once):
            sums = draw_weights(row_of, len(rows), min(at_once, resamples - start), rng) @ rows
            split = np.split(sums, ends, axis=1)
            parts.append([metrics[i][1](columns) for i, columns in zip(members, split, strict=True)])
        for column, i in enumerate(members):
            values[i] = np.concatenate([part[column] for part in parts])
    return values


def percentile_interval(values: Floats, level: float = LEVEL) -> tuple[float, float]:
    """The central share `level` of the resampled values, as (low, high).

    If all resamples agree (one example, one group, or no mistakes), it is a point and understates the uncertainty.
    """
    tail = (1 - level) / 2
    low, high = np.quantile(values, [tail, 1 - tail])
    return float(low), float(high)


def bca_interval(
    values: Floats,
    statistics: SufficientStatistics,
    aggregate: Aggregate,
    *,
    group_of: Integers | None = None,
    level: float = LEVEL,
) -> tuple[float, float]:
    """The bias-corrected and accelerated interval from resampled values, as (low, high).

    The quantiles of the percentile interval are shifted for the bias of the resampled values (z0) and for how their
    spread changes with the value (acceleration, from leaving out each unit in turn). If all resamples lie on one side
    of the value, it is the percentile interval. Source: Efron 1987; Efron and Tibshirani 1993, section 14.3.
    """
    units = statistics if group_of is None else pool_groups(statistics, group_of)
    total = units.total()
    value = aggregate(total)
    normal = NormalDist()
    below = (np.count_nonzero(values < value) + np.count_nonzero(values == value) / 2) / len(values)
    if not 0 < below < 1:
        return percentile_interval(values, level)
    bias = normal.inv_cdf(below)
    counts = np.bincount(units.row_of, minlength=len(units.rows))
    influence = _leaving_one_out(units, aggregate, total)
    influence = (influence * counts).sum() / counts.sum() - influence
    spread = (counts * influence**2).sum()
    acceleration = (counts * influence**3).sum() / (6 * spread**1.5) if spread > 0 else 0.0

    def moved(quantile: float) -> float:
        z = bias + normal.inv_cdf(quantile)
        return normal.cdf(bias + z / (1 - acceleration * z))

    tail = (1 - level) / 2
    low, high = np.quantile(values, [moved(tail), moved(1 - tail)])
    return float(low), float(high)


def _leaving_one_out(units: SufficientStatistics, aggregate: Aggregate, total: Floats) -> Floats:
    """The value without one unit of each distinct row, (rows,)."""
    at_once = max(1, CHUNK_CELLS // max(1, units.rows.shape[1]))
    parts = [aggregate(total - units.rows[i : i + at_once]) for i in range(0, len(units.rows), at_once)]
    return np.concatenate(parts)


def interval(
    method: IntervalMethod,
    values: Floats,
    statistics: SufficientStatistics,
    aggregate: Aggregate,
    *,
    group_of: Integers | None = None,
) -> tuple[float, float]:
    """The 95 % interval by the given method."""
    if method == "bca":
        return bca_interval(values, statistics, aggregate, group_of=group_of)
    return percentile_interval(values)


# ---- two systems on the same examples


def paired(one: SufficientStatistics, other: SufficientStatistics) -> SufficientStatistics:
    """The statistics of two systems side by side, (d + d' columns), over the examples counted by both.

    Of sums over random groups, which do not say which examples they count, as many as the one with fewer has.
    """
    positions, of_one, of_other = np.intersect1d(
        one.positions, other.positions, assume_unique=True, return_indices=True
    )
    pairs, row_of = np.unique(np.stack((one.row_of[of_one], other.row_of[of_other]), -1), axis=0, return_inverse=True)
    rows = np.hstack((one.rows[pairs[:, 0]], other.rows[pairs[:, 1]]))
    summed = min(one.counted, other.counted) if one.examples is not None else None
    return SufficientStatistics(rows, row_of.reshape(-1), positions, examples=summed)


def difference(one: Aggregate, other: Aggregate, columns: int) -> Aggregate:
    """One system's value minus the other's, from sums of `paired` statistics; the first `columns` belong to `one`."""
    return lambda sums: one(sums[..., :columns]) - other(sums[..., columns:])


def bootstrap_p(values: Floats, observed: float) -> float:
    """Two-sided p value of no difference: the share of resampled differences as far from the observed one as 0 is.

    Source: Efron and Tibshirani 1993, section 16.4, shifted to the null; one is added to both counts.
    """
    return (1 + int(np.count_nonzero(np.abs(values - observed) >= abs(observed)))) / (1 + len(values))


def randomization_p(
    both: SufficientStatistics,
    aggregate: Aggregate,
    *,
    group_of: Integers | None = None,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> float:
    """Two-sided p value of no difference by approximate randomization, which swaps outputs of two systems at random.

    Args:
        both: from `paired`.
        aggregate: of one system's sums.

    Source: Noreen 1989; for NLP, Riezler and Maxwell 2005. Groups, if given, are swapped as a whole.
    """
    units = both if group_of is None else pool_groups(both, group_of)
    columns = units.rows.shape[1] // 2
    total, change = units.total(), units.rows[:, :columns] - units.rows[:, columns:]
    counts = np.bincount(units.row_of, minlength=len(units.rows))
    rng, as_far = np.random.default_rng(seed), 0
    observed = abs(float(aggregate(total[:columns]) - aggregate(total[columns:])))
    at_once = max(1, CHUNK_CELLS // len(units.rows))
    for start in range(0, resamples, at_once):
        size = min(at_once, resamples - start)
        shift = rng.binomial(counts, 0.5, size=(size, len(counts))) @ change
        differences = aggregate(total[:columns] - shift) - aggregate(total[columns:] + shift)
        as_far += int(np.count_nonzero(np.abs(differences) >= observed - 1e-12))  # equal up to rounding
    return (1 + as_far) / (1 + resamples)


def wilson_interval(share: float, n: float) -> tuple[float, float]:
    """The 95 % interval of a share of n cases (Wilson 1927), which stays within 0 and 1 even for few cases."""
    centre = (share + Z**2 / (2 * n)) / (1 + Z**2 / n)
    half = Z / (1 + Z**2 / n) * math.sqrt(share * (1 - share) / n + Z**2 / (4 * n**2))
    return max(0.0, centre - half), min(1.0, centre + half)


def mcnemar_p(only_one: int, only_other: int) -> float:
    """Two-sided exact p value of equal accuracy, from the numbers of records that only one of two systems got right.

    Source: McNemar 1947, in its exact binomial form.
    """
    n, least = only_one + only_other, min(only_one, only_other)
    log_terms = [math.lgamma(n + 1) - math.lgamma(k + 1) - math.lgamma(n - k + 1) for k in range(least + 1)]
    return min(1.0, 2 * sum(math.exp(term - n * math.log(2)) for term in log_terms))


def holm(p_values: Sequence[float]) -> list[float]:
    """Adjust p values so that the chance of any false positive in the family stays at the level (Holm 1979)."""
    order = sorted(range(len(p_values)), key=p_values.__getitem__)
    adjusted, largest = [0.0] * len(p_values), 0.0
    for rank, index in enumerate(order):
        largest = max(largest, min(1.0, (len(order) - rank) * p_values[index]))
        adjusted[index] = largest
    return adjusted
