"""Render a comparison as one HTML file: values at a glance, then every system against the reference by metric."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from reason2decide.evaluation.comparison import LEVEL, Comparison, Difference, SystemValue
from reason2decide.report.metric_views import HEADLINE, arrow, direction_of, group_names, number, title_of
from reason2decide.report.pages import render_page
from reason2decide.report.verdict import twins, verdicts


@dataclass(frozen=True)
class Row:
    """A system's row for a metric. The fields of its difference are empty for the reference.

    `forest` places the interval and the difference on an axis centred on zero, as (start, width, point) in per cent;
    `side` is `better` or `worse` if the metric is primary and its adjusted p value is significant.
    """

    system: str
    mean: str
    interval: str
    spread: str
    n: int
    difference: str = ""
    difference_interval: str = ""
    forest: tuple[float, float, float] | None = None
    side: str = ""
    p_values: tuple[str, ...] = ()


@dataclass(frozen=True)
class MetricTable:
    """All systems on one metric."""

    title: str
    arrow: str
    direction: int
    primary: bool
    rows: Sequence[Row]


def render_comparison(comparison: Comparison, *, title: str) -> str:
    """The comparison as one HTML document without scripts; the same input gives the same bytes."""
    computed = twins(comparison)
    groups = {
        group: [metric_table(comparison, name, computed[name]) for name in names]
        for group, names in group_names(computed).items()
    }
    glance = [name for name in HEADLINE if name in computed]
    return render_page(
        "comparison.html",
        title=title,
        comparison=comparison,
        level=LEVEL,
        primary=[title_of(name) for name in comparison.primary],
        verdicts=verdicts(comparison),
        seeds=max(len(value.seeds) for values in comparison.values.values() for value in values.values()),
        mcnemar=any(change.p_mcnemar is not None for change in comparison.differences),
        glance=[(title_of(name), arrow(name)) for name in glance],
        systems={
            system: [_row(system, name, values.get(name)) for name in glance]
            for system, values in comparison.values.items()
        },
        groups=groups,
    )


def metric_table(comparison: Comparison, metric: str, same: Sequence[str] = ()) -> MetricTable:
    """The rows of one metric, the reference first, then the systems in their order; `same` have the same values."""
    differences = {change.system: change for change in comparison.differences if change.metric == metric}
    ends = [abs(end) for change in differences.values() for end in (change.low, change.high, change.difference)]
    reach = max(ends, default=0) or 1
    systems = sorted(comparison.values, key=lambda system: system != comparison.reference)
    rows = [
        _row(system, metric, comparison.values[system].get(metric), differences.get(system), reach)
        for system in systems
    ]
    shown = [row for row in rows if row is not None]
    title = title_of(metric) + (f" (the same: {', '.join(map(title_of, same))})" if same else "")
    return MetricTable(title, arrow(metric), direction_of(metric), metric in comparison.primary, shown)


def p_value(p: float | None) -> str:
    """A p value to thousandths; a dash if there is none."""
    return "–" if p is None else "<0.001" if p < 0.001 else f"{p:.3f}"


def _row(
    system: str, metric: str, value: SystemValue | None, change: Difference | None = None, reach: float = 1
) -> Row | None:
    if value is None:
        return None
    row = Row(
        system,
        number(metric, value.mean),
        f"{number(metric, value.low)} to {number(metric, value.high)}",
        "–" if value.spread is None else number(metric, value.spread),
        value.n,
    )
    if change is None:
        return row
    low, high, point = (50 + 49 * end / reach for end in (change.low, change.high, change.difference))
    better = change.difference * direction_of(metric)
    return Row(
        row.system,
        row.mean,
        row.interval,
        row.spread,
        row.n,
        number(metric, change.difference, signed=True),
        f"{number(metric, change.low, signed=True)} to {number(metric, change.high, signed=True)}",
        (low, high - low, point),
        "" if change.p_holm is None or change.p_holm >= LEVEL or better == 0 else "better" if better > 0 else "worse",
        tuple(map(p_value, (change.p_bootstrap, change.p_randomization, change.p_holm, change.p_mcnemar))),
    )
