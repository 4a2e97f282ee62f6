"""What a metric is: each example becomes a row of numbers that add up, and a value is computed from their sum.

This is sacrebleu's idea of *sufficient statistics*. Because a resample of the examples only changes how often each
row counts, one vectorised bootstrap (`evaluation/statistics.py`) gives every metric its interval, also those, such as
macro-F1 or BLEU, that are not a mean over examples.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from reason2decide.data.predictions import Prediction
from reason2decide.data.records import LabelSet, Record
from reason2decide.evaluation.probes import Probe

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]


@dataclass(frozen=True)
class Examples:
    """What every metric reads: records and predictions in one order (checked by `evaluation.evaluate`).

    `rationale_source` names the gold rationales to compare with; None when rationales are not evaluated. `probes`
    stand in the same order, and are None where nothing more was asked than the predictions hold.
    """

    records: Sequence[Record]
    predictions: Sequence[Prediction]
    labels: LabelSet
    rationale_source: str | None = None
    probes: Sequence[Probe] | None = None

    def __post_init__(self) -> None:
        assert len(self.records) == len(self.predictions)
        assert self.probes is None or len(self.probes) == len(self.records)

    def __len__(self) -> int:
        return len(self.records)


@dataclass(frozen=True)
class SufficientStatistics:
    """Additive statistics of n examples, stored as u distinct rows and, for each example, which row is its own.

    rows: (u, d); row_of: (n,) indices into rows; positions: (n,) places of the counted examples in `Examples`.
    Label metrics have few distinct rows however many examples there are, which makes resampling them cheap.
    `notes` tell what was left out or counted specially.
    """

    rows: Floats
    row_of: Integers
    positions: Integers
    notes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        assert self.rows.ndim == 2 and self.row_of.shape == self.positions.shape

    def __len__(self) -> int:
        return len(self.row_of)

    def subset(self, chosen: NDArray[np.bool_]) -> SufficientStatistics:
        """The statistics of the examples (of all in `Examples`) that are chosen, (N,) booleans; perhaps of none."""
        kept = chosen[self.positions]
        return SufficientStatistics(self.rows, self.row_of[kept], self.positions[kept])

    def total(self) -> Floats:
        """The statistics summed over all examples, shape (d,)."""
        sums: Floats = np.bincount(self.row_of, minlength=len(self.rows)) @ self.rows
        return sums


class Metric(ABC):
    """One number that says how good predictions are.

    A metric's docstring says why it exists, its formula and its source; `worst` and `best` are the ends of its range
    and, by their order, its direction. To add one: write the class and enter it in `metrics.METRICS`.
    """

    name: ClassVar[str]
    title: ClassVar[str]
    worst: ClassVar[float]
    best: ClassVar[float]

    @abstractmethod
    def statistics(self, examples: Examples) -> SufficientStatistics:
        """The statistics of the examples this metric counts, at least one.

        Raises:
            NotComputed: the metric is not defined on these examples; with the reason.
        """

    @abstractmethod
    def aggregate(self, sums: Floats) -> Floats:
        """Map summed statistics (..., d) to values (...)."""

    def signature(self) -> str:
        """The settings that make two values comparable; empty where there are none."""
        return ""


def ratio(numerator: Floats | Integers, denominator: Floats | Integers) -> Floats:
    """Elementwise quotient, 0 where the denominator is not positive."""
    numerator, denominator = np.broadcast_arrays(numerator, denominator)
    result: Floats = np.divide(numerator, denominator, out=np.zeros(numerator.shape), where=denominator > 0)
    return result
