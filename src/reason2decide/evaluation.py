"""Predictions and records in, `Results` out: every metric with its interval, and the signature to compare it by."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

from reason2decide import __version__
from reason2decide.errors import DataError
from reason2decide.metrics import METRICS, Examples, NotComputed, confusion_matrix, per_label_scores
from reason2decide.metrics.base import Integers
from reason2decide.predictions import Prediction
from reason2decide.records import LabelSet, Record, require_label
from reason2decide.statistics import LEVEL, RESAMPLES, bootstrap, percentile_interval

SUM_TOLERANCE = 1e-3  # ours: probabilities rounded to a few digits in a file still sum to one


@dataclass(frozen=True, slots=True)
class MetricValue:
    """A metric's value on n examples with the ends of its 95 % interval; all three None if it was not computed."""

    value: float | None
    low: float | None
    high: float | None
    n: int


@dataclass(frozen=True)
class Results:
    """What an evaluation found. `confusion_matrix` has gold labels as rows, predicted ones as columns.

    For open label sets `per_label`, `confusion_labels` and `confusion_matrix` are empty. `notes` say what was not
    computed, or counted specially, and why.
    """

    metrics: Mapping[str, MetricValue]
    per_label: Mapping[str, Mapping[str, float | int]]
    confusion_labels: tuple[str, ...]
    confusion_matrix: tuple[tuple[int, ...], ...]
    signature: str
    dataset: str
    dataset_sha256: str
    split: str
    notes: tuple[str, ...] = field(default=())

    def to_json(self) -> dict[str, Any]:
        """The content of `results.json`."""
        return {
            "metrics": {name: asdict(value) for name, value in self.metrics.items()},
            "per_label": {label: dict(scores) for label, scores in self.per_label.items()},
            "confusion": {
                "labels": list(self.confusion_labels),
                "matrix": [list(row) for row in self.confusion_matrix],
            },
            "signature": self.signature,
            "dataset": {"name": self.dataset, "sha256": self.dataset_sha256},
            "split": self.split,
            "notes": list(self.notes),
        }

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Results:
        """The results that `to_json` gave.

        Raises:
            DataError: a key is missing or not as this version writes it.
        """
        try:
            return cls(
                metrics={name: MetricValue(**entry) for name, entry in value["metrics"].items()},
                per_label={label: dict(scores) for label, scores in value["per_label"].items()},
                confusion_labels=tuple(value["confusion"]["labels"]),
                confusion_matrix=tuple(tuple(row) for row in value["confusion"]["matrix"]),
                signature=value["signature"],
                dataset=value["dataset"]["name"],
                dataset_sha256=value["dataset"]["sha256"],
                split=value["split"],
                notes=tuple(value["notes"]),
            )
        except (KeyError, TypeError, AttributeError) as error:
            raise DataError(
                f"these results lack or misuse a key ({error}); evaluate again with this version ({__version__})"
            ) from None


def evaluate(
    predictions: Sequence[Prediction],
    records: Sequence[Record],
    labels: LabelSet,
    *,
    rationale_source: str | None,
    split: str,
    dataset_name: str,
    dataset_sha256: str,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> Results:
    """Compare predictions with the gold labels and rationales of their records, matched by id in any order.

    If records carry a group, whole groups are resampled for the intervals; a record without one is its own.

    Raises:
        DataError: ids missing, unknown or repeated; a label outside its set; probabilities that do not cover the
            choices or do not sum to one.
    """
    examples = align(predictions, records, labels, rationale_source, split)
    group_of = group_indices(examples.records)
    notes: dict[str, list[str]] = {}
    values: dict[str, MetricValue] = {}
    for metric in METRICS:
        try:
            statistics = metric.statistics(examples)
        except NotComputed as reason:
            values[metric.name] = MetricValue(None, None, None, 0)
            notes.setdefault(f"not computed: {reason}", []).append(metric.name)
            continue
        resampled = bootstrap(statistics, metric.aggregate, group_of=group_of, resamples=resamples, seed=seed)
        low, high = percentile_interval(resampled)
        values[metric.name] = MetricValue(float(metric.aggregate(statistics.total())), low, high, len(statistics))
        for note in statistics.notes:
            notes.setdefault(note, []).append(metric.name)
        if low == high:
            note = "all resamples agree, so the interval is a point and understates the doubt"
            notes.setdefault(note, []).append(metric.name)
    try:
        matrix = confusion_matrix(examples)
        confusion_labels = labels.values
        per_label = per_label_scores(matrix, labels.values)
        rows = tuple(tuple(int(count) for count in row) for row in matrix)
    except NotComputed as reason:
        confusion_labels, per_label, rows = (), {}, ()
        notes.setdefault(f"not computed: {reason}", []).extend(["per_label", "confusion"])
    return Results(
        metrics=values,
        per_label=per_label,
        confusion_labels=confusion_labels,
        confusion_matrix=rows,
        signature=_signature(
            dataset=f"{dataset_name}@{dataset_sha256[:16]}",
            split=split,
            source=rationale_source or "none",
            unit="record" if group_of is None else "group",
            resamples=resamples,
            seed=seed,
        ),
        dataset=dataset_name,
        dataset_sha256=dataset_sha256,
        split=split,
        notes=tuple(f"{', '.join(names)}: {note}" for note, names in notes.items()),
    )


def _signature(*, dataset: str, split: str, source: str, unit: str, resamples: int, seed: int) -> str:
    """Everything a value depends on besides the predictions, as `key:value` parts joined by `|`."""
    parts = [
        f"reason2decide:{__version__}",
        f"dataset:{dataset}",
        f"split:{split}",
        f"source:{source}",
        f"ci:percentile-bootstrap-{100 * LEVEL:.0f}",
        f"unit:{unit}",
        f"resamples:{resamples}",
        f"seed:{seed}",
    ]
    parts += [f"{metric.name}:[{metric.signature()}]" for metric in METRICS if metric.signature()]
    return "|".join(parts)


def align(
    predictions: Sequence[Prediction],
    records: Sequence[Record],
    labels: LabelSet,
    rationale_source: str | None,
    split: str,
) -> Examples:
    """Put predictions in the order of their records, after checking that each has exactly one and can be scored.

    Raises:
        DataError: as `evaluate`.
    """
    records = tuple(records)
    if not records:
        raise DataError(f"the split {split!r} has no records to evaluate on")
    wanted = {record.id for record in records}
    by_id = {prediction.id: prediction for prediction in predictions}
    complaints = [
        _complaint(_repeated(record.id for record in records), "record ids occur more than once"),
        _complaint(_repeated(prediction.id for prediction in predictions), "ids are predicted more than once"),
        _complaint([record.id for record in records if record.id not in by_id], "records have no prediction"),
        _complaint([id_ for id_ in by_id if id_ not in wanted], "predictions belong to no record"),
    ]
    if any(complaints):
        raise DataError(
            f"the predictions do not match the {len(records)} records of the split {split!r}: "
            f"{'; '.join(filter(None, complaints))}. Give one prediction for each record of this split"
        )
    aligned = tuple(by_id[record.id] for record in records)
    for record, prediction in zip(records, aligned, strict=True):
        require_label(record, labels)
        _require_scorable(prediction, record.choices_or(labels))
    return Examples(records, aligned, labels, rationale_source)


def _repeated(ids: Iterable[str]) -> list[str]:
    seen: set[str] = set()
    repeated: dict[str, None] = {}
    for id_ in ids:
        if id_ in seen:
            repeated[id_] = None
        seen.add(id_)
    return list(repeated)


def _complaint(ids: Sequence[str], what: str) -> str:
    shown = ", ".join(repr(id_) for id_ in ids[:3]) + (", ..." if len(ids) > 3 else "")
    return f"{len(ids)} {what} ({shown})" if ids else ""


def _require_scorable(prediction: Prediction, choices: Sequence[str]) -> None:
    """Raise `DataError` if a prediction's label, probabilities or rationale cannot be what they must be."""
    where = f"the prediction for {prediction.id!r}"
    shown = ", ".join(repr(choice) for choice in choices[:8]) + (", ..." if len(choices) > 8 else "")
    if prediction.predicted_label not in choices:
        raise DataError(f"{where} has the label {prediction.predicted_label!r}, which is outside its set: {shown}")
    if prediction.rationale is not None and not isinstance(prediction.rationale, str):
        raise DataError(f"{where} has a rationale that is no text: {prediction.rationale!r:.40}")
    probabilities = prediction.probabilities
    if probabilities is None:
        return
    if not isinstance(probabilities, Mapping) or set(probabilities) != set(choices):
        raise DataError(f"{where} has probabilities that do not cover its choices; give one for each of: {shown}")
    for label, p in probabilities.items():
        if isinstance(p, bool) or not isinstance(p, int | float) or not 0 <= p <= 1 + SUM_TOLERANCE:
            raise DataError(f"{where} gives {label!r} the probability {p!r:.40}; expected a number from 0 to 1")
    total = math.fsum(probabilities.values())
    if abs(total - 1) > SUM_TOLERANCE:
        raise DataError(f"{where} has probabilities that sum to {total:.4f}; expected 1 (within {SUM_TOLERANCE:g})")


def group_indices(records: Sequence[Record]) -> Integers | None:
    """The group of each record as an index, shape (n,), a record without one alone in its own; None without groups."""
    if all(record.group is None for record in records):
        return None
    index: dict[tuple[str, str], int] = {}
    keys = [("group", record.group) if record.group is not None else ("id", record.id) for record in records]
    return np.array([index.setdefault(key, len(index)) for key in keys], np.int64)
