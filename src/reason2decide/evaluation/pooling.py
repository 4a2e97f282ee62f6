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
from reason2decide.evaluation.tally import SliceTally, Tally, tally_of
from reason2decide.model.calibration import Calibration

UNITS = 2048  # ours: the standard error is then known to 1.6 %, which 1,000 resamples blur by 2.2 %


class TallyPool:
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
        tally = tally_of(examples, self.metrics, self._slicings, self._calibration)
        self.metrics = tuple(metric.settled() if metric.name in tally.statistics else metric for metric in self.metrics)
        units = unit_of(examples.records)
        self._present[units] = True
        for name, reason in tally.undefined.items():
            # That there is nothing to count may hold for some examples; any other reason holds for all.
            if _for_all(reason) or name not in self._undefined:
                self._undefined[name] = reason
        self._all.add(tally.count, tally.statistics, units)
        for column, parts in tally.slices.items():
            for value, part in parts.items():
                self._slices[column][value].add(part.count, part.statistics, units, part.gold)
        for name in ("confusion", "reliability", "levels"):
            array = getattr(tally, name)
            if array is not None:
                self._arrays[name] = self._arrays.get(name, 0) + array
        for name, sums in tally.unscaled.items():
            self._unscaled[name] = self._unscaled.get(name, 0.0) + sums

    def tally(self) -> Tally:
        """The sums of all examples added."""
        failed = {name for name, reason in self._undefined.items() if _for_all(reason)}
        statistics = {name: own for name, own in self._all.statistics().items() if name not in failed}
        return Tally(
            self._all.count,
            int(self._present.sum()),
            f"{UNITS} random groups",
            statistics,
            {name: reason for name, reason in self._undefined.items() if name not in statistics},
            {
                column: {value: part.tally(failed) for value, part in parts.items() if part.count}
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

    def tally(self, failed: set[str]) -> SliceTally:
        statistics = {name: own for name, own in self.statistics().items() if name not in failed}
        return SliceTally(self.count, statistics, frozenset(self._gold))


def _by_unit(statistics: SufficientStatistics, units: Integers) -> tuple[Integers, Floats]:
    """The units that have a counted example, and for each the number of these and the sum of their statistics."""
    of_example = units[statistics.positions]
    order = np.argsort(of_example, kind="stable")
    present, starts = np.unique(of_example[order], return_index=True)
    rows = np.insert(statistics.rows, 0, 1.0, axis=1)[statistics.row_of[order]]
    return present, np.add.reduceat(rows, starts, axis=0)


def unit_of(records: Sequence[Record]) -> Integers:
    """The random group of each record, (n,)."""
    keys = (f"group {record.group}" if record.group is not None else f"id {record.id}" for record in records)
    digests = (hashlib.blake2b(key.encode(), digest_size=8).digest() for key in keys)
    return np.array([int.from_bytes(digest, "little") % UNITS for digest in digests], np.int64)


def _for_all(reason: NotComputed) -> bool:
    return not isinstance(reason, NothingToCount)
