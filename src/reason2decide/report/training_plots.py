"""Plots of a training log."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from reason2decide.errors import require
from reason2decide.report.drawing import Colours, Plot, printable

MAX_POINTS = 200  # ours: more are indistinguishable at the width of a plot; keeps a long log small

Row = Mapping[str, Any]
Points = list[tuple[float, float]]


@dataclass(frozen=True)
class Line:
    """One curve: its legend name, points (step, value), index of the series colour, marker and line style."""

    name: str
    points: Points
    series: int
    marker: str = ""
    dashes: str = "-"


def training_plots(log: Sequence[Row]) -> list[Plot]:
    """The plots that a training log has data for: losses and validation scores by stage, then the whole schedule.

    Rows of event `train` or `validation` are used; any key may be missing.
    """
    rows = [row for row in log if row.get("event") in ("train", "validation") and _number(row.get("step")) is not None]
    stages = list(dict.fromkeys(str(row.get("stage", "training")) for row in rows))
    plots = []
    for i, stage in enumerate(stages, 1):
        logged = [row for row in rows if str(row.get("stage", "training")) == stage]
        losses = [
            Line("total", _points(logged, "train", "loss"), 0),
            Line("label", _points(logged, "train", "label_loss"), 1),
            Line("rationale", _points(logged, "train", "rationale_loss"), 2),
            Line("validation", _points(logged, "validation", "loss"), 3, marker="o"),
        ]
        scores = [
            Line("macro-F1", _points(logged, "validation", "macro_f1"), 0, marker="o"),
            Line("accuracy", _points(logged, "validation", "accuracy"), 1, marker="o"),
        ]
        plots += _plot(
            f"loss_{i}", f"Loss, {stage}", "Mean token loss by optimizer step, on a log axis.", losses, log=True
        )
        plots += _plot(
            f"validation_{i}", f"Validation, {stage}", "Label scores by optimizer step.", scores, unit_range=True
        )
    plots += _plot(
        "schedule",
        "Schedule, " + " then ".join(stages),
        "Weight of the label loss (α), probability of conditioning on the model's own label (π), and the share drawn "
        "with it, by optimizer step" + (" counted over all stages." if len(stages) > 1 else "."),
        _schedule_lines(rows, stages),
        unit_range=True,
    )
    return plots


def _schedule_lines(rows: Sequence[Row], stages: Sequence[str]) -> list[Line]:
    """alpha, pi and the drawn share; each stage continues where the previous one ended."""
    # The drawn share is noisy: dotted and first, so that it is drawn under the probability it follows.
    keys = {"drawn": "drawn_share", "α": "alpha", "π": "sampling_probability"}
    points: dict[str, Points] = {name: [] for name in keys}
    offset = 0.0
    for stage in stages:
        logged = [row for row in rows if str(row.get("stage", "training")) == stage]
        for name, key in keys.items():
            points[name] += [(offset + step, value) for step, value in _points(logged, "train", key)]
        offset += max(float(row["step"]) for row in logged)
    return [
        Line("drawn", thinned(points["drawn"]), 2, dashes=":"),
        Line("α", thinned(points["α"]), 0),
        Line("π", thinned(points["π"]), 1),
    ]


def _points(rows: Sequence[Row], event: str, key: str) -> Points:
    pairs = [(_number(row["step"]), _number(row.get(key))) for row in rows if row["event"] == event]
    return thinned([(step, value) for step, value in pairs if step is not None and value is not None])


def _number(value: object) -> float | None:
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        return None
    return float(value)


def thinned(points: Points, limit: int = MAX_POINTS) -> Points:
    """At most `limit` points, evenly spaced by rank, including the first and the last."""
    if len(points) <= limit:
        return points
    return [points[round(i * (len(points) - 1) / (limit - 1))] for i in range(limit)]


def _plot(
    name: str, title: str, caption: str, lines: Sequence[Line], *, unit_range: bool = False, log: bool = False
) -> list[Plot]:
    """The plot of the lines that have points, as a list of one plot; empty if there are none."""
    drawn = [line for line in lines if line.points]

    def paint(figure: Any, colours: Colours) -> None:
        axes = figure.add_subplot()
        for line in drawn:
            steps, values = zip(*line.points, strict=True)
            axes.plot(
                steps,
                values,
                label=printable(line.name),
                color=colours.series[line.series],
                marker=line.marker or ("o" if len(steps) == 1 else ""),
                markersize=3.5,
                linestyle=line.dashes,
                linewidth=1.4,
            )
        axes.set_xlim(left=0)
        axes.set_xlabel("step")
        axes.xaxis.set_major_locator(require("matplotlib.ticker", "report").MaxNLocator(nbins=5, integer=True))
        axes.grid(axis="y", linewidth=0.6)
        if log and all(value > 0 for line in drawn for _, value in line.points):
            axes.set_yscale("log")
        if unit_range:
            axes.set_ylim(-0.02, 1.02)
        figure.legend(loc="outside upper left", ncols=len(drawn), frameon=False, handlelength=1.4, columnspacing=1.2)

    return [Plot(name, title, caption, paint)] if drawn else []
