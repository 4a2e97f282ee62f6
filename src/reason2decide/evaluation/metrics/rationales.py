"""Shared parts of the rationale metrics: means, and how records without a rationale or a probe count."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Collection, Mapping, Sequence
from typing import ClassVar

import numpy as np

from reason2decide.data.predictions import NO_ANSWER, Prediction
from reason2decide.data.records import Record
from reason2decide.errors import NotComputed, NothingToCount
from reason2decide.evaluation.metrics.base import Examples, Floats, Integers, Metric, SufficientStatistics, ratio
from reason2decide.evaluation.probes import Probe


class Ratio(Metric):
    """The ratio of two sums; a mean if the second counts examples."""

    def aggregate(self, sums: Floats) -> Floats:
        """(..., 2) -> (...)."""
        return ratio(sums[..., 0], sums[..., 1])


def pooled(
    rows: Sequence[Sequence[float]], positions: Sequence[int] | Integers, notes: tuple[str, ...]
) -> SufficientStatistics:
    """The statistics of n examples, one row (d,) each, with equal rows stored once."""
    distinct, row_of = np.unique(np.array(rows, float), axis=0, return_inverse=True)
    return SufficientStatistics(distinct, row_of.reshape(-1), np.array(positions, np.int64), notes)


def told(notes: Mapping[str, int]) -> tuple[str, ...]:
    """The notes whose count is not 0."""
    return tuple(note for note, count in notes.items() if count)


def has_rationale(prediction: Prediction) -> bool:
    """Whether there is a rationale that is not blank."""
    return bool((prediction.rationale or "").strip())


def require_rationales(examples: Examples) -> None:
    """Raise `NotComputed` if no prediction has a rationale."""
    if not any(map(has_rationale, examples.predictions)):
        raise NothingToCount("no prediction has a rationale")


def probes_of(examples: Examples, whom: str) -> Sequence[Probe]:
    """The probes of all examples.

    Raises:
        NotComputed: there are none; `whom` is the message, which says who was not asked and what to do.
    """
    if examples.probes is None:
        raise NotComputed(whom)
    return examples.probes


class ReadOut(Ratio):
    """Share of records for which a reader finds the wanted label in the rationale.

    A missing rationale counts as a miss, and so does a prediction without an answer if its label is wanted. Records
    whose rationale no reader was asked about are left out.
    """

    whom: ClassVar[str]

    @abstractmethod
    def read(self, probe: Probe) -> str | None:
        """The reader's label, None if it was not asked."""

    @abstractmethod
    def wanted(self, record: Record, prediction: Prediction) -> str | None:
        """The label that the reader should find."""

    def statistics(self, examples: Examples) -> SufficientStatistics:
        """Rows (found, 1), with two distinct ones.

        Raises:
            NotComputed: no prediction has a rationale, no reader was asked, or the wanted label is always the same.
        """
        require_rationales(examples)
        rows, positions, labels, missing, unanswered = [], [], set(), 0, 0
        for i, probe in enumerate(probes_of(examples, self.whom)):
            prediction = examples.predictions[i]
            label, wanted = self.read(probe), self.wanted(examples.records[i], prediction)
            if has_rationale(prediction) and label is None:
                continue
            missing += not has_rationale(prediction)
            unanswered += wanted == NO_ANSWER
            rows.append((float(label == wanted != NO_ANSWER), 1.0))
            positions.append(i)
            labels.add(wanted)
        if missing == len(rows):
            raise NothingToCount(self.whom)
        require_several(labels, len(rows))
        return pooled(rows, positions, notes_on(len(examples), len(rows), missing, unanswered, "count as misses"))


def require_several(labels: Collection[str | None], count: int) -> None:
    """Refuse one wanted label for all records: a reader that always says it would look perfect.

    Raises:
        NotComputed: there is only one.
    """
    if len(labels) == 1 and count > 1:
        raise NotComputed(
            f"the label to find is {next(iter(labels))!r} for all {count} records, so finding it shows nothing"
        )


def notes_on(total: int, counted: int, missing: int, unanswered: int, become: str) -> tuple[str, ...]:
    """Notes on records that were not probed, and on predictions without a rationale or an answer."""
    left_out = total - counted
    return told(
        {
            f"{left_out} of {total} records were not probed and are left out": left_out,
            f"{missing} of {counted} predictions have no rationale and {become}": missing,
            f"{unanswered} of {counted} predictions have no answer and {become}": unanswered,
        }
    )
