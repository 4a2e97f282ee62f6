"""Evaluate any number of examples in bounded memory: their statistics are summed over a fixed number of random groups.

A resample then draws these groups in place of examples. Examples fall into them by a hash of their id, so that the sums
of the groups are independent and alike, and spread as those of the examples do: the cluster bootstrap of
`statistics.py`, with clusters at random. All examples of one group of records, such as a patient's, fall into the same.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from reason2decide.data.records import Record
from reason2decide.errors import NotComputed, NothingToCount
from reason2decide.evaluation.metrics import Examples, Metric, SufficientStatistics
from reason2decide.evaluation.metrics.base import Floats, Integers
from reason2decide.evaluation.slices import Slicing
from reason2decide.evaluation.sums import SliceSums, Sums, sums_of
from reason2decide.model.calibration import Calibration

UNITS = 1024  # ours: the standard error is then known to 2.2 %, as much as 1,000 resamples blur it


class SumPool:
    """Adds up examples, of which it keeps nothing but sums.

    Args:
        metrics: what is measured; the attribute has them as the first examples have settled them.
        slicings: of columns, fitted on all records.
        calibration: of the system, from validation.
    """

    def __init__(self, metrics: Sequence[Metric], slicings: Sequence[Slicing], calibration: Calibration | None) -> None:
        self.metrics = tuple(metrics)
        self._slicings, self._calibration = slicings, calibration
        self._all = _Part()
        self._slices = {own.column.name: {value: _Part() for value in own.names} for own in slicings}
        self._present = np.zeros(UNITS, bool)
        self._undefined: dict[str, NotComputed] = {}
        self._arrays: dict[str, Any] = {}
        self._unscaled: dict[str, Floats] = {}

    def add(self, examples: Examples) -> None:
        """Add examples."""
        sums = sums_of(examples, self.metrics, self._slicings, self._calibration)
        self.metrics = tuple(metric.settled() if metric.name in sums.statistics else metric for metric in self.metrics)
        units = unit_of(examples.records)
        self._present[units] = True
        self._note(sums.undefined)
        self._all.add(sums.count, sums.statistics, units)
        for column, parts in sums.slices.items():
            for value, part in parts.items():
                self._slices[column][value].add(part.count, part.statistics, units, part.gold)
        arrays = {name: getattr(sums, name) for name in ("confusion", "reliability", "levels")}
        _add_to(self._arrays, {name: array for name, array in arrays.items() if array is not None})
        _add_to(self._unscaled, sums.unscaled)

    def merge(self, other: SumPool) -> None:
        """Add what another pool of the same metrics and slicings has added."""
        self._present |= other._present
        self._note(other._undefined)
        self._all.merge(other._all)
        for column, parts in other._slices.items():
            for value, part in parts.items():
                self._slices[column][value].merge(part)
        _add_to(self._arrays, other._arrays)
        _add_to(self._unscaled, other._unscaled)

    @property
    def count(self) -> int:
        """Number of examples added."""
        return self._all.count

    def _note(self, undefined: Mapping[str, NotComputed]) -> None:
        for name, reason in undefined.items():
            # That there is nothing to count may hold for some examples; any other reason holds for all.
            if _for_all(reason) or name not in self._undefined:
                self._undefined[name] = reason

    def sums(self) -> Sums:
        """The sums of all examples added."""
        failed = {name for name, reason in self._undefined.items() if _for_all(reason)}
        statistics = {name: own for name, own in self._all.statistics().items() if name not in failed}
        return Sums(
            self._all.count,
            int(self._present.sum()),
            f"{UNITS} random groups",
            statistics,
            {name: reason for name, reason in self._undefined.items() if name not in statistics},
            {
                column: {value: part.sums(failed) for value, part in parts.items() if part.count}
                for column, parts in self._slices.items()
            },
            **self._arrays,
            unscaled=self._unscaled,
        )


class _Part:
    """The sums over examples, or over those of a slice."""

    def __init__(self) -> None:
        self.count = 0
        self._gold: set[str] = set()
        self._sums: dict[str, Floats] = {}  # (UNITS, 1 + d): number of examples counted, and their statistics

    def add(
        self,
        count: int,
        statistics: Mapping[str, SufficientStatistics],
        units: Integers,
        gold: frozenset[str] = frozenset(),
    ) -> None:
        self.count += count
        self._gold |= gold
        for name, own in statistics.items():
            if len(own):
                sums = self._sums.setdefault(name, np.zeros((UNITS, 1 + own.rows.shape[1])))
                present, summed = _by_unit(own, units)
                sums[present] += summed

    def merge(self, other: _Part) -> None:
        self.count += other.count
        self._gold |= other._gold
        _add_to(self._sums, other._sums)

    def statistics(self) -> dict[str, SufficientStatistics]:
        found = {}
        for name, sums in self._sums.items():
            positions = np.flatnonzero(sums[:, 0])
            counted = int(sums[:, 0].sum())
            left_out = self.count - counted
            notes = (f"{left_out} of {self.count} records do not count for it",) if left_out else ()
            found[name] = SufficientStatistics(
                sums[positions, 1:], np.arange(len(positions)), positions, notes, examples=counted
            )
        return found

    def sums(self, failed: set[str]) -> SliceSums:
        statistics = {name: own for name, own in self.statistics().items() if name not in failed}
        return SliceSums(self.count, statistics, frozenset(self._gold))


def _by_unit(statistics: SufficientStatistics, units: Integers) -> tuple[Integers, Floats]:
    """The units that have a counted example, and for each the number of these and the sum of their statistics."""
    of_example = units[statistics.positions]
    order = np.argsort(of_example, kind="stable")
    present, starts = np.unique(of_example[order], return_index=True)
    rows = np.insert(statistics.rows, 0, 1.0, axis=1)[statistics.row_of[order]]
    return present, np.add.reduceat(rows, starts, axis=0)


def _add_to(sums: dict[str, Any], more: Mapping[str, Any]) -> None:
    for name, array in more.items():
        sums[name] = sums[name] + array if name in sums else array


def unit_of(records: Sequence[Record]) -> Integers:
    """The random group of each record, (n,)."""
    keys = (f"group {record.group}" if record.group is not None else f"id {record.id}" for record in records)
    digests = (hashlib.blake2b(key.encode(), digest_size=8).digest() for key in keys)
    return np.array([int.from_bytes(digest, "little") % UNITS for digest in digests], np.int64)


def _for_all(reason: NotComputed) -> bool:
    return not isinstance(reason, NothingToCount)
