"""Turn predictions and records into `Results`: every metric with its interval, and the signature for comparisons."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from reason2decide.data.predictions import Prediction
from reason2decide.data.records import LabelSet, Record
from reason2decide.errors import NotComputed
from reason2decide.evaluation.examples import align, group_indices
from reason2decide.evaluation.metrics import (
    METRICS,
    BertScore,
    ConformalCoverage,
    ConformalSetSize,
    Deferred,
    Examples,
    ExpectedCost,
    Metric,
    SelectiveError,
    SufficientStatistics,
    confusion_matrix,
    per_label_scores,
    reliability_curve,
    risk_coverage_curve,
)
from reason2decide.evaluation.metrics.base import Integers
from reason2decide.evaluation.metrics.judged import signed
from reason2decide.evaluation.metrics.ordinal import read_costs
from reason2decide.evaluation.probes import Probe
from reason2decide.evaluation.results import CalibrationResults, MetricValue, Results, Slice
from reason2decide.evaluation.settings import DEFAULT_SETTINGS, Settings
from reason2decide.evaluation.slices import Column, slice_records
from reason2decide.evaluation.statistics import LEVEL, bootstrap_all, interval
from reason2decide.model.calibration import Calibration, rescaled
from reason2decide.version import __version__

CALIBRATED = ("log_loss", "brier", "calibration_error", "ece")  # the metrics that a temperature changes
# Ours: intervals of fewer records, or groups of like ones, held in as few as 74 of 100 simulations (docs/results.md).
FEW_UNITS = 50
LEAST_SLICE = 10  # ours: smaller slices are left out of the largest gap, which they would almost always determine


@dataclass(frozen=True)
class Origin:
    """The source of the records, and the system that decided on them."""

    dataset: str
    sha256: str
    split: str
    system: str = "system"


@dataclass(frozen=True)
class Evaluation:
    """`results` and what they were computed from."""

    results: Results
    examples: Examples
    statistics: Mapping[str, SufficientStatistics]
    group_of: Integers | None


@dataclass
class Notes:
    """Notes in order of appearance, each with the metrics it is about."""

    names_of: dict[str, list[str]] = field(default_factory=dict)

    def add(self, name: str, note: str) -> None:
        self.names_of.setdefault(note, []).append(name)

    def lines(self) -> tuple[str, ...]:
        return tuple(f"{', '.join(names)}: {note}" for note, names in self.names_of.items())


def metrics_of(settings: Settings, labels: LabelSet, calibration: Calibration | None) -> tuple[Metric, ...]:
    """All metrics in order, configured by the settings.

    Raises:
        DataError: the cost matrix or the baseline cannot be read.
    """
    threshold = calibration.threshold(settings.error_rate) if calibration else None
    cutoff = calibration.cutoff(settings.miscoverage) if calibration else None
    special = (
        BertScore(
            settings.bertscore_encoder,
            layer=settings.bertscore_layer,
            idf=settings.bertscore_idf,
            baseline=settings.bertscore_baseline,
        ),
        ExpectedCost(read_costs(settings.costs, labels) if settings.costs is not None else None),
        SelectiveError(threshold),
        Deferred(threshold),
        ConformalCoverage(cutoff),
        ConformalSetSize(cutoff),
    )
    by_name = {metric.name: metric for metric in special}
    return tuple(by_name.get(metric.name, metric) for metric in METRICS)


def require_usable(settings: Settings, labels: LabelSet) -> None:
    """Refuse settings whose files or slices cannot be read.

    Raises:
        DataError: one of them is missing, or of another format.
    """
    metrics_of(settings, labels, None)
    for text in settings.slices:
        Column.parse(text)


def evaluate(
    predictions: Sequence[Prediction],
    records: Sequence[Record],
    labels: LabelSet,
    origin: Origin,
    settings: Settings = DEFAULT_SETTINGS,
    *,
    calibration: Calibration | None = None,
    probes: Sequence[Probe] | None = None,
) -> Evaluation:
    """Compare predictions with the gold labels and rationales of their records, matched by id in any order.

    If records have groups, the intervals resample whole groups; a record without one is a group by itself.

    Args:
        calibration: of this system, from validation; the predictions already include its temperature.
        probes: further answers about the predictions.

    Raises:
        DataError: as `examples.align`, or a slice's column does not exist.
    """
    examples = align(predictions, records, labels, settings.rationale_source, origin.split, probes)
    columns = [Column.parse(text) for text in settings.slices]
    chosen = {column.name: slice_records(examples.records, column) for column in columns}  # fails before computing
    group_of, notes = group_indices(examples.records), Notes()
    metrics = signed(metrics_of(settings, labels, calibration), probes)
    statistics = statistics_of(metrics, examples, notes)
    computed = [metric for metric in metrics if metric.name in statistics]
    values = values_of(computed, statistics, group_of, settings, notes)
    everything = {metric.name: values.get(metric.name, MetricValue(None, None, None, 0)) for metric in metrics}
    slices = {
        name: tuple(
            _slice(value, mask, computed, statistics, group_of, settings, _absent(examples, mask))
            for value, mask in masks.items()
        )
        for name, masks in chosen.items()
    }
    try:
        matrix = confusion_matrix(examples)
        confusion: dict[str, Any] = {
            "confusion_labels": labels.values,
            "per_label": per_label_scores(matrix, labels.values),
            "confusion_matrix": tuple(tuple(int(count) for count in row[:-1]) for row in matrix),
            "unanswered": tuple(int(row[-1]) for row in matrix),
        }
    except NotComputed as reason:
        confusion = {"confusion_labels": (), "per_label": {}, "confusion_matrix": (), "unanswered": ()}
        notes.add("per_label", f"not computed: {reason}")
        notes.add("confusion", f"not computed: {reason}")
    units = len(examples) if group_of is None else len(np.unique(group_of))
    if units < FEW_UNITS:
        what = "records" if group_of is None else "groups of records"
        notes.add(
            "intervals", f"they rest on {units} {what}, which is few: they are too narrow more often than they say"
        )
    results = Results(
        system=origin.system,
        metrics=everything,
        **confusion,
        signature=signature(origin, settings, metrics, by_group=group_of is not None, probes=probes or ()),
        dataset=origin.dataset,
        dataset_sha256=origin.sha256,
        split=origin.split,
        calibration=_calibration_results(calibration, settings, examples, metrics),
        reliability=_curve(reliability_curve, examples),
        risk_coverage=_curve(risk_coverage_curve, examples),
        slices=slices,
        gaps={name: _gaps(parts, computed) for name, parts in slices.items()},
        notes=notes.lines(),
    )
    return Evaluation(results, examples, statistics, group_of)


def statistics_of(
    metrics: Sequence[Metric], examples: Examples, notes: Notes | None = None
) -> dict[str, SufficientStatistics]:
    """The statistics of every metric that is defined on these examples; `notes` gets why others are not."""
    found, notes = {}, notes or Notes()
    for metric in metrics:
        try:
            found[metric.name] = metric.statistics(examples)
        except NotComputed as reason:
            notes.add(metric.name, f"not computed: {reason}")
            continue
        for note in found[metric.name].notes:
            notes.add(metric.name, note)
    return found


def values_of(
    metrics: Sequence[Metric],
    statistics: Mapping[str, SufficientStatistics],
    group_of: Integers | None,
    settings: Settings,
    notes: Notes | None = None,
) -> dict[str, MetricValue]:
    """The value of every metric from its statistics, with its interval."""
    values = {}
    for metric in metrics:
        counts = statistics[metric.name]
        values[metric.name] = MetricValue(float(metric.aggregate(counts.total())), None, None, len(counts))
    surveyed = [metric for metric in metrics if metric.has_interval]
    drawn = [(statistics[metric.name], metric.resampled(statistics[metric.name].total())) for metric in surveyed]
    resampled = bootstrap_all(drawn, group_of=group_of, resamples=settings.resamples, seed=settings.seed)
    for metric, (counts, _), draws in zip(surveyed, drawn, resampled, strict=True):
        low, high = interval(settings.interval, draws, counts, metric.aggregate, group_of=group_of)
        values[metric.name] = replace(values[metric.name], low=low, high=high)
        if low == high and notes is not None:
            notes.add(metric.name, "all resamples agree, so the interval is a point and understates the uncertainty")
    return values


def _slice(
    value: str,
    mask: NDArray[np.bool_],
    metrics: Sequence[Metric],
    statistics: Mapping[str, SufficientStatistics],
    group_of: Integers | None,
    settings: Settings,
    absent: tuple[str, ...],
) -> Slice:
    parts = {name: counts.subset(mask) for name, counts in statistics.items()}
    counted = [metric.within(parts[metric.name]) for metric in metrics if len(parts[metric.name])]
    return Slice(value, int(mask.sum()), values_of(counted, parts, group_of, settings), absent)


def _absent(examples: Examples, mask: NDArray[np.bool_]) -> tuple[str, ...]:
    """The declared labels that are gold nowhere in a part of the examples; none for an open label set."""
    gold = {examples.records[i].label for i in np.flatnonzero(mask).tolist()}
    return tuple(label for label in examples.labels.values if label not in gold)


def _gaps(slices: Sequence[Slice], metrics: Sequence[Metric]) -> dict[str, dict[str, Any]]:
    """For each metric the slices with its lowest and highest value, and the difference of the two."""
    gaps = {}
    for metric in metrics:
        found = {
            part.value: part.metrics[metric.name].value
            for part in slices
            if metric.name in part.metrics and part.metrics[metric.name].n >= LEAST_SLICE
        }
        values = {name: value for name, value in found.items() if value is not None}
        if len(values) > 1:
            least, most = min(values, key=values.__getitem__), max(values, key=values.__getitem__)
            gaps[metric.name] = {"gap": values[most] - values[least], "least": least, "most": most}
    return gaps


def _curve(curve: Callable[[Examples], list[dict[str, float]]], examples: Examples) -> tuple[Mapping[str, float], ...]:
    try:
        return tuple(curve(examples))
    except NotComputed:
        return ()


def _calibration_results(
    calibration: Calibration | None, settings: Settings, examples: Examples, metrics: Sequence[Metric]
) -> CalibrationResults | None:
    if calibration is None:
        return None
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
                before[metric.name] = float(metric.aggregate(metric.statistics(unscaled).total()))
            except NotComputed:
                continue
    return CalibrationResults(
        calibration.temperature,
        before,
        settings.error_rate,
        calibration.threshold(settings.error_rate),
        settings.miscoverage,
        calibration.cutoff(settings.miscoverage),
    )


def signature(
    origin: Origin, settings: Settings, metrics: Sequence[Metric], *, by_group: bool, probes: Sequence[Probe]
) -> str:
    """Everything a value depends on besides the predictions, as `key:value` parts joined by `|`."""
    parts = [
        f"reason2decide:{__version__}",
        f"dataset:{origin.dataset}@{origin.sha256[:16]}",
        f"split:{origin.split}",
        f"source:{settings.rationale_source or 'none'}",
        f"ci:{settings.interval}-bootstrap-{100 * LEVEL:.0f}",
        f"unit:{'group' if by_group else 'record'}",
        f"resamples:{settings.resamples}",
        f"seed:{settings.seed}",
        # The targets, not the thresholds that a system's own validation then gives.
        f"error_rate:{settings.error_rate:g}",
        f"miscoverage:{settings.miscoverage:g}",
    ]
    parts += [f"long_texts:{settings.long_texts}"] if settings.long_texts != "decide" else []
    parts += [f"input_tokens:{settings.input_tokens}"] if settings.input_tokens is not None else []
    probed = sum(probe.is_probed for probe in probes)
    parts += [f"probed:{probed}"] if probed else []
    parts += [f"insertions:{settings.insertions}"] if settings.insertions else []
    parts += [f"{metric.name}:[{metric.signature()}]" for metric in metrics if metric.signature()]
    return "|".join(parts)
