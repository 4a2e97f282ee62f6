"""Tables for papers and spreadsheets: CSV in full precision, LaTeX rounded, for `booktabs`."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from dataclasses import dataclass

from reason2decide.evaluation.comparison import Comparison
from reason2decide.evaluation.results import MetricValue, Results, Slice
from reason2decide.report.comparison_page import p_value
from reason2decide.report.metric_views import number

# LaTeX for each special character. A bracket or star that starts a row would be an argument of the line break before.
LATEX = {
    "\\": r"\textbackslash{}",
    "{": r"\{",
    "}": r"\}",
    "$": r"\$",
    "&": r"\&",
    "#": r"\#",
    "%": r"\%",
    "_": r"\_",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    '"': r"\textquotedbl{}",
    "`": r"\textasciigrave{}",
    "[": "{[}",
    "*": "{*}",
    "−": r"\textminus{}",
}

Cell = str | int | float | None


def _harmless(cell: Cell) -> Cell:
    """A cell that no spreadsheet takes for a formula: a text that begins like one gets an apostrophe before it."""
    return f"'{cell}" if isinstance(cell, str) and cell[:1] in tuple("=+-@\t\r") else cell


@dataclass(frozen=True)
class ReportTable:
    """A table: its file name, column headers, and rows of cells, None if there is no value.

    In LaTeX, numbers are rounded as those of `metric` or, if it is None, of the metric named in a row's first cell;
    those in columns whose header starts with `p_` are formatted as p values.
    """

    name: str
    header: tuple[str, ...]
    rows: tuple[tuple[Cell, ...], ...]
    metric: str | None = None

    def csv(self) -> str:
        """The table as CSV with a header; numbers unrounded, an empty field for no value."""
        stream = io.StringIO()
        writer = csv.writer(stream, lineterminator="\n")
        writer.writerows([[_harmless(cell) for cell in row] for row in (self.header, *self.rows)])
        return stream.getvalue()

    def latex(self) -> str:
        """The table as a `tabular` with the rules of `booktabs`; numbers rounded as on the page."""
        texts = [all(isinstance(row[i], str | None) for row in self.rows) for i in range(len(self.header))]
        lines = [
            r"% \usepackage[T1]{fontenc} \usepackage{textcomp} \usepackage{booktabs}",
            rf"\begin{{tabular}}{{{''.join('l' if text else 'r' for text in texts)}}}",
            r"\toprule",
            _line(self.header),
            r"\midrule",
            *(
                _line([self._shown(head, cell, row) for head, cell in zip(self.header, row, strict=True)])
                for row in self.rows
            ),
            r"\bottomrule",
            r"\end{tabular}",
        ]
        return "\n".join(lines) + "\n"

    def _shown(self, head: str, cell: Cell, row: Sequence[Cell]) -> str:
        if cell is None:
            return "–"
        if isinstance(cell, float):
            return p_value(cell) if head.startswith("p_") else number(self.metric or str(row[0]), cell)
        return cell if isinstance(cell, str) else f"{cell:,}"


def latex_escaped(text: str) -> str:
    """Escape text for LaTeX; white space becomes single spaces, and unprintable characters are removed."""
    return "".join(LATEX.get(character, character) for character in " ".join(text.split()) if character.isprintable())


def _line(cells: Sequence[str]) -> str:
    return " & ".join(map(latex_escaped, cells)) + r" \\"


def evaluation_tables(results: Results) -> list[ReportTable]:
    """Metrics, scores by label, confusion, calibration, and a table per sliced column, as far as available."""
    value_header = ("metric", "value", "low", "high", "n")
    tables = [
        ReportTable("metrics", value_header, tuple((name, *_cells(value)) for name, value in results.metrics.items()))
    ]
    if results.per_label:
        header = ("label", "precision", "recall", "f1", "support")
        rows = tuple((label, *(scores[key] for key in header[1:])) for label, scores in results.per_label.items())
        tables.append(ReportTable("labels", header, rows, "f1"))
        rows = tuple(
            (label, *row, missing)
            for label, row, missing in zip(
                results.confusion_labels, results.confusion_matrix, results.unanswered, strict=True
            )
        )
        tables.append(ReportTable("confusion", ("gold", *results.confusion_labels, "(no answer)"), rows))
    if results.calibration and results.calibration.before:
        before = results.calibration.before
        scaled = tuple((name, before[name], results.metrics[name].value) for name in before)
        tables.append(ReportTable("calibration", ("metric", "before", "after"), scaled))
    for i, (column, slices) in enumerate(results.slices.items(), 1):
        # A number, not the column's name, which may contain characters not allowed in a file name.
        tables.append(ReportTable(f"slices_{i}", ("metric", column, "records", *value_header[1:]), _slice_rows(slices)))
    return tables


def comparison_tables(comparison: Comparison) -> list[ReportTable]:
    """A table per metric: every system's value, and its difference from the reference."""
    names = {name: None for values in comparison.values.values() for name in values}
    return [
        ReportTable(f"comparison_{name}", COMPARISON_HEADER, _comparison_rows(comparison, name), name) for name in names
    ]


COMPARISON_HEADER = (
    "system", "mean", "low", "high", "spread", "seeds", "n",
    "difference", "difference_low", "difference_high", "difference_n",
    "p_bootstrap", "p_randomization", "p_holm", "p_mcnemar",
)  # fmt: skip


def _comparison_rows(comparison: Comparison, metric: str) -> tuple[tuple[Cell, ...], ...]:
    differences = {change.system: change for change in comparison.differences if change.metric == metric}
    rows = []
    for system, values in comparison.values.items():
        if metric not in values:
            continue
        value, change = values[metric], differences.get(system)
        against: tuple[Cell, ...] = (None,) * 8
        if change is not None:
            p_values = (change.p_bootstrap, change.p_randomization, change.p_holm, change.p_mcnemar)
            against = (change.difference, change.low, change.high, change.n, *p_values)
        rows.append((system, value.mean, value.low, value.high, value.spread, len(value.seeds), value.n, *against))
    return tuple(rows)


def _slice_rows(slices: Sequence[Slice]) -> tuple[tuple[Cell, ...], ...]:
    names = {name: None for part in slices for name in part.metrics}
    return tuple(
        (name, part.value, part.n, *_cells(part.metrics[name]))
        for name in names
        for part in slices
        if name in part.metrics
    )


def _cells(value: MetricValue) -> tuple[Cell, ...]:
    return value.value, value.low, value.high, value.n
