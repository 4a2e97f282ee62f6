"""Slice records by a metadata column, to see for whom a system works and for whom it does not."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Sequence
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
OTHER, MISSING = "other", "not given"
NUMBER = re.compile(r"[+-]?(\d+(\.\d*)?|\.\d+)([eE][+-]?\d+)?")


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


def slice_records(records: Sequence[Record], column: Column) -> dict[str, NDArray[np.bool_]]:
    """For each value or band of numbers, the records that have it as (n,) booleans; every record is in exactly one.

    Raises:
        DataError: no record has the column, it contains lists or objects, or edges were given for words.
    """
    values = [len(r.text.split()) if column.name == LENGTH else r.meta.get(column.name) for r in records]
    values = _as_numbers(values)
    given = [value for value in values if value is not None]
    if not given:
        known = sorted({key for record in records for key in record.meta} | {LENGTH})
        raise DataError(f"no record has a column {column.name!r} to slice by; choose from {', '.join(known)}")
    if any(isinstance(value, list | dict) for value in given):
        raise DataError(f"the column {column.name!r} contains lists or objects; slice by a column of words or numbers")
    numeric = all(isinstance(value, int | float) and not isinstance(value, bool) for value in given)
    if column.edges and not numeric:
        raise DataError(f"the column {column.name!r} contains words, so it has no bands; leave out the edges")
    if numeric and (column.edges or len(set(given)) > FEW_NUMBERS):
        return _bands(values, column.edges or _quantiles(given))
    names = [MISSING if value is None else _name(value) for value in values]
    common = [name for name, _ in Counter(names).most_common(MAX_VALUES)]
    if len(set(names)) > MAX_VALUES:
        names = [name if name in common else OTHER for name in names]
    order = sorted(set(names), key=lambda name: (name in (OTHER, MISSING), _natural(name)))
    found = np.array(names)
    return {name: found == name for name in order}


def _as_numbers(values: Sequence[Any]) -> list[Any]:
    """The values of a column of a CSV file, which are all text: numbers if every one of them is, empty ones missing."""
    texts = [value for value in values if isinstance(value, str)]
    if not texts or any(value.strip() and not NUMBER.fullmatch(value.strip()) for value in texts):
        return list(values)
    return [(float(value) if value.strip() else None) if isinstance(value, str) else value for value in values]


def _quantiles(values: Sequence[float]) -> tuple[float, ...]:
    edges = np.quantile(values, np.arange(1, BANDS) / BANDS, method="higher")
    least = min(values)
    # If most records have the lowest value, it gets its own band.
    return tuple(sorted({float(edge) for edge in edges if edge > least})) or (min(v for v in values if v > least),)


def _bands(values: Sequence[Any], edges: Sequence[float]) -> dict[str, NDArray[np.bool_]]:
    numbers = np.array([np.nan if value is None else float(value) for value in values])
    bounds = [-np.inf, *edges, np.inf]
    names = [f"under {edges[0]:g}", *(f"{a:g} to under {b:g}" for a, b in pairwise(edges))]
    names.append(f"{edges[-1]:g} and over")
    found = {
        name: (numbers >= low) & (numbers < high)
        for name, low, high in zip(names, bounds[:-1], bounds[1:], strict=True)
    }
    if np.isnan(numbers).any():
        found[MISSING] = np.isnan(numbers)
    return {name: chosen for name, chosen in found.items() if chosen.any()}


def _name(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)


def _natural(name: str) -> list[tuple[int, float, str]]:
    """A key that sorts "2" before "10"."""
    parts = re.split(r"(\d+)", name)
    return [(0, float(part), "") if part.isdigit() else (1, 0.0, part) for part in parts if part]
