"""Write the plots and tables of a report to separate files, for papers and slides."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from reason2decide.evaluation.comparison import Comparison
from reason2decide.evaluation.measure import Evaluation
from reason2decide.report.drawing import Format, Plot
from reason2decide.report.plots import calibration_plots, confusion_plot, forest_plot
from reason2decide.report.tables import ReportTable, comparison_tables, evaluation_tables
from reason2decide.report.training_plots import training_plots

FORMATS: tuple[Format, ...] = ("svg", "png")


def write_report_files(folder: Path, evaluation: Evaluation, *, training_log: Sequence[Mapping[str, Any]] = ()) -> None:
    """Write `plots/*.svg` and `*.png`, `tables/*.csv` and `*.tex` of an evaluation into its results folder.

    Raises:
        MissingExtraError: there is something to draw and matplotlib is not installed.
    """
    results = evaluation.results
    plots = [*calibration_plots(results), *confusion_plot(results), *training_plots(training_log)]
    _write(folder, plots, evaluation_tables(results))


def write_comparison_files(folder: Path, comparison: Comparison) -> None:
    """Write `plots/*.svg` and `*.png`, `tables/*.csv` and `*.tex` of a comparison into a folder.

    Raises:
        MissingExtraError: there is something to draw and matplotlib is not installed.
    """
    metrics = {difference.metric: None for difference in comparison.differences}
    _write(folder, [plot for name in metrics for plot in forest_plot(comparison, name)], comparison_tables(comparison))


def _write(folder: Path, plots: Sequence[Plot], tables: Sequence[ReportTable]) -> None:
    if plots:
        (folder / "plots").mkdir(exist_ok=True)
    (folder / "tables").mkdir(exist_ok=True)
    for plot in plots:
        for kind in FORMATS:
            (folder / "plots" / f"{plot.name}.{kind}").write_bytes(plot.file(kind))
    for table in tables:
        (folder / "tables" / f"{table.name}.csv").write_text(table.csv(), "utf-8")
        (folder / "tables" / f"{table.name}.tex").write_text(table.latex(), "utf-8")
