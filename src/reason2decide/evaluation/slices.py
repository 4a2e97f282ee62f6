"""Slice records by a metadata column, to see for whom a system works and for whom it does not."""

from __future__ import annotations

import math
import re
from bisect import bisect_right
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from reason2decide.data.records import Record
from reason2decide.errors import DataError

LENGTH = "length"  # words of the text: a column that every dataset has
MAX_VALUES = 20  # ours: for a column of words; the rarer values are merged
BANDS = 4  # ours: for a column of numbers, of about equal size
FEW_NUMBERS = 10  # ours: up to this many different numbers are values, not a scale
MAX_COUNTED = 100_000  # ours: different values that are counted, about 20 MB
OTHER, MISSING = "other", "not given"
# A code such as "007" is a word: as numbers, "007" and "7" would be one.
NUMBER = re.compile(r"[+-]?((0|[1-9]\d*)(\.\d*)?|\.\d+)([eE][+-]?\d+)?", re.ASCII)


@dataclass(frozen=True)
class Column:
    """A column to slice by, optionally with edges of bands: `age:18,65` is under 18, 18 to under 65, 65 and over."""

    name: str
    edges: tuple[float, ...] = ()

    @classmethod
    def parse(cls, text: str) -> Column:
        """Parse NAME or NAME:EDGE,EDGE; a name may have a colon of its own.

        Raises:
            DataError: an edge is not a number, or the edges do not increase.
        """
        name, colon, edges = text.rpartition(":")
        if not colon or not re.search(r"\d|\binf|\bnan", edges):
            return cls(text)
        try:
            values = tuple(float(edge) for edge in edges.split(","))
        except ValueError:
            raise DataError(f"--slice {text!r}: expected COLUMN, or COLUMN:EDGE,EDGE with numbers") from None
        if list(values) != sorted(set(values)) or not all(map(math.isfinite, values)):
            raise DataError(f"--slice {text!r}: the edges {edges} must increase")
        return cls(name, values)

    def value_of(self, record: Record) -> Any:
        """The record's value, None if it has none or a blank one.

        Raises:
            DataError: it is a list or an object.
        """
        value = len(record.text.split()) if self.name == LENGTH else record.meta.get(self.name)
        if isinstance(value, list | dict):
            raise DataError(
                f"the column {self.name!r} contains lists or objects; slice by a column of words or numbers"
            )
        return None if isinstance(value, str) and not value.strip() else value


@dataclass(frozen=True)
class Slicing:
    """How the values of a column are divided.

    Args:
        names: of the slices, in order.
        edges: of the bands of numbers; empty for words.
        numeric: whether texts are read as numbers.
    """

    column: Column
    names: tuple[str, ...]
    edges: tuple[float, ...]
    numeric: bool

    @classmethod
    def fit(cls, records: Iterable[Record], column: Column) -> Slicing:
        """Divide a column by the values of records; raises as `ColumnValues`."""
        values = ColumnValues(column)
        for record in records:
            values.add(record)
        return values.slicing()

    def masks(self, records: Sequence[Record]) -> dict[str, NDArray[np.bool_]]:
        """For each slice the records in it, as (n,) booleans; every record is in exactly one."""
        found = np.array([self.name_of(record) for record in records], object)
        return {name: found == name for name in self.names}

    def name_of(self, record: Record) -> str:
        """The slice of a record; of a value that nothing was fitted on, the merged one or its own."""
        value = self.column.value_of(record)
        value = _number(value) if self.numeric or self.edges else value
        if value is None:
            return MISSING
        if self.edges:
            return _band_names(self.edges)[_band(self.edges, value)]
        name = _name(value)
        return OTHER if OTHER in self.names and name not in self.names else name


class ColumnValues:
    """Counts the values of a column, of any number of records, and divides them.

    Raises:
        DataError: on adding, a list or an object, or more different values than are counted; at the end, no record has
            the column, or edges were given for words.
    """

    def __init__(self, column: Column) -> None:
        self._column = column
        self._counts: Counter[tuple[bool, Any]] = Counter()  # True and 1 are equal, and not the same value
        self._known = {LENGTH}

    def add(self, record: Record) -> None:
        """Count the value of a record."""
        self._known |= record.meta.keys()
        value = self._column.value_of(record)
        self._counts[isinstance(value, bool), _within(self._column.edges, value)] += 1
        if len(self._counts) > MAX_COUNTED:
            name = self._column.name
            raise DataError(
                f"the column {name!r} has more than {MAX_COUNTED} different values; slice by one with fewer, or give "
                f"edges of bands of numbers, as in --slice {name}:10,20"
            )

    def slicing(self) -> Slicing:
        """How the values are divided."""
        column, given = self._column, [value for _, value in self._counts if value is not None]
        if not given:
            known = ", ".join(sorted(self._known))
            raise DataError(f"no record has a column {column.name!r} to slice by; choose from {known}")
        as_numbers = _all_numbers(given)
        counts: Counter[tuple[bool, Any]] = Counter()
        for (is_bool, value), count in self._counts.items():
            counts[is_bool, _number(value) if as_numbers else value] += count
        missing = counts.pop((False, None), 0)
        numeric = all(isinstance(value, int | float) and not is_bool for is_bool, value in counts)
        if column.edges and not numeric:
            raise DataError(f"the column {column.name!r} contains words, so it has no bands; leave out the edges")
        if numeric and (column.edges or len(counts) > FEW_NUMBERS):
            edges = column.edges or _quantiles({value: count for (_, value), count in counts.items()})
            present = {_band(edges, value) for _, value in counts}
            names = [name for i, name in enumerate(_band_names(edges)) if i in present]
            return Slicing(column, (*names, MISSING) if missing else tuple(names), edges, as_numbers)
        named: Counter[str] = Counter()
        for (_, value), count in counts.items():
            named[_name(value)] += count
        if missing:
            named[MISSING] += missing
        names = [name for name, _ in named.most_common(MAX_VALUES)]
        if len(named) > MAX_VALUES:
            names = [*(name for name in names if name != OTHER), OTHER]
        return Slicing(column, tuple(sorted(names, key=_order)), (), as_numbers)


def slice_records(records: Sequence[Record], column: Column) -> dict[str, NDArray[np.bool_]]:
    """For each value or band of numbers, the records that have it as (n,) booleans; every record is in exactly one.

    Raises:
        DataError: as `ColumnValues`.
    """
    return Slicing.fit(records, column).masks(records)


def _within(edges: Sequence[float], value: Any) -> Any:
    """A number as one that stands for its band, so that numbers of given bands need not be counted one by one."""
    number = _number(value) if isinstance(value, str) else value
    if not edges or isinstance(number, bool) or not isinstance(number, int | float):
        return value
    band = _band(edges, number)
    return edges[band - 1] if band else math.nextafter(edges[0], -math.inf)


def _all_numbers(values: Sequence[Any]) -> bool:
    """Whether texts are numbers, as those of a CSV file: there are some, and each is a number or blank."""
    texts = [value for value in values if isinstance(value, str)]
    return bool(texts) and all(not text.strip() or NUMBER.fullmatch(text.strip()) for text in texts)


def _number(value: Any) -> Any:
    """A text that is a number as that number, a blank one as None; all else as it is."""
    if not isinstance(value, str):
        return value
    text = value.strip()
    return (float(text) if NUMBER.fullmatch(text) else value) if text else None


def _quantiles(counts: Mapping[float, int]) -> tuple[float, ...]:
    """Edges of bands of about equal size, each one a value that occurs."""
    values = np.array(sorted(counts))
    cumulated = np.cumsum([counts[value] for value in values.tolist()])
    ranks = np.ceil(np.arange(1, BANDS) / BANDS * (cumulated[-1] - 1))
    edges = values[np.searchsorted(cumulated, ranks, side="right")]
    # If most records have the lowest value, it gets its own band.
    return tuple(sorted({float(edge) for edge in edges if edge > values[0]})) or (float(values[1]),)


def _band(edges: Sequence[float], value: float) -> int:
    """The band of a number: 0 below the first edge."""
    return bisect_right(edges, value)


def _band_names(edges: Sequence[float]) -> list[str]:
    shown = [_name(float(edge)) for edge in edges]
    between = [f"{low} to under {high}" for low, high in pairwise(shown)]
    return [f"under {shown[0]}", *between, f"{shown[-1]} and over"]


def _name(value: Any) -> str:
    return f"{value:.15g}" if isinstance(value, float) else str(value)


def _order(name: str) -> tuple[bool, list[tuple[int, float, str]]]:
    """A key that sorts "2" before "10", and what is merged or missing last."""
    parts = re.split(r"(\d+)", name)
    return name in (OTHER, MISSING), [
        (0, float(part), "") if part.isdecimal() else (1, 0.0, part) for part in parts if part
    ]
