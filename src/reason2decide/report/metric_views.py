"""Name, round, group and order metrics for a reader."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from reason2decide.evaluation.baselines import TITLES as BASELINES
from reason2decide.evaluation.metrics import METRICS, Metric
from reason2decide.evaluation.results import MetricValue, Results

# Ours: what a reader asks first, and of the two rationale metrics the one that sees more than words.
HEADLINE = ("macro_f1", "accuracy", "under_triage", "bertscore_f1", "bleu")
SLICED = ("macro_f1", "accuracy", "under_triage", "calibration_error", "bertscore_f1", "bleu")
GROUPS: Mapping[str, tuple[str, ...]] = {
    "Decisions": ("macro_f1", "accuracy", "micro_f1", "weighted_f1", "mcc"),
    "Triage safety": ("under_triage", "over_triage", "expected_cost", "mae", "quadratic_kappa"),
    "Probabilities": (
        "log_loss",
        "brier",
        "calibration_error",
        "ece",
        "aurc",
        "selective_error",
        "deferred",
        "conformal_coverage",
        "conformal_set_size",
    ),
    "Rationales compared with the gold ones": ("bertscore_f1", "bleu", "chrf", "rouge_l"),
}
OTHERS = "Rationales compared with text and decision"  # every metric that no group names
TITLES = {
    "per_label": "Scores by label",
    "confusion": "Confusion matrix",
    "intervals": "Intervals",
}  # of parts of the results that are not metrics
NOT_COMPUTED = "not computed: "  # how `measure.evaluate` begins such a note
SHOWN_GAPS = 6  # ours

Track = tuple[float, float, float]


@dataclass(frozen=True)
class MetricView:
    """A metric as a page shows it; `direction` is "↑" where higher is better, else "↓", or empty.

    `track` places its interval on its range, as (start, width, value) in per cent; None if the range is unbounded or
    there is no interval.
    """

    name: str
    title: str
    value: str
    interval: str
    n: int
    direction: str
    range: str
    track: Track | None


@dataclass(frozen=True)
class Gap:
    """The slices of a column between which a metric differs most, and the difference."""

    column: str
    title: str
    gap: str
    least: str
    most: str


def metric_of(name: str) -> Metric | None:
    """The metric of this name; None if this version does not know it."""
    return next((metric for metric in METRICS if metric.name == name), None)


def title_of(name: str) -> str:
    """The title of a metric or of another part of the results."""
    metric = metric_of(name)
    return metric.title if metric else TITLES.get(name, name)


def direction_of(name: str) -> int:
    """1 if higher is better, -1 if lower is, 0 if unknown."""
    metric = metric_of(name)
    return 0 if metric is None else 1 if metric.best > metric.worst else -1


def arrow(name: str) -> str:
    """An arrow in the better direction; empty if unknown."""
    return {1: "↑", -1: "↓", 0: ""}[direction_of(name)]


def number(name: str, value: float, *, signed: bool = False) -> str:
    """The value rounded by its metric's scale, to tenths on 0 to 100, else to thousandths, with a true minus sign."""
    metric = metric_of(name)
    ends = [abs(end) for end in (metric.worst, metric.best) if math.isfinite(end)] if metric else []
    text = f"{value:{'+' if signed else ''}.{1 if max(ends, default=0) >= 10 else 3}f}"
    return text.replace("-", "−")


def metric_view(name: str, value: MetricValue) -> MetricView | None:
    """The view of a value; None if it was not computed."""
    if value.value is None:
        return None
    track, span = None, ""
    metric = metric_of(name)
    if metric is not None:
        least, most = sorted((metric.worst, metric.best))
        if math.isfinite(most) and value.low is not None and value.high is not None:
            low, high, point = (100 * (x - least) / (most - least) for x in (value.low, value.high, value.value))
            track = low, high - low, point
        span = f"{_end(least)} to {_end(most)}" if math.isfinite(most) else f"from {least:g}"
    return MetricView(
        name,
        title_of(name),
        number(name, value.value),
        "no interval"
        if value.low is None or value.high is None
        else f"{number(name, value.low)} to {number(name, value.high)}",
        value.n,
        arrow(name),
        span,
        track,
    )


def headline(results: Results) -> list[MetricView]:
    """The computed metrics among `HEADLINE`, in its order; BLEU only if BERTScore is missing."""
    views = [metric_view(name, results.metrics[name]) for name in HEADLINE if name in results.metrics]
    found = [view for view in views if view is not None]
    return found[:-1] if len(found) > 1 and {view.name for view in found[-2:]} == {"bertscore_f1", "bleu"} else found


def group_names(names: Mapping[str, object]) -> dict[str, list[str]]:
    """The names by group, in the order of `GROUPS`, then of appearance; empty groups are left out."""
    groups = {group: [name for name in members if name in names] for group, members in GROUPS.items()}
    known = {name for members in GROUPS.values() for name in members}
    groups[OTHERS] = [name for name in names if name not in known]
    return {group: members for group, members in groups.items() if members}


def grouped(results: Results) -> dict[str, list[MetricView]]:
    """All computed metrics by group."""
    views = {name: metric_view(name, value) for name, value in results.metrics.items()}
    computed = {name: view for name, view in views.items() if view is not None}
    return {group: [computed[name] for name in names] for group, names in group_names(computed).items()}


def notes_of(results: Results) -> tuple[list[tuple[str, str]], list[tuple[str, str]]]:
    """The notes as (titles of their subjects, text), in two lists: why something was not computed, and others."""
    absent, others = [], []
    for note in results.notes:
        names, colon, text = note.partition(": ")
        titles = ", ".join(title_of(name) for name in names.split(", "))
        if colon and text.startswith(NOT_COMPUTED):
            absent.append((titles, text.removeprefix(NOT_COMPUTED)))
        else:
            others.append((titles, text) if colon else ("", note))
    return absent, others


def baseline_rows(results: Results) -> list[tuple[str, list[tuple[str, str, str]], str]]:
    """Each baseline's title, its metrics as (title, value, the system's difference), and why it has none."""
    rows = []
    for baseline in results.baselines:
        cells = []
        for name, value in baseline.metrics.items():
            view, gap = metric_view(name, value), baseline.differences.get(name)
            if view is not None:
                shown = [number(name, part, signed=True) for part in (gap.difference, gap.low, gap.high)] if gap else []
                cells.append(
                    (f"{view.title} {view.direction}", view.value, "{} ({} to {})".format(*shown) if gap else "")
                )
        rows.append((BASELINES.get(baseline.name, baseline.name), cells, baseline.reason or ""))
    return rows


def sliced_metrics(results: Results) -> list[str]:
    """The metrics shown in tables of slices: those of `SLICED` that were computed on any slice."""
    computed = {name for slices in results.slices.values() for part in slices for name in part.metrics}
    return [name for name in SLICED if name in computed]


def largest_gaps(results: Results) -> list[Gap]:
    """The largest gaps between slices, among the metrics of the tables, relative to each metric's range."""
    found = []
    for column, gaps in results.gaps.items():
        for name in sliced_metrics(results):
            metric = metric_of(name)
            if name in gaps and metric is not None and gaps[name]["gap"] > 0:
                ends = gaps[name]
                share = ends["gap"] / abs(metric.best - metric.worst)
                gap = Gap(column, metric.title, number(name, ends["gap"]), ends["least"], ends["most"])
                found.append((share, gap))
    return [gap for _, gap in sorted(found, key=lambda pair: -pair[0])[:SHOWN_GAPS]]


def _end(value: float) -> str:
    return f"{value:g}".replace("-", "−")
