"""Records by the values of a metadata column: for whom a system is good, and for whom it is not."""

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
MAX_VALUES = 20  # ours: of a column of words; the rarer ones are taken together
BANDS = 4  # ours: of a column of numbers, equal in records
FEW_NUMBERS = 10  # ours: so many different numbers are values, not a scale
OTHER, MISSING = "other", "not given"


@dataclass(frozen=True)
class Column:
    """A column to slice by, and where given the inner edges of its bands: `age:18,65` is under 18, 18 to 65, above."""

    name: str
    edges: tuple[float, ...] = ()

    @classmethod
    def parse(cls, text: str) -> Column:
        """From NAME or NAME:EDGE,EDGE.

        Raises:
            DataError: an edge is no number, or they do not rise.
        """
        name, colon, edges = text.partition(":")
        try:
            values = tuple(float(edge) for edge in edges.split(",")) if colon else ()
        except ValueError:
            raise DataError(f"--slice {text!r}: expected COLUMN, or COLUMN:EDGE,EDGE with numbers") from None
        if list(values) != sorted(set(values)) or not all(map(math.isfinite, values)):
            raise DataError(f"--slice {text!r}: the edges {edges} must rise")
        return cls(name, values)


def slice_records(records: Sequence[Record], column: Column) -> dict[str, NDArray[np.bool_]]:
    """For each value, or band of numbers, which records have it, (n,) booleans; together they are all records.

    Raises:
        DataError: no record has such a column, it holds lists or objects, or edges were given for words.
    """
    values = [len(r.text.split()) if column.name == LENGTH else r.meta.get(column.name) for r in records]
    given = [value for value in values if value is not None]
    if not given:
        known = sorted({key for record in records for key in record.meta} | {LENGTH})
        raise DataError(f"no record has a column {column.name!r} to slice by; there are {', '.join(known)}")
    if any(isinstance(value, list | dict) for value in given):
        raise DataError(f"the column {column.name!r} holds lists or objects; slice by one of words or numbers")
    numeric = all(isinstance(value, int | float) and not isinstance(value, bool) for value in given)
    if column.edges and not numeric:
        raise DataError(f"the column {column.name!r} holds words, so it has no bands; leave out the edges")
    if numeric and (column.edges or len(set(given)) > FEW_NUMBERS):
        return _bands(values, column.edges or _quantiles(given))
    names = [MISSING if value is None else str(value) for value in values]
    common = [name for name, _ in Counter(names).most_common(MAX_VALUES)]
    if len(set(names)) > MAX_VALUES:
        names = [name if name in common else OTHER for name in names]
    order = sorted(set(names), key=lambda name: (name in (OTHER, MISSING), _natural(name)))
    found = np.array(names)
    return {name: found == name for name in order}


def _quantiles(values: Sequence[float]) -> tuple[float, ...]:
    edges = np.quantile(values, np.arange(1, BANDS) / BANDS, method="higher")
    least = min(values)
    # Where most records have the least value, it is a band of its own.
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


def _natural(name: str) -> list[tuple[int, float, str]]:
    """Sorts "2" before "10"."""
    parts = re.split(r"(\d+)", name)
    return [(0, float(part), "") if part.isdigit() else (1, 0.0, part) for part in parts if part]
