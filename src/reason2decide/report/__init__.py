"""Results, records and predictions in, one HTML file out: self-contained, without scripts, for screen and paper.

What is shown is decided here and how it looks in `template.html`; text from data only ever reaches the page escaped.
"""

from __future__ import annotations

import hashlib
import importlib.resources
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import zip_longest
from typing import Any

import jinja2
from markupsafe import Markup

from reason2decide import __version__
from reason2decide.evaluation import MetricValue, Results
from reason2decide.metrics import METRICS
from reason2decide.predictions import Prediction
from reason2decide.records import Record
from reason2decide.report.charts import training_charts

CASES = 20
MAX_BARS = 8  # ours: probabilities shown for a case; open and long label sets have more
MAX_MATRIX = 25  # ours: beyond so many labels a confusion matrix is unreadable, and its largest mistakes are listed
MAX_CONFUSIONS = 25  # ours

Case = tuple[Record, Prediction]


@dataclass(frozen=True)
class MetricView:
    """A metric as the page shows it; `start`, `width` and `point` place its interval on its range, in per cent."""

    title: str
    value: str | None
    interval: str
    n: int
    direction: str = ""
    track: tuple[float, float, float] | None = None


@dataclass(frozen=True)
class Bar:
    """The probability of one label of a case, in per cent."""

    label: str
    percent: float
    predicted: bool
    gold: bool


@dataclass(frozen=True)
class CaseView:
    """One case: its record and prediction, whether it was decided right, and its bars."""

    record: Record
    prediction: Prediction
    right: bool
    bars: Sequence[Bar]
    other_bars: int
    gold_rationale: str


def render_report(
    results: Results,
    records: Sequence[Record],
    predictions: Sequence[Prediction],
    *,
    rationale_source: str | None,
    training_log: Sequence[Mapping[str, Any]] = (),
    title: str,
    description: Mapping[str, str] = {},
) -> str:
    """The report as one HTML document. Records and predictions are those that `evaluate` made the results of.

    `description` is shown as it comes, name by value. `training_log` holds rows of event `train` or `validation`,
    any key of which may be missing; the same input gives the same bytes.

    Raises:
        MissingExtraError: there are training curves to draw and matplotlib is not installed.
    """
    cases = select_cases(records, predictions, results.confusion_labels)
    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    template = importlib.resources.files(__name__).joinpath("template.html").read_text("utf-8")
    return environment.from_string(template).render(
        title=title,
        description=description,
        results=results,
        source=rationale_source,
        count=len(records),
        wrong=sum(not _is_right(case) for case in cases),
        metrics=[_metric_view(name, value) for name, value in results.metrics.items()],
        matrix=_matrix_view(results) if len(results.confusion_labels) <= MAX_MATRIX else [],
        confusions=largest_confusions(results) if len(results.confusion_labels) > MAX_MATRIX else [],
        charts=[(chart, Markup(chart.svg)) for chart in training_charts(training_log)],
        cases=[_case_view(case, results.confusion_labels, rationale_source) for case in cases],
        version=__version__,
    )


def select_cases(
    records: Sequence[Record], predictions: Sequence[Prediction], labels: Sequence[str], count: int = CASES
) -> list[Case]:
    """Choose `count` cases by a fixed rule: half wrong, half right as far as there are, spread over gold labels.

    The choice depends on the ids alone, not on order; wrong cases come first, each half in the order of `labels`.
    """
    by_id = {prediction.id: prediction for prediction in predictions}
    pairs = [(record, by_id[record.id]) for record in records]
    rank = {label: i for i, label in enumerate(labels)}
    wrong = _spread([pair for pair in pairs if not _is_right(pair)], rank)
    right = _spread([pair for pair in pairs if _is_right(pair)], rank)
    wrong_count = min(len(wrong), max(count // 2, count - len(right)))
    halves = wrong[:wrong_count], right[: count - wrong_count]
    return [case for half in halves for case in sorted(half, key=lambda pair: _order(pair, rank))]


def _is_right(case: Case) -> bool:
    return case[0].label == case[1].predicted_label


def _order(case: Case, rank: Mapping[str, int]) -> tuple[int, str]:
    """By gold label, then by a hash of the id: any order that the data do not choose. Labels outside the set last."""
    return rank.get(case[0].label or "", len(rank)), hashlib.sha256(case[0].id.encode()).hexdigest()


def _spread(cases: Sequence[Case], rank: Mapping[str, int]) -> list[Case]:
    """All cases, taking one of each gold label in turn."""
    buckets: dict[int, list[Case]] = {}
    for case in sorted(cases, key=lambda pair: _order(pair, rank)):
        buckets.setdefault(_order(case, rank)[0], []).append(case)
    return [case for turn in zip_longest(*buckets.values()) for case in turn if case is not None]


def _metric_view(name: str, value: MetricValue) -> MetricView:
    metric = next((metric for metric in METRICS if metric.name == name), None)
    title = metric.title if metric else name
    if value.value is None or value.low is None or value.high is None:
        return MetricView(title, None, "", value.n)
    digits = 1 if metric and max(metric.worst, metric.best) > 1 else 3
    interval = f"{value.low:.{digits}f} to {value.high:.{digits}f}"
    shown = f"{value.value:.{digits}f}"
    if metric is None:
        return MetricView(title, shown, interval, value.n)
    least, most = sorted((metric.worst, metric.best))
    low, high, point = (100 * (x - least) / (most - least) for x in (value.low, value.high, value.value))
    direction = "higher is better" if metric.best > metric.worst else "lower is better"
    return MetricView(title, shown, interval, value.n, f"{least:g} to {most:g}, {direction}", (low, high - low, point))


def _matrix_view(results: Results) -> list[tuple[str, list[tuple[int, float]]]]:
    """Rows of the confusion matrix: the gold label, then each count with its share of the row in per cent."""
    rows = zip(results.confusion_labels, results.confusion_matrix, strict=True)
    return [(label, [(count, 100 * count / max(sum(row), 1)) for count in row]) for label, row in rows]


def largest_confusions(results: Results, limit: int = MAX_CONFUSIONS) -> list[tuple[str, str, int, float]]:
    """The most frequent mistakes as (gold, predicted, count, share of the gold label in per cent)."""
    labels = results.confusion_labels
    mistakes = [
        (labels[i], labels[j], count, 100 * count / sum(row))
        for i, row in enumerate(results.confusion_matrix)
        for j, count in enumerate(row)
        if i != j and count
    ]
    return sorted(mistakes, key=lambda mistake: -mistake[2])[:limit]


def _case_view(case: Case, labels: Sequence[str], source: str | None) -> CaseView:
    record, prediction = case
    probabilities = prediction.probabilities or {}
    order = [label for label in (record.choices or labels) if label in probabilities]
    likely = sorted(order, key=lambda label: -probabilities[label])[:MAX_BARS]
    shown = {*likely, prediction.predicted_label, record.label}
    bars = [
        Bar(label, 100 * probabilities[label], label == prediction.predicted_label, label == record.label)
        for label in order
        if label in shown
    ]
    gold_rationale = record.rationales.get(source, "") if source else ""
    return CaseView(record, prediction, _is_right(case), bars, len(order) - len(bars), gold_rationale)
