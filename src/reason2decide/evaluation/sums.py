"""What the figures of an evaluation are computed from: sums over examples, which those of parts add up to."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from reason2decide.errors import NotComputed
from reason2decide.evaluation.examples import group_indices
from reason2decide.evaluation.metrics import Examples, Metric, SufficientStatistics, confusion_matrix
from reason2decide.evaluation.metrics.base import Floats, Integers
from reason2decide.evaluation.metrics.calibration import level_sums, reliability_sums
from reason2decide.evaluation.slices import Slicing
from reason2decide.model.calibration import Calibration, rescaled

CALIBRATED = ("log_loss", "brier", "calibration_error", "ece")  # the metrics that a temperature changes
CONFUSION = "confusion"  # under this name, why there is no confusion matrix


@dataclass(frozen=True)
class SliceSums:
    """A slice: its number of examples, the statistics of each metric, and the labels that are gold in it."""

    count: int
    statistics: Mapping[str, SufficientStatistics]
    gold: frozenset[str]


@dataclass(frozen=True)
class Sums:
    """Sums over the examples.

    Args:
        count: number of examples.
        units: number of what is resampled, `unit` in words.
        statistics: of each metric that is defined on the examples.
        undefined: why the other metrics are not.
        slices: by column and value.
        confusion: (K, K + 1) as `confusion_matrix`; None without common labels.
        reliability: (bins, 3) as `reliability_sums`; None without probabilities.
        levels: (levels, 2) as `level_sums`; None without probabilities.
        unscaled: for each metric that a temperature changes, its summed statistics without the temperature.
        group_of: (count,) the group of each example, None where they are resampled one by one or are pooled already.
    """

    count: int
    units: int
    unit: str
    statistics: Mapping[str, SufficientStatistics]
    undefined: Mapping[str, NotComputed]
    slices: Mapping[str, Mapping[str, SliceSums]] = field(default_factory=dict)
    confusion: Integers | None = None
    reliability: Floats | None = None
    levels: Floats | None = None
    unscaled: Mapping[str, Floats] = field(default_factory=dict)
    group_of: Integers | None = None


def sums_of(
    examples: Examples, metrics: Sequence[Metric], slicings: Sequence[Slicing], calibration: Calibration | None
) -> Sums:
    """The sums over all examples, and over those of each slice."""
    statistics, undefined = statistics_of(metrics, examples)
    confusion = None
    try:
        confusion = confusion_matrix(examples)
    except NotComputed as reason:
        undefined[CONFUSION] = reason
    group_of = group_indices(examples.records)
    return Sums(
        len(examples),
        len(examples) if group_of is None else len(np.unique(group_of)),
        "record" if group_of is None else "group",
        statistics,
        undefined,
        {slicing.column.name: _slices(examples, statistics, slicing) for slicing in slicings},
        confusion,
        _sums(reliability_sums, examples),
        _sums(level_sums, examples),
        _unscaled(examples, metrics, calibration),
        group_of,
    )


def statistics_of(
    metrics: Sequence[Metric], examples: Examples
) -> tuple[dict[str, SufficientStatistics], dict[str, NotComputed]]:
    """The statistics of every metric that is defined on these examples, and why the others are not."""
    statistics, undefined = {}, {}
    for metric in metrics:
        try:
            statistics[metric.name] = metric.statistics(examples)
        except NotComputed as reason:
            undefined[metric.name] = reason
    return statistics, undefined


def _slices(
    examples: Examples, statistics: Mapping[str, SufficientStatistics], slicing: Slicing
) -> dict[str, SliceSums]:
    return {
        value: SliceSums(
            int(mask.sum()),
            {name: counts.subset(mask) for name, counts in statistics.items()},
            frozenset(str(examples.records[i].label) for i in np.flatnonzero(mask).tolist()),
        )
        for value, mask in slicing.masks(examples.records).items()
    }


def _sums(function: Callable[[Examples], Floats], examples: Examples) -> Floats | None:
    try:
        return function(examples)
    except NotComputed:
        return None


def _unscaled(examples: Examples, metrics: Sequence[Metric], calibration: Calibration | None) -> dict[str, Floats]:
    if calibration is None:
        return {}
    raw = [
        replace(prediction, probabilities=rescaled(prediction.probabilities, 1 / calibration.temperature))
        if prediction.probabilities is not None
        else prediction
        for prediction in examples.predictions
    ]
    before, unscaled = {}, replace(examples, predictions=raw)
    for metric in metrics:
        if metric.name in CALIBRATED:
            try:
                before[metric.name] = metric.statistics(unscaled).total()
            except NotComputed:
                continue
    return before
