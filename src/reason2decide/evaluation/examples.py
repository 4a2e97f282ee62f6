"""Match predictions to their records, checking that each record has exactly one that can be scored."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence

import numpy as np

from reason2decide.data.predictions import NO_ANSWER, Prediction
from reason2decide.data.records import LabelSet, Record, require_label
from reason2decide.errors import DataError
from reason2decide.evaluation.metrics.base import Examples, Integers
from reason2decide.evaluation.probes import Probe

SHOWN = 3  # ours: ids that a message names
SUM_TOLERANCE = 1e-3  # ours: lets probabilities that were rounded in a file still sum to one


def align(
    predictions: Sequence[Prediction],
    records: Sequence[Record],
    labels: LabelSet,
    rationale_source: str | None,
    split: str,
    probes: Sequence[Probe] | None = None,
) -> Examples:
    """Put predictions, and probes if given, in the order of their records.

    Raises:
        DataError: ids missing, unknown or repeated; a label outside its set; probabilities that do not cover the
            choices or do not sum to one.
    """
    records = tuple(records)
    if not records:
        raise DataError(f"the split {split!r} has no records to evaluate on")
    mismatch = Mismatch()
    mismatch.add([record.id for record in records], [prediction.id for prediction in predictions])
    mismatch.refuse(split)
    by_id = {prediction.id: prediction for prediction in predictions}
    aligned = tuple(by_id[record.id] for record in records)
    for record, prediction in zip(records, aligned, strict=True):
        require_label(record, labels)
        _require_scorable(prediction, record.choices_or(labels))
    if probes is None:
        return Examples(records, aligned, labels, rationale_source)
    probe_of = {probe.id: probe for probe in probes}
    return Examples(
        records, aligned, labels, rationale_source, tuple(probe_of.get(r.id) or Probe(r.id) for r in records)
    )


class Mismatch:
    """How the ids of records and predictions differ; ids are added all at once, or with all that are equal together."""

    def __init__(self) -> None:
        self._records = 0
        self._found: dict[str, tuple[int, list[str]]] = {}  # by complaint, the number of ids and the first of them

    def add(self, of_records: Sequence[str], of_predictions: Sequence[str]) -> None:
        """Compare ids."""
        self._records += len(of_records)
        records, predictions = Counter(of_records), Counter(of_predictions)
        for complaint, ids in (
            ("record ids occur more than once", [id_ for id_, count in records.items() if count > 1]),
            ("ids are predicted more than once", [id_ for id_, count in predictions.items() if count > 1]),
            ("records have no prediction", [id_ for id_ in of_records if id_ not in predictions]),
            ("predictions match no record", [id_ for id_ in predictions if id_ not in records]),
        ):
            if ids:
                count, first = self._found.get(complaint, (0, []))
                self._found[complaint] = count + len(ids), [*first, *ids[:SHOWN]][:SHOWN]

    def refuse(self, split: str) -> None:
        """Raise `DataError` if anything differs."""
        complaints = [
            f"{count} {complaint} ({', '.join(map(repr, first))}{', ...' if count > len(first) else ''})"
            for complaint, (count, first) in self._found.items()
        ]
        if complaints:
            raise DataError(
                f"the predictions do not match the {self._records} records of the split {split!r}: "
                f"{'; '.join(complaints)}. Give one prediction for each record of this split"
            )


def _require_scorable(prediction: Prediction, choices: Sequence[str]) -> None:
    """Raise `DataError` if a prediction's label, probabilities or rationale are invalid."""
    where = f"the prediction for {prediction.id!r}"
    shown = ", ".join(repr(choice) for choice in choices[:8]) + (", ..." if len(choices) > 8 else "")
    if prediction.predicted_label not in choices and prediction.predicted_label != NO_ANSWER:
        raise DataError(
            f"{where} has the label {prediction.predicted_label!r}, which is not in its set: {shown}; give one "
            'of these, or "" if the system gave no valid answer'
        )
    if prediction.rationale is not None and not isinstance(prediction.rationale, str):
        raise DataError(f"{where} has a rationale that is not text: {prediction.rationale!r:.40}")
    probabilities = prediction.probabilities
    if probabilities is None:
        return
    if not isinstance(probabilities, Mapping) or set(probabilities) != set(choices):
        raise DataError(f"{where} has probabilities that do not match its choices; give one for each of: {shown}")
    for label, p in probabilities.items():
        if isinstance(p, bool) or not isinstance(p, int | float) or not 0 <= p <= 1 + SUM_TOLERANCE:
            raise DataError(f"{where} gives {label!r} the probability {p!r:.40}; expected a number from 0 to 1")
    total = math.fsum(probabilities.values())
    if abs(total - 1) > SUM_TOLERANCE:
        raise DataError(f"{where} has probabilities that sum to {total:.4f}; expected 1 (within {SUM_TOLERANCE:g})")


def group_indices(records: Sequence[Record]) -> Integers | None:
    """The index of each record's group, shape (n,); a record without a group forms its own. None without any groups."""
    if all(record.group is None for record in records):
        return None
    index: dict[tuple[str, str], int] = {}
    keys = [("group", record.group) if record.group is not None else ("id", record.id) for record in records]
    return np.array([index.setdefault(key, len(index)) for key in keys], np.int64)
