"""Render an evaluation as one self-contained HTML file, for screen and paper.

What the page shows is decided here, how it looks in `templates/`; text from data reaches the page only escaped.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

from reason2decide.data.predictions import NO_ANSWER
from reason2decide.evaluation.measure import LEAST_SLICE, Evaluation
from reason2decide.evaluation.results import MetricValue, Results, Slice
from reason2decide.evaluation.slices import Column
from reason2decide.report.cases import BLANK, STATIC_CASES, CaseViews
from reason2decide.report.metric_views import (
    MetricView,
    arrow,
    baseline_rows,
    grouped,
    headline,
    largest_gaps,
    metric_view,
    notes_of,
    number,
    sliced_metrics,
    title_of,
)
from reason2decide.report.pages import render_page
from reason2decide.report.plots import MAX_MATRIX, calibration_plots
from reason2decide.report.training_plots import training_plots

MAX_BYTES = int(4.95 * 2**20)  # ours: of a page, to stay under 5 MiB
MAX_CONFUSIONS = 25  # ours
MAX_FILTER_LABELS = 200  # ours: a longer list is hard to use; the search also finds labels


def render_report(
    evaluation: Evaluation,
    *,
    training_log: Sequence[Mapping[str, Any]] = (),
    columns: Sequence[Column] = (),
    title: str,
    description: Mapping[str, str] = {},
) -> str:
    """The report as one HTML document; the same input gives the same bytes.

    Readers can browse up to `cases.MAX_CASES` cases, or fewer if the page would exceed `MAX_BYTES`; the page says so.
    On paper, and without scripts, it shows `cases.STATIC_CASES`.

    Args:
        training_log: rows of event `train` or `validation`; any key may be missing.
        columns: columns that the evaluation was sliced by, to filter cases by.
        description: names and values, shown unchanged.

    Raises:
        MissingExtraError: there is something to draw, but matplotlib is not installed.
    """
    results, examples = evaluation.results, evaluation.examples
    views = CaseViews(examples, columns)
    static = views.chosen(STATIC_CASES)
    labels = results.confusion_labels
    small = len(labels) <= MAX_MATRIX
    sliced = sliced_metrics(results)
    page = partial(
        render_page,
        "report.html",
        script="browser.js",
        title=title,
        description=description,
        results=results,
        source=examples.rationale_source,
        count=evaluation.count,
        headline=headline(results),
        groups=grouped(results),
        baselines=baseline_rows(results),
        notes=notes_of(results)[1],
        absent=notes_of(results)[0],
        calibration_plots=calibration_plots(results),
        calibration_sentences=calibration_sentences(results),
        scaled=_scaled(results),
        matrix=_matrix(results) if small else [],
        across=[*labels, "no answer"] if any(results.unanswered) else labels,
        confusions=[] if small else largest_confusions(results),
        least_slice=LEAST_SLICE,
        gaps=largest_gaps(results),
        slice_titles=[(title_of(name), arrow(name)) for name in sliced],
        slices={column: [_slice_row(part, sliced) for part in slices] for column, slices in results.slices.items()},
        training_plots=training_plots(training_log),
        static=static,
        static_wrong=sum(case.verdict != "right" for case in static),
        blank=BLANK,
        columns=list(views.values_of),
        column_values=views.values_of,
        labels=labels if len(labels) <= MAX_FILTER_LABELS else (),
        unanswered=any(prediction.predicted_label == NO_ANSWER for prediction in examples.predictions),
        doubted=sum(prediction.reason_supports is False for prediction in examples.predictions),
        confidence=any(prediction.probabilities for prediction in examples.predictions),
    )
    size = len(page(data="", packed_count=0).encode())
    data, packed_count = views.packed(MAX_BYTES - size)
    return page(data=data, packed_count=packed_count)


def calibration_sentences(results: Results) -> list[str]:
    """Sentences on temperature, deferral threshold and prediction sets, set on validation, and their effect here."""
    calibration = results.calibration
    if calibration is None:
        return ["Nothing was fitted on validation, so the probabilities are shown as the system gave them."]
    sentences = [f"Probabilities were scaled by a temperature of {calibration.temperature:.2f}, fitted on validation."]
    target = f"an error rate of {100 * calibration.error_rate:g} % among the decisions kept"
    deferred, error, covered, size = (
        results.metrics[name] for name in ("deferred", "selective_error", "conformal_coverage", "conformal_set_size")
    )
    if calibration.threshold is None:
        sentences.append(
            f"Deferral: validation shows no threshold that keeps {target} with 95 % confidence, so every case is left "
            "to a person. More validation records show more."
        )
    elif deferred.value is not None:
        sentences.append(
            f"Deferral: decisions with a confidence below {100 * calibration.threshold:.1f} % go to a person. "
            f"Validation shows with 95 % confidence that this keeps {target}, on cases like those of validation. "
            f"Here it defers {_percent(deferred)} of cases"
            + (f", and {_percent(error)} of the others are wrong." if error.value is not None else ".")
        )
    if size.value is not None:
        sentences.append(
            f"Prediction sets allowed to miss the gold label in {100 * calibration.miscoverage:g} % of cases contain "
            f"it here in {_percent(covered)}, with {size.value:.2f} labels on average. The promise is for all cases "
            "together, not for each kind of case."
        )
    return sentences


def _percent(share: MetricValue) -> str:
    value, low, high = (100 * (part or 0) for part in (share.value, share.low, share.high))
    return f"{value:.1f} % ({low:.1f} to {high:.1f} %)"


def largest_confusions(results: Results, limit: int = MAX_CONFUSIONS) -> list[tuple[str, str, int, float]]:
    """The most frequent mistakes as (gold, predicted, count, share of the gold label in per cent)."""
    labels = (*results.confusion_labels, "(no answer)")
    mistakes = [
        (labels[i], labels[j], count, share)
        for i, (_, cells) in enumerate(_matrix(results, always_unanswered=True))
        for j, (count, share) in enumerate(cells)
        if i != j and count
    ]
    return sorted(mistakes, key=lambda mistake: -mistake[2])[:limit]


def _matrix(results: Results, *, always_unanswered: bool = False) -> list[tuple[str, list[tuple[int, float]]]]:
    """Rows of the confusion matrix: the gold label, then each count with its share of the row in per cent.

    Records without a valid answer, if any, are the last column.
    """
    rows = results.confusion_matrix
    if always_unanswered or any(results.unanswered):
        rows = tuple((*row, missing) for row, missing in zip(rows, results.unanswered, strict=True))
    return [
        (label, [(count, 100 * count / max(sum(row), 1)) for count in row])
        for label, row in zip(results.confusion_labels, rows, strict=True)
    ]


def _scaled(results: Results) -> list[tuple[str, MetricView]]:
    """What the temperature changed, as (value before, the metric now)."""
    before = results.calibration.before if results.calibration else {}
    views = {name: metric_view(name, results.metrics[name]) for name in before if name in results.metrics}
    return [(number(name, before[name]), view) for name, view in views.items() if view]


def _slice_row(part: Slice, names: Sequence[str]) -> tuple[Slice, list[MetricView | None]]:
    return part, [metric_view(name, part.metrics[name]) if name in part.metrics else None for name in names]
