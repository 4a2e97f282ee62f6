"""The interface of metrics: each example gives a row of additive numbers, and the value is computed from their sum.

This is sacrebleu's idea of *sufficient statistics*. A resample of the examples only changes how often each row counts,
so one vectorised bootstrap (`evaluation/statistics.py`) gives every metric its interval, including those that are not a
mean over examples, such as macro-F1 or BLEU.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
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
    """The input of every metric: records and predictions in the same order (checked by `examples.align`).

    `rationale_source` names the gold rationales to compare with, None if rationales are not evaluated. `probes` are in
    the same order, None if nothing was asked beyond the predictions.
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
    """Additive statistics of n examples, stored as u distinct rows and the index of each example's row.

    rows: (u, d); row_of: (n,) indices into rows; positions: (n,) positions of the counted examples in `Examples`.
    Label metrics have few distinct rows for any number of examples, which makes resampling them cheap.
    `notes` say what was left out or counted specially. Where a row sums several examples (`pooling.py`), `examples` is
    their number, and n and the positions are those of the sums.
    """

    rows: Floats
    row_of: Integers
    positions: Integers
    notes: tuple[str, ...] = ()
    examples: int | None = None

    def __post_init__(self) -> None:
        assert self.rows.ndim == 2 and self.row_of.shape == self.positions.shape

    def __len__(self) -> int:
        return len(self.row_of)

    @property
    def counted(self) -> int:
        """Number of examples counted."""
        return len(self) if self.examples is None else self.examples

    def subset(self, chosen: NDArray[np.bool_]) -> SufficientStatistics:
        """The statistics of the chosen examples, perhaps none; `chosen` has a boolean for each of the N examples."""
        kept = chosen[self.positions]
        return SufficientStatistics(self.rows, self.row_of[kept], self.positions[kept])

    def total(self) -> Floats:
        """The statistics summed over all examples, shape (d,)."""
        sums: Floats = np.bincount(self.row_of, minlength=len(self.rows)) @ self.rows
        return sums


class Metric(ABC):
    """One number that measures how good predictions are.

    A metric's docstring gives its purpose, formula and source. `worst` and `best` are the ends of its range, and their
    order is its direction. To add one, write the class and add it to `metrics.METRICS`.
    """

    name: ClassVar[str]
    title: ClassVar[str]
    worst: ClassVar[float]
    best: ClassVar[float]
    has_interval: ClassVar[bool] = True  # False where no interval is known that holds; then systems are not compared

    @abstractmethod
    def statistics(self, examples: Examples) -> SufficientStatistics:
        """The statistics of the examples this metric counts, at least one.

        The rows of an example must depend on it alone: statistics of parts of the examples are put together.

        Raises:
            NothingToCount: none of these examples counts.
            NotComputed: the metric is not defined on these examples; the message is the reason.
        """

    @abstractmethod
    def aggregate(self, sums: Floats) -> Floats:
        """Map summed statistics (..., d) to values (...)."""

    def resampled(self, total: Floats) -> Callable[[Floats], Floats]:
        """`aggregate` for the sums of resamples; `total` (d,) is the sum over the examples themselves.

        A metric whose value is biased by the noise of the examples corrects for it here: a resample has it twice.
        """
        return self.aggregate

    def remarks(self, total: Floats, labels: LabelSet) -> tuple[str, ...]:
        """What a reader must know of the value, from the sum `total` (d,) over the examples; nothing by default."""
        return ()

    def settled(self) -> Metric:
        """The metric with what it has settled by the examples that it has seen, which is then the same for others."""
        return self

    def within(self, part: SufficientStatistics) -> Metric:
        """The metric for a part of the examples, such as a slice, in which some labels may not occur."""
        return self

    def signature(self) -> str:
        """The settings that must be equal for two values to be comparable; empty without settings."""
        return ""


def ratio(numerator: Floats | Integers, denominator: Floats | Integers) -> Floats:
    """Elementwise quotient, 0 where the denominator is not positive."""
    numerator, denominator = np.broadcast_arrays(numerator, denominator)
    result: Floats = np.divide(numerator, denominator, out=np.zeros(numerator.shape), where=denominator > 0)
    return result
