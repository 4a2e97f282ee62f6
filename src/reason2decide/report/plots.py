"""Plots of calibration and confusion for an evaluation, and forest plots for a comparison."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from typing import Any

from reason2decide.errors import require
from reason2decide.evaluation.comparison import Comparison, Difference
from reason2decide.evaluation.results import Results
from reason2decide.evaluation.statistics import wilson_interval
from reason2decide.report.drawing import Colours, Plot, printable
from reason2decide.report.metric_views import direction_of, title_of

MAX_MATRIX = 25  # ours: with more labels the matrix is unreadable, and the most frequent mistakes are listed
NAME_WIDTH = 22  # ours: characters after which a label in a plot is wrapped


def calibration_plots(results: Results) -> list[Plot]:
    """The reliability diagram and the risk-coverage curve, if there are probabilities."""
    plots = []
    if results.reliability:
        plots.append(
            Plot(
                "reliability",
                "Reliability",
                "Accuracy by confidence; on the diagonal, decisions are right as often as their confidence says. Bars "
                "are 95 % Wilson intervals; the lower panel shows the share of cases by confidence.",
                lambda figure, colours: _paint_reliability(figure, colours, results),
                (4.4, 3.5),
            )
        )
    if results.risk_coverage:
        marked = " The dot is the deferral threshold." if _deferral_point(results) else ""
        plots.append(
            Plot(
                "risk_coverage",
                "Risk and coverage",
                "Error rate among the most confident decisions, by the share of cases kept; the others go to a person."
                f"{marked}",
                lambda figure, colours: _paint_risk(figure, colours, results),
                (4.4, 3.5),
            )
        )
    return plots


def _paint_reliability(figure: Any, colours: Colours, results: Results) -> None:
    top, bottom = figure.subplots(2, 1, sharex=True, height_ratios=(4, 1))
    points = results.reliability
    confidence, accuracy = ([point[key] for point in points] for key in ("confidence", "accuracy"))
    counts = [point["n"] for point in points]
    ends = [wilson_interval(share, n) for share, n in zip(accuracy, counts, strict=True)]
    top.plot((0, 1), (0, 1), color=colours.muted, linewidth=0.9, linestyle=(0, (4, 3)))
    top.vlines(confidence, *zip(*ends, strict=True), color=colours.tint, linewidth=3)
    top.plot(confidence, accuracy, color=colours.series[0], marker="o", markersize=4, linewidth=1.2)
    top.set_ylabel("right")
    top.set_ylim(-0.02, 1.02)
    bottom.bar(confidence, [n / sum(counts) for n in counts], width=0.035, color=colours.tint)
    bottom.set_xlim(0, 1.02)
    bottom.set_xlabel("confidence")
    bottom.set_ylabel("cases")
    bottom.yaxis.set_major_locator(require("matplotlib.ticker", "report").MaxNLocator(nbins=2))
    _in_percent(top.xaxis, top.yaxis, bottom.yaxis)
    top.grid(axis="y", linewidth=0.6)
    figure.align_ylabels()


def _paint_risk(figure: Any, colours: Colours, results: Results) -> None:
    axes = figure.add_subplot()
    coverage, risk = ([point[key] for point in results.risk_coverage] for key in ("coverage", "risk"))
    axes.plot(coverage, risk, color=colours.series[0], linewidth=1.4, marker="o" if len(coverage) == 1 else "")
    if results.calibration:
        target = results.calibration.error_rate
        axes.axhline(target, color=colours.series[1], linewidth=1, linestyle=(0, (2, 2)))
        axes.annotate(
            f"target {100 * target:g} %", (1.02, target), xytext=(0, -10), textcoords="offset points", ha="right"
        )
    point = _deferral_point(results)
    if point:
        axes.plot(*point, color=colours.series[1], marker="o", markersize=7, linestyle="")
    axes.set_xlim(0, 1.02)
    axes.set_ylim(0, 1.15 * max(*risk, results.calibration.error_rate if results.calibration else 0, 0.05))
    axes.set_xlabel("cases kept")
    axes.set_ylabel("wrong among them")
    _in_percent(axes.xaxis, axes.yaxis)
    axes.grid(axis="y", linewidth=0.6)


def _deferral_point(results: Results) -> tuple[float, float] | None:
    """(share kept, error rate among them) at the deferral threshold."""
    deferred, error = (results.metrics.get(name) for name in ("deferred", "selective_error"))
    if deferred is None or error is None or deferred.value is None or error.value is None or deferred.value == 1:
        return None
    return 1 - deferred.value, error.value


def _in_percent(*axes: Any) -> None:
    for axis in axes:
        axis.set_major_formatter(lambda share, _: f"{round(100 * share, 6):g} %")


def confusion_plot(results: Results) -> list[Plot]:
    """The confusion matrix, as a list of one plot; empty if there is no matrix or it is too large."""
    labels = results.confusion_labels
    if not 0 < len(labels) <= MAX_MATRIX:
        return []
    side = 1.9 + 0.45 * len(labels)
    caption = "Gold labels as rows, predicted labels as columns; tint by share of the row."
    return [
        Plot(
            "confusion",
            "Confusion matrix",
            caption,
            lambda figure, colours: _paint_confusion(figure, colours, results),
            (side + 0.45, side),
        )
    ]


def _paint_confusion(figure: Any, colours: Colours, results: Results) -> None:
    matrix = [list(row) for row in results.confusion_matrix]
    across = list(results.confusion_labels)
    if any(results.unanswered):
        across.append("no answer")
        matrix = [[*row, missing] for row, missing in zip(matrix, results.unanswered, strict=True)]
    shares = [[count / max(sum(row), 1) for count in row] for row in matrix]
    ramp = require("matplotlib.colors", "report").LinearSegmentedColormap.from_list(
        "share", ("#ffffff", colours.series[0])
    )
    axes = figure.add_subplot()
    axes.pcolormesh(shares, cmap=ramp, vmin=0, vmax=1.6, edgecolors="#ffffff", linewidth=1)
    for i, row in enumerate(matrix):
        for j, count in enumerate(row):
            axes.text(j + 0.5, i + 0.5, f"{count:,}", ha="center", va="center")
    axes.set_xticks([j + 0.5 for j in range(len(across))], [_wrapped(label) for label in across], rotation=90)
    axes.set_yticks([i + 0.5 for i in range(len(matrix))], [_wrapped(label) for label in results.confusion_labels])
    axes.invert_yaxis()
    axes.set_xlabel("predicted")
    axes.set_ylabel("gold")
    axes.set_aspect("equal")
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)


def forest_plot(comparison: Comparison, metric: str) -> list[Plot]:
    """The differences from the reference on a metric, as a list of one plot; empty if there are none."""
    differences = [difference for difference in comparison.differences if difference.metric == metric]
    title = f"{title_of(metric)}: difference from {comparison.reference}"
    size = (5.2, 1.25 + 0.34 * len(differences))
    caption = "Differences with 95 % intervals."

    def paint(figure: Any, colours: Colours) -> None:
        _paint_forest(figure, colours, differences, direction_of(metric))

    return [Plot(f"forest_{metric}", title, caption, paint, size)] if differences else []


def _paint_forest(figure: Any, colours: Colours, differences: Sequence[Difference], direction: int) -> None:
    axes = figure.add_subplot()
    rows = range(len(differences))
    axes.axvline(0, color=colours.muted, linewidth=0.9)
    lows, highs = [one.low for one in differences], [one.high for one in differences]
    points = [one.difference for one in differences]
    axes.hlines(rows, lows, highs, color=colours.series[0], linewidth=1.6)
    axes.plot(points, rows, color=colours.series[0], marker="s", markersize=5, linestyle="")
    axes.set_yticks(rows, [_wrapped(one.system) for one in differences])
    axes.set_ylim(len(differences) - 0.5, -0.5)
    reach = 1.1 * max(map(abs, (*lows, *highs, *points))) or 1
    axes.set_xlim(-reach, reach)
    axes.xaxis.set_major_locator(require("matplotlib.ticker", "report").MaxNLocator(nbins=6))
    axes.set_xlabel({1: "better →", -1: "← better", 0: ""}[direction])
    axes.tick_params(axis="y", length=0)
    axes.spines["left"].set_visible(False)


def _wrapped(text: str) -> str:
    return "\n".join(textwrap.wrap(printable(text), NAME_WIDTH)) or text
