"""An evaluation in, one HTML file out: self-contained, for screen and paper.

What is shown is decided here and how it looks in `templates/`; text from data only ever reaches the page escaped.
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

MAX_BYTES = int(4.95 * 2**20)  # ours: of a page, which so stays under 5 MiB
MAX_CONFUSIONS = 25  # ours
MAX_FILTER_LABELS = 200  # ours: more cannot be found in a list; the search finds labels too


def render_report(
    evaluation: Evaluation,
    *,
    training_log: Sequence[Mapping[str, Any]] = (),
    columns: Sequence[Column] = (),
    title: str,
    description: Mapping[str, str] = {},
) -> str:
    """The report as one HTML document; the same input gives the same bytes.

    Its reader can browse up to `cases.MAX_CASES` cases, fewer where the page would pass `MAX_BYTES`; the page says so.
    On paper, and without scripts, it shows `cases.STATIC_CASES`.

    Args:
        training_log: rows of event `train` or `validation`, any key of which may be missing.
        columns: those that the evaluation was sliced by, to filter cases by.
        description: shown as it comes, name by value.

    Raises:
        MissingExtraError: there is something to draw and matplotlib is not installed.
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
        count=len(examples),
        headline=headline(results),
        groups=grouped(results),
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
        slices={column: [_slice_row(own, sliced) for own in slices] for column, slices in results.slices.items()},
        training_plots=training_plots(training_log),
        static=static,
        static_wrong=sum(case.verdict != "right" for case in static),
        blank=BLANK,
        columns=list(views.values_of),
        column_values=views.values_of,
        labels=labels if len(labels) <= MAX_FILTER_LABELS else (),
        unanswered=any(own.predicted_label == NO_ANSWER for own in examples.predictions),
        confidence=any(own.probabilities for own in examples.predictions),
    )
    size = len(page(data="", packed_count=0).encode())
    data, packed_count = views.packed(MAX_BYTES - size)
    return page(data=data, packed_count=packed_count)


def calibration_sentences(results: Results) -> list[str]:
    """What validation chose, temperature, deferral threshold and prediction sets, and what became of it here."""
    own = results.calibration
    if own is None:
        return ["Nothing was fitted on validation, so these probabilities are as the system gave them."]
    sentences = [f"Probabilities were scaled by a temperature of {own.temperature:.2f}, fitted on validation."]
    wanted = f"an error rate of {100 * own.error_rate:g} % among the decisions that stand"
    deferred, error, covered, size = (
        results.metrics[name] for name in ("deferred", "selective_error", "conformal_coverage", "conformal_set_size")
    )
    if own.threshold is None:
        sentences.append(f"Validation reaches {wanted} at no threshold, so none was set.")
    elif deferred.value is not None:
        sentences.append(
            f"Deferral: for {wanted}, validation chose to leave decisions less confident than "
            f"{100 * own.threshold:.1f} % to a person. Here those are {_percent(deferred)}, and of the others "
            f"{_percent(error)} are wrong."
        )
    if size.value is not None:
        sentences.append(
            f"Prediction sets that may miss the gold label in {100 * own.miscoverage:g} % of cases hold it here in "
            f"{_percent(covered)}, with {size.value:.2f} labels on average."
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

    The records without a valid answer are the last column where there are some.
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


def _slice_row(own: Slice, names: Sequence[str]) -> tuple[Slice, list[MetricView | None]]:
    return own, [metric_view(name, own.metrics[name]) if name in own.metrics else None for name in names]
