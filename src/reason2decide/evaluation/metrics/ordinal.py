"""Metrics of decisions with ordinal labels: how far off they are, and on which side.

Under-triage is the harmful error: a patient told to wait who should not have. It is never averaged away here.
"""

from __future__ import annotations

import csv
import json
from abc import abstractmethod
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from reason2decide.data.records import LabelSet
from reason2decide.data.sources.rows import guessed_delimiter
from reason2decide.errors import DataError, NotComputed, NothingToCount
from reason2decide.evaluation.metrics.base import Examples, Floats, Integers, Metric, SufficientStatistics, ratio
from reason2decide.evaluation.metrics.decisions import pooled_cells


class _OfAnswered(Metric):
    """Sums over (gold, predicted) pairs; records without an answer are left out, and a note gives their number."""

    def statistics(self, examples: Examples) -> SufficientStatistics:
        """One distinct row per occurring confusion cell.

        Raises:
            NotComputed: as `require`, or no record was answered.
        """
        gold, predicted, cell_of = pooled_cells(examples)
        self.require(examples.labels)
        answered = predicted < len(examples.labels.values)
        positions = np.flatnonzero(answered[cell_of])
        if not len(positions):
            raise NothingToCount("no record got a valid answer")
        left_out = len(cell_of) - len(positions)
        notes = (f"{left_out} of {len(cell_of)} records got no valid answer and are left out",) if left_out else ()
        row_of_cell = np.cumsum(answered) - 1
        rows = self.rows(gold[answered], predicted[answered], examples.labels)
        return SufficientStatistics(rows, row_of_cell[cell_of[positions]], positions, notes)

    def require(self, labels: LabelSet) -> None:
        """Raise `NotComputed` if the labels do not allow this metric."""
        if not labels.ordinal:
            raise NotComputed("the labels are not declared ordinal")

    @abstractmethod
    def rows(self, gold: Integers, predicted: Integers, labels: LabelSet) -> Floats:
        """The statistics (cells, d) of pairs of label indices, the number of records last."""

    def aggregate(self, sums: Floats) -> Floats:
        """A mean: (..., 2) -> (...)."""
        return ratio(sums[..., 0], sums[..., 1])


class QuadraticKappa(_OfAnswered):
    """Agreement beyond chance, with an error of two levels weighing four times an error of one.

    Why: the usual measure of agreement between triage nurses, so a model can be compared with them.
    Formula: 1 - sum_ij w_ij O_ij / sum_ij w_ij E_ij, w_ij = (i - j)^2, O the observed shares, E those of independent
    raters with the same margins; 1 if both are constant and equal. Range -1 to 1, higher is better.
    Source: Cohen 1968; scikit-learn's `cohen_kappa_score(weights="quadratic")`.
    """

    name, title, worst, best = "quadratic_kappa", "Quadratic-weighted kappa", -1.0, 1.0

    def rows(self, gold: Integers, predicted: Integers, labels: LabelSet) -> Floats:
        """(squared distance, gold, gold^2, predicted, predicted^2, 1), enough for the expected distance."""
        columns = ((gold - predicted) ** 2, gold, gold**2, predicted, predicted**2, np.ones_like(gold))
        return np.stack(columns, -1).astype(float)

    def aggregate(self, sums: Floats) -> Floats:
        """(..., 6) -> (...); E[(i - j)^2] of independent i and j is E[i^2] - 2 E[i] E[j] + E[j^2]."""
        observed, gold, gold2, predicted, predicted2 = (ratio(sums[..., i], sums[..., 5]) for i in range(5))
        expected = gold2 - 2 * gold * predicted + predicted2
        return np.where(expected > 0, 1 - ratio(observed, expected), 1.0)


class MeanAbsoluteError(_OfAnswered):
    """Mean number of levels between the decision and the gold label.

    Why: easy to read: 0.3 is about one level off in every third case.
    Formula: mean of |i - j|. Range 0 upwards, lower is better. Source: the usual definition for ordinal labels.
    """

    name, title, worst, best = "mae", "Mean absolute error, levels", np.inf, 0.0

    def rows(self, gold: Integers, predicted: Integers, labels: LabelSet) -> Floats:
        """(distance, 1)."""
        return _counted(np.abs(gold - predicted))


class _Triage(_OfAnswered):
    """Share of decisions on one side of the gold label, given the dataset's urgent end."""

    def require(self, labels: LabelSet) -> None:
        """Raise `NotComputed` unless labels are ordinal with a declared urgent end."""
        super().require(labels)
        if labels.urgent is None:
            raise NotComputed("the dataset does not say which end of its labels is urgent")

    @staticmethod
    def too_urgent(gold: Integers, predicted: Integers, labels: LabelSet) -> Integers:
        """Levels by which each decision is more urgent than the gold label; negative where it is less so."""
        return (predicted - gold) * (1 if labels.urgent == "last" else -1)


class UnderTriage(_Triage):
    """Share of decisions less urgent than the gold label.

    Why: this is the harmful error. Compare systems at equal over-triage, or by a cost matrix.
    Formula: less urgent decisions / n. Range 0 to 1, lower is better. Source: the usual definition in triage studies.
    """

    name, title, worst, best = "under_triage", "Under-triage", 1.0, 0.0

    def rows(self, gold: Integers, predicted: Integers, labels: LabelSet) -> Floats:
        """(decided less urgent, 1)."""
        return _counted(self.too_urgent(gold, predicted, labels) < 0)


class OverTriage(_Triage):
    """Share of decisions more urgent than the gold label.

    Why: the cost of avoiding under-triage, in beds and in trust.
    Formula: more urgent decisions / n. Range 0 to 1, lower is better. Source: the usual definition in triage studies.
    """

    name, title, worst, best = "over_triage", "Over-triage", 1.0, 0.0

    def rows(self, gold: Integers, predicted: Integers, labels: LabelSet) -> Floats:
        """(decided more urgent, 1)."""
        return _counted(self.too_urgent(gold, predicted, labels) > 0)


class ExpectedCost(_OfAnswered):
    """Mean cost of a decision, by the user's cost matrix.

    Why: those responsible for the decisions know what each mistake costs; no general measure does.
    Formula: mean of cost[gold][predicted]. Range that of the costs, lower is better. Source: the user's matrix.

    Args:
        costs: gold label -> predicted label -> cost, for all pairs; None if not given.
    """

    name, title, worst, best = "expected_cost", "Expected cost", np.inf, 0.0

    def __init__(self, costs: Mapping[str, Mapping[str, float]] | None = None) -> None:
        self.costs = costs

    def require(self, labels: LabelSet) -> None:
        """Raise `NotComputed` without a cost matrix; the labels need no order."""
        if self.costs is None:
            raise NotComputed("no cost matrix was given; give one with --costs FILE")

    def rows(self, gold: Integers, predicted: Integers, labels: LabelSet) -> Floats:
        """(cost, 1)."""
        assert self.costs is not None
        names = labels.values
        return _counted(np.array([self.costs[names[i]][names[j]] for i, j in zip(gold, predicted, strict=True)]))

    def signature(self) -> str:
        """The costs, if given."""
        return "" if self.costs is None else json.dumps(self.costs, ensure_ascii=False)


def read_costs(path: Path, labels: LabelSet) -> dict[str, dict[str, float]]:
    """Read a cost matrix: a CSV with predicted labels in the first row and gold labels in the first column.

    The delimiter is the one that the first line shows; empty lines and cells at the ends do not count.

    Raises:
        DataError: a missing file, one that is not UTF-8, a pair without a cost, an unknown label, or a cost that is not
            a number >= 0.
    """
    if not path.is_file():
        raise DataError(f"{path} is not a file; expected a CSV of costs, gold labels as rows and predicted as columns")
    try:
        lines = path.read_text("utf-8-sig").splitlines()
        delimiter = guessed_delimiter(lines[0], ",") if lines else ","
        cells = [[cell.strip() for cell in row] for row in csv.reader(lines, delimiter=delimiter)]
    except (UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{path} cannot be read ({error}); save it as CSV in UTF-8") from None
    width = 1 + len(labels.values)
    table = [[*row[:width], *filter(None, row[width:])] for row in cells if any(row)]
    found = {"columns": table[0][1:] if table else [], "rows": [row[0] for row in table[1:]]}
    for what, names in found.items():
        if sorted(names) != sorted(labels.values):
            raise DataError(
                f"{path} must have each label once as a row and once as a column: {', '.join(labels.values)}; its "
                f"{what} are {', '.join(names) or 'missing'}"
            )
    costs: dict[str, dict[str, float]] = {}
    for gold, *row in table[1:]:
        try:
            costs[gold] = {label: float(cost) for label, cost in zip(table[0][1:], row, strict=True)}
        except ValueError:
            raise DataError(f"{path}: the costs of gold {gold!r} are {row}; expected a number for each label") from None
        if not all(0 <= cost < np.inf for cost in costs[gold].values()):
            raise DataError(f"{path}: the costs of gold {gold!r} are {row}; expected numbers of at least 0")
    return costs


def _counted(values: NDArray[Any]) -> Floats:
    """Rows (value, 1), so that their sums give a mean."""
    return np.stack((values, np.ones(len(values))), -1).astype(float)
