"""Predictions with rationales and probes, and a metric's value on them."""

from __future__ import annotations

from reason2decide.data.predictions import Prediction
from reason2decide.data.records import LabelSet, Record
from reason2decide.evaluation.metrics import Examples
from reason2decide.evaluation.probes import Probe

LABELS = LabelSet(("home", "clinic"))


def examples(*cases, text="a text"):
    """Each case: gold label, predicted label, rationale, and the fields of its probe."""
    records = [Record(f"r{i}", text, gold) for i, (gold, *_) in enumerate(cases)]
    predictions = [Prediction(f"r{i}", label, None, rationale) for i, (_, label, rationale, _) in enumerate(cases)]
    probes = [Probe(f"r{i}", **fields) for i, (*_, fields) in enumerate(cases)]
    return Examples(records, predictions, LABELS, None, probes)


def value(metric, found):
    return float(metric.aggregate(metric.statistics(found).total()))
