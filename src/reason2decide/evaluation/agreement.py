"""Agreement of raters beyond chance: Cohen's kappa for two, Krippendorff's alpha for any number, with intervals.

Both are one minus the ratio of observed to expected disagreement, computed from sums over the rated units. Their
intervals therefore come from the bootstrap of `statistics.py`, over units or groups of units.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike

from reason2decide.evaluation.metrics.base import Floats, Integers, SufficientStatistics
from reason2decide.evaluation.results import MetricValue
from reason2decide.evaluation.settings import RESAMPLES
from reason2decide.evaluation.statistics import Aggregate, bootstrap, percentile_interval

Weights = Literal["none", "linear", "quadratic"]
Level = Literal["nominal", "ordinal", "interval"]

ROUNDING = (
    1e-12  # ours: expected disagreement below this share of the values' squares is a rounding error and counts as 0
)

_DISTANCES: dict[Weights, Callable[[Floats], Floats]] = {
    "none": lambda d: (d != 0).astype(float),
    "linear": np.abs,
    "quadratic": np.square,
}


def cohen_kappa(a: Sequence[float], b: Sequence[float], weights: Weights = "quadratic") -> float:
    """Agreement of two raters on the same n units, (n,) each, beyond that of independent raters with the same margins.

    Formula: 1 - sum_ij w_ij O_ij / sum_ij w_ij E_ij, O the observed shares of pairs of scores and E the products of
    both raters' marginal shares. The weight of a pair is the distance of its scores ("linear"), the squared distance
    ("quadratic"), or 1 unless equal ("none"). Distances are those of the scores themselves, so a level that nobody gave
    still counts as a step. NaN if both raters gave every unit the same score, since no disagreement was possible.
    Source: Cohen 1960; weighted, Cohen 1968.
    """
    statistics, kappa = _kappa(a, b, weights)
    return float(kappa(statistics.total()))


def krippendorff_alpha(ratings: ArrayLike, level: Level = "ordinal") -> float:
    """Agreement of any number of raters; `ratings` is (raters, units), NaN where a rater did not rate a unit.

    Formula: 1 - D_o / D_e, the mean squared difference of two ratings of one unit over that of two ratings of any
    units; units with a single rating do not count. The difference is 1 unless equal ("nominal"), that of the values
    ("interval"), or the number of ratings between the two values ("ordinal", for scales of few levels). NaN if all
    ratings are equal. Source: Krippendorff 2011, "Computing Krippendorff's alpha-reliability".
    """
    statistics, alpha = _alpha(ratings, level)
    return float(alpha(statistics.total()))


def kappa_interval(
    a: Sequence[float],
    b: Sequence[float],
    weights: Weights = "quadratic",
    *,
    group_of: Integers | None = None,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> MetricValue:
    """`cohen_kappa` with a 95 % interval from resampling units, or their groups (n,)."""
    return _with_interval(*_kappa(a, b, weights), group_of, resamples, seed)


def alpha_interval(
    ratings: ArrayLike,
    level: Level = "ordinal",
    *,
    group_of: Integers | None = None,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> MetricValue:
    """`krippendorff_alpha` with a 95 % interval from resampling units, or their groups (units,)."""
    return _with_interval(*_alpha(ratings, level), group_of, resamples, seed)


def _with_interval(
    statistics: SufficientStatistics, aggregate: Aggregate, group_of: Integers | None, resamples: int, seed: int
) -> MetricValue:
    """The value and its interval, None if undefined; resamples without a value (say, of one score) are skipped."""
    if not len(statistics) or np.isnan(value := float(aggregate(statistics.total()))):
        return MetricValue(None, None, None, len(statistics))
    draws = bootstrap(statistics, aggregate, group_of=group_of, resamples=resamples, seed=seed)
    defined = draws[~np.isnan(draws)]
    low, high = percentile_interval(defined) if len(defined) else (None, None)
    return MetricValue(value, low, high, len(statistics))


def _kappa(a: Sequence[float], b: Sequence[float], weights: Weights) -> tuple[SufficientStatistics, Aggregate]:
    """The table of pairs of scores, one cell per unit, and the function from a summed table to kappa."""
    one, other = np.asarray(a, float), np.asarray(b, float)
    assert one.shape == other.shape and one.ndim == 1
    values, codes = np.unique(np.concatenate((one, other)), return_inverse=True)
    size = len(values)
    cells = codes[: len(one)] * size + codes[len(one) :]
    weight = _DISTANCES[weights](values[:, None] - values[None, :])

    def kappa(sums: Floats) -> Floats:
        table = sums.reshape(*sums.shape[:-1], size, size)
        n = table.sum((-2, -1))
        observed = (table * weight).sum((-2, -1)) * n
        margins = table.sum(-1)[..., :, None] * table.sum(-2)[..., None, :]
        return _one_less(observed, (margins * weight).sum((-2, -1)))

    return SufficientStatistics(np.eye(size * size), cells, np.arange(len(one))), kappa


def _alpha(ratings: ArrayLike, level: Level) -> tuple[SufficientStatistics, Aggregate]:
    """Statistics of the units with at least two ratings, and the function from their sums to alpha."""
    given = np.asarray(ratings, float)
    assert given.ndim == 2
    rated = ~np.isnan(given)
    units = np.flatnonzero(rated.sum(0) > 1)
    given, rated = given[:, units], rated[:, units]
    if level == "interval":
        rows, alpha = _interval_rows(given, rated), _interval_alpha
    else:
        rows, alpha = _coincidences(given, rated), _nominal_alpha if level == "nominal" else _ordinal_alpha
    distinct, row_of = np.unique(rows, axis=0, return_inverse=True)
    return SufficientStatistics(distinct, row_of.reshape(-1), units), alpha


def _interval_rows(given: Floats, rated: np.ndarray) -> Floats:
    """(pairwise squared differences / (m - 1), m, sum, sum of squares) of each unit's m ratings, (units, 4)."""
    # Differences do not depend on the origin; centred values keep precision when squared.
    values = np.where(rated, given - (given[rated].mean() if rated.any() else 0), 0)
    m, total, squares = rated.sum(0), values.sum(0), (values**2).sum(0)
    spread = 2 * (m * squares - total**2) / (m - 1)
    return np.stack((spread, m, total, squares), -1)


def _interval_alpha(sums: Floats) -> Floats:
    spread, n, total, squares = (sums[..., i] for i in range(4))
    expected = 2 * (n * squares - total**2)
    return _one_less(spread * (n - 1), np.where(expected > ROUNDING * n * squares, expected, 0))


def _coincidences(given: Floats, rated: np.ndarray) -> Floats:
    """Each unit's share of the coincidence matrix, (units, values squared): its ordered pairs divided by m - 1."""
    values = np.unique(given[rated])
    counts = (given[:, :, None] == values).sum(0).astype(float)
    pairs = counts[:, :, None] * counts[:, None, :]
    diagonal = np.arange(len(values))
    pairs[:, diagonal, diagonal] -= counts
    pairs /= (rated.sum(0) - 1)[:, None, None]
    flat: Floats = pairs.reshape(len(pairs), len(values) ** 2)
    return flat


def _matrix(sums: Floats) -> tuple[Floats, Floats]:
    """Coincidence matrices (..., v, v) and the count of each value (..., v)."""
    size = round(sums.shape[-1] ** 0.5)
    matrix = sums.reshape(*sums.shape[:-1], size, size)
    return matrix, matrix.sum(-1)


def _nominal_alpha(sums: Floats) -> Floats:
    matrix, counts = _matrix(sums)
    return _of_coincidences(matrix, counts, 1.0 - np.eye(matrix.shape[-1]))


def _ordinal_alpha(sums: Floats) -> Floats:
    matrix, counts = _matrix(sums)
    # The number of ratings between two values, with half of those at either end, is the distance of their mid-ranks.
    ranks = counts.cumsum(-1) - counts / 2
    return _of_coincidences(matrix, counts, (ranks[..., :, None] - ranks[..., None, :]) ** 2)


def _of_coincidences(matrix: Floats, counts: Floats, squared_difference: Floats) -> Floats:
    n = counts.sum(-1)
    observed = (matrix * squared_difference).sum((-2, -1)) * (n - 1)
    return _one_less(observed, (counts[..., :, None] * counts[..., None, :] * squared_difference).sum((-2, -1)))


def _one_less(observed: Floats, expected: Floats) -> Floats:
    """1 - observed / expected, NaN where the expected disagreement is 0."""
    observed, expected = np.broadcast_arrays(observed, expected)
    quotient = np.divide(observed, expected, out=np.full(expected.shape, np.nan), where=expected > 0)
    result: Floats = 1 - quotient
    return result
