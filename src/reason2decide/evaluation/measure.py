"""Turn predictions and records into `Results`: every metric with its interval, and the signature for comparisons."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from reason2decide.data.predictions import Prediction
from reason2decide.data.records import LabelSet, Record
from reason2decide.evaluation.examples import align
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
from reason2decide.evaluation.slices import Column, Slicing
from reason2decide.evaluation.statistics import LEVEL, bootstrap_all, interval
from reason2decide.evaluation.sums import CONFUSION, SliceSums, Sums, sums_of
from reason2decide.model.calibration import Calibration
from reason2decide.version import __version__

# Ours: intervals of fewer records, or groups of like ones, held in as few as 74 of 100 simulations (docs/measures.md).
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
    """`results` and what they were computed from: `count` examples, or a sample of them where they are too many."""

    results: Results
    examples: Examples
    count: int
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
    point = calibration.operating_point(settings.error_rate, settings.miscoverage) if calibration else None
    threshold, cutoff = (point.threshold, point.cutoff) if point else (None, None)
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
    slicings = [Slicing.fit(examples.records, Column.parse(text)) for text in settings.slices]  # fails before computing
    metrics = signed(metrics_of(settings, labels, calibration), probes)
    sums = sums_of(examples, metrics, slicings, calibration)
    results = results_of(sums, metrics, labels, origin, settings, calibration=calibration, probes=probes or ())
    return Evaluation(results, examples, len(examples), sums.statistics, sums.group_of)


def results_of(
    sums: Sums,
    metrics: Sequence[Metric],
    labels: LabelSet,
    origin: Origin,
    settings: Settings,
    *,
    calibration: Calibration | None = None,
    probes: Sequence[Probe] = (),
) -> Results:
    """Every value with its interval, from the sums over the examples."""
    notes = Notes()
    computed = [metric for metric in metrics if metric.name in sums.statistics]
    for metric in metrics:
        counts = sums.statistics.get(metric.name)
        if counts is None:
            notes.add(metric.name, f"not computed: {sums.undefined[metric.name]}")
            continue
        for note in (*counts.notes, *metric.remarks(counts.total(), labels)):
            notes.add(metric.name, note)
    values = values_of(computed, sums.statistics, sums.group_of, settings, notes)
    matrix = sums.confusion
    if matrix is None:
        for name in ("per_label", CONFUSION):
            notes.add(name, f"not computed: {sums.undefined[CONFUSION]}")
    if sums.units < FEW_UNITS:
        what = f"{sums.unit}s" if sums.unit == "record" else "groups of records"
        notes.add(
            "intervals",
            f"they rest on {sums.units} {what}, which is few: they are too narrow more often than they say",
        )
    slices = {
        column: tuple(_slice(value, part, computed, sums.group_of, settings, labels) for value, part in parts.items())
        for column, parts in sums.slices.items()
    }
    return Results(
        system=origin.system,
        metrics={metric.name: values.get(metric.name, MetricValue(None, None, None, 0)) for metric in metrics},
        per_label={} if matrix is None else per_label_scores(matrix, labels.values),
        confusion_labels=() if matrix is None else labels.values,
        confusion_matrix=() if matrix is None else tuple(tuple(int(count) for count in row[:-1]) for row in matrix),
        unanswered=() if matrix is None else tuple(int(row[-1]) for row in matrix),
        signature=signature(origin, settings, metrics, unit=sums.unit, probes=probes),
        dataset=origin.dataset,
        dataset_sha256=origin.sha256,
        split=origin.split,
        calibration=_calibration_results(calibration, settings, sums, metrics),
        reliability=() if sums.reliability is None else tuple(reliability_curve(sums.reliability)),
        risk_coverage=() if sums.levels is None else tuple(risk_coverage_curve(sums.levels)),
        slices=slices,
        gaps={name: _gaps(parts, computed) for name, parts in slices.items()},
        notes=notes.lines(),
    )


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
        values[metric.name] = MetricValue(float(metric.aggregate(counts.total())), None, None, counts.counted)
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
    part: SliceSums,
    metrics: Sequence[Metric],
    group_of: Integers | None,
    settings: Settings,
    labels: LabelSet,
) -> Slice:
    counted = [
        metric.within(part.statistics[metric.name]) for metric in metrics if len(part.statistics.get(metric.name, ()))
    ]
    absent = tuple(label for label in labels.values if label not in part.gold)  # none for an open label set
    return Slice(value, part.count, values_of(counted, part.statistics, group_of, settings), absent)


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


def _calibration_results(
    calibration: Calibration | None, settings: Settings, sums: Sums, metrics: Sequence[Metric]
) -> CalibrationResults | None:
    if calibration is None:
        return None
    by_name = {metric.name: metric for metric in metrics}
    return CalibrationResults(
        calibration.temperature,
        {name: float(by_name[name].aggregate(total)) for name, total in sums.unscaled.items()},
        settings.error_rate,
        calibration.threshold(settings.error_rate),
        settings.miscoverage,
        calibration.cutoff(settings.miscoverage),
    )


def signature(
    origin: Origin, settings: Settings, metrics: Sequence[Metric], *, unit: str, probes: Sequence[Probe]
) -> str:
    """Everything a value depends on besides the predictions, as `key:value` parts joined by `|`."""
    parts = [
        f"reason2decide:{__version__}",
        f"dataset:{origin.dataset}@{origin.sha256[:16]}",
        f"split:{origin.split}",
        f"source:{settings.rationale_source or 'none'}",
        f"ci:{settings.interval}-bootstrap-{100 * LEVEL:.0f}",
        f"unit:{unit}",
        f"resamples:{settings.resamples}",
        f"seed:{settings.seed}",
        # The targets, not the thresholds that a system's own validation then gives.
        f"error_rate:{settings.error_rate:g}",
        f"miscoverage:{settings.miscoverage:g}",
        f"long_texts:{settings.long_texts}",
        f"input_tokens:{settings.input_tokens or 'as trained'}",
        f"guidance:{settings.guidance:g}",
        f"best_of:{settings.best_of}",
    ]
    probed = sum(probe.is_probed for probe in probes)
    parts += [f"probed:{probed}"] if probed else []
    parts += [f"insertions:{settings.insertions}"] if settings.insertions else []
    parts += [f"{metric.name}:[{metric.signature()}]" for metric in metrics if metric.signature()]
    return "|".join(parts)
