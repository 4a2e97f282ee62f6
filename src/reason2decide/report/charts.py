"""The curves of a training log as small inline SVGs that take their colours and font from the page they stand in.

Colours are drawn as sentinels and then replaced by CSS variables, so one drawing is readable on light and dark; text
stays text. The same log gives the same bytes.
"""

from __future__ import annotations

import io
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from reason2decide.errors import require

MAX_POINTS = 200  # ours: more cannot be told apart at the width of a chart, and a long log stays small
INK, RULE = "#010101", "#020202"
SERIES = ("#030301", "#030302", "#030303", "#030304")
CSS_COLOURS = {INK: "currentColor", RULE: "var(--rule)"} | {
    colour: f"var(--series-{i})" for i, colour in enumerate(SERIES, 1)
}
# Fixed salt and no date: matplotlib would otherwise put random ids and the time of day into the file.
STYLE = {
    "svg.fonttype": "none",
    "svg.hashsalt": "reason2decide",
    "font.size": 9,
    "text.color": INK,
    "axes.edgecolor": RULE,
    "axes.labelcolor": INK,
    "xtick.color": RULE,
    "ytick.color": RULE,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "grid.color": RULE,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "path.simplify": True,
}

Row = Mapping[str, Any]
Points = list[tuple[float, float]]


@dataclass(frozen=True)
class Line:
    """One curve: its name in the legend, its points (step, value), and how it is drawn."""

    name: str
    points: Points
    colour: str
    marker: str = ""
    dashes: str = "-"


@dataclass(frozen=True)
class Chart:
    """A drawn chart: its heading, a sentence on what it shows, and the SVG element."""

    title: str
    caption: str
    svg: str


def training_charts(log: Sequence[Row]) -> list[Chart]:
    """The charts a training log has data for: losses and validation scores by stage, then the schedule of all stages.

    Raises:
        MissingExtraError: there is something to draw and matplotlib is not installed.
    """
    rows = [row for row in log if row.get("event") in ("train", "validation") and _number(row.get("step")) is not None]
    stages = list(dict.fromkeys(str(row.get("stage", "training")) for row in rows))
    charts = []
    for stage in stages:
        own = [row for row in rows if str(row.get("stage", "training")) == stage]
        losses = [
            Line("total", _points(own, "train", "loss"), SERIES[0]),
            Line("label", _points(own, "train", "label_loss"), SERIES[1]),
            Line("rationale", _points(own, "train", "rationale_loss"), SERIES[2]),
            Line("validation", _points(own, "validation", "loss"), SERIES[3], marker="o"),
        ]
        scores = [
            Line("macro-F1", _points(own, "validation", "macro_f1"), SERIES[0], marker="o"),
            Line("accuracy", _points(own, "validation", "accuracy"), SERIES[1], marker="o"),
        ]
        charts += _chart(f"Loss, {stage}", "Mean token loss by optimizer step.", losses)
        charts += _chart(f"Validation, {stage}", "Label scores by optimizer step.", scores, unit_range=True)
    charts += _chart(
        "Schedule, " + " then ".join(stages),
        "Weight of the label loss (α), probability of conditioning on the model's own label (π) and the share drawn "
        "so, by optimizer step" + (" counted over all stages." if len(stages) > 1 else "."),
        _schedule_lines(rows, stages),
        unit_range=True,
    )
    return charts


def _schedule_lines(rows: Sequence[Row], stages: Sequence[str]) -> list[Line]:
    """alpha, pi and the drawn share, each stage continuing where the one before it ended."""
    # The drawn share is noisy: dotted and first, so that it lies under the probability it follows.
    keys = {"drawn": "drawn_share", "α": "alpha", "π": "sampling_probability"}
    points: dict[str, Points] = {name: [] for name in keys}
    offset = 0.0
    for stage in stages:
        own = [row for row in rows if str(row.get("stage", "training")) == stage]
        for name, key in keys.items():
            points[name] += [(offset + step, value) for step, value in _points(own, "train", key)]
        offset += max(float(row["step"]) for row in own)
    return [
        Line("drawn", thinned(points["drawn"]), SERIES[2], dashes=":"),
        Line("α", thinned(points["α"]), SERIES[0]),
        Line("π", thinned(points["π"]), SERIES[1]),
    ]


def _points(rows: Sequence[Row], event: str, key: str) -> Points:
    pairs = [(_number(row["step"]), _number(row.get(key))) for row in rows if row["event"] == event]
    return thinned([(step, value) for step, value in pairs if step is not None and value is not None])


def _number(value: object) -> float | None:
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        return None
    return float(value)


def thinned(points: Points, limit: int = MAX_POINTS) -> Points:
    """At most `limit` points, evenly chosen by rank, the first and the last among them."""
    if len(points) <= limit:
        return points
    return [points[round(i * (len(points) - 1) / (limit - 1))] for i in range(limit)]


def _chart(title: str, caption: str, lines: Sequence[Line], *, unit_range: bool = False) -> list[Chart]:
    """The chart of the lines that have points, as a list of one; of none if there are no lines."""
    lines = [line for line in lines if line.points]
    return [Chart(title, caption, _draw(title, lines, unit_range))] if lines else []


def _draw(title: str, lines: Sequence[Line], unit_range: bool) -> str:
    matplotlib = require("matplotlib", "report")
    figure_module = require("matplotlib.figure", "report")
    with matplotlib.rc_context(STYLE):
        figure = figure_module.Figure(figsize=(4.4, 2.7), layout="constrained")
        axes = figure.add_subplot()
        for line in lines:
            steps, values = zip(*line.points, strict=True)
            axes.plot(
                steps,
                values,
                label=line.name,
                color=line.colour,
                marker=line.marker or ("o" if len(steps) == 1 else ""),
                markersize=3.5,
                linestyle=line.dashes,
                linewidth=1.4,
            )
        axes.set_xlim(left=0)
        axes.set_xlabel("step")
        axes.xaxis.set_major_locator(require("matplotlib.ticker", "report").MaxNLocator(nbins=5, integer=True))
        axes.grid(axis="y", linewidth=0.6)
        if unit_range:
            axes.set_ylim(-0.02, 1.02)
        figure.legend(loc="outside upper left", ncols=len(lines), frameon=False, handlelength=1.4, columnspacing=1.2)
        stream = io.StringIO()
        figure.savefig(stream, format="svg", transparent=True, metadata={"Date": None})
    return _for_page(stream.getvalue(), title)


def _for_page(svg: str, title: str) -> str:
    """Strip what belongs to a file of its own, make ids unique to this chart, and give colours to the page's CSS."""
    svg = svg[svg.index("<svg") :]
    for pattern in (r"<metadata>.*?</metadata>", r"<style.*?</style>", r"<!--.*?-->", r'(?<=<g) id="[^"]*"'):
        svg = re.sub(pattern, "", svg, flags=re.DOTALL)
    svg = re.sub(r"<defs>\s*</defs>", "", svg)
    prefix = "-".join(re.findall(r"[a-z0-9]+", title.lower()))
    svg = re.sub(r'\bid="', f'id="{prefix}-', svg)
    svg = re.sub(r"url\(#", f"url(#{prefix}-", svg)
    svg = re.sub(r'xlink:href="#', f'href="#{prefix}-', svg)
    # matplotlib's fonts would override the page's wherever they happen to be installed.
    svg = re.sub(r" font-family: [^;\"]*;", "", svg)
    svg = re.sub(r"font: ([\d.]+px) [^;\"]*", r"font-size: \1", svg)
    svg = re.sub(r"\s*\n\s*", "\n", svg)
    for colour, variable in CSS_COLOURS.items():
        svg = svg.replace(colour, variable)
    view_box = re.search(r'viewBox="[^"]*"', svg)
    assert view_box is not None
    return re.sub(r"<svg[^>]*>", f'<svg {view_box[0]} role="img">', svg, count=1).strip()
